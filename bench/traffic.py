"""`python -m bench.traffic`: the requests of our server's jobs, to the local S3, from a process that does nothing else.

The local S3 has no machine of its own: it slows down whoever shares the processors with it. So the engine alone, which
asks nobody for anything, is also measured beside such traffic: what is then left between it and the service is the
service's own doing.
"""

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from urllib.parse import urlsplit

from bench.children import environment
from infra.local import processes

Request = tuple[str, str]  # method, presigned URL
BODY = b"{}" * 1000  # about a chunk's transcript


@contextmanager
def traffic(requests: Sequence[Request], *, per_second: float, logs: Path) -> Iterator[None]:
    """Make `requests` in turn, again and again, during the block."""
    order = logs / "traffic.json"
    order.write_text(json.dumps({"requests": requests, "per_second": per_second}))
    process = processes.start(
        [sys.executable, "-m", "bench.traffic", order], environment=environment({}), log=logs / "traffic.log"
    )
    try:
        yield
    finally:
        ended = process.poll()
        process.kill()
        process.wait()
    if ended is not None:
        raise RuntimeError(f"the traffic ended: {processes.tail(logs / 'traffic.log', 3)}")


def main() -> None:
    order = json.loads(Path(sys.argv[1]).read_text())
    requests = [(method, urlsplit(url)) for method, url in order["requests"]]
    connection = HTTPConnection(requests[0][1].netloc)
    due = time.monotonic()
    while True:
        for method, url in requests:
            connection.request(method, f"{url.path}?{url.query}", body=BODY if method == "PUT" else None)
            answer = connection.getresponse()
            answer.read()
            if answer.status >= 500 or answer.status == 403:
                raise SystemExit(f"{method} {url.path}: {answer.status}")
            due += 1 / order["per_second"]
            time.sleep(max(0.0, due - time.monotonic()))


if __name__ == "__main__":
    main()
