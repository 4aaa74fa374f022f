"""The container's health check: the model is loaded and the server answers. A full one, or one that leaves, is well."""

# ruff: noqa: T201  `docker inspect` shows what a health check prints

import json
import os
import sys
import urllib.error
import urllib.request

WELL = ("saturated", "draining")


def main() -> int:
    url = f"http://127.0.0.1:{os.environ['FAST_API_PORT']}/health"
    try:
        urllib.request.urlopen(url, timeout=4)
    except urllib.error.HTTPError as answer:
        reason = json.load(answer).get("reason")
        print(reason)
        return 0 if reason in WELL else 1
    except OSError as error:
        print(error)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
