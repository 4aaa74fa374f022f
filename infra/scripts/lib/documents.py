"""JSON for the deploy scripts, which have no jq: fill in a template, compare, merge. Standard library only."""

# ruff: noqa: T201  printing is what the scripts run this for

import argparse
import json
import string
import sys
from pathlib import Path
from typing import Any


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    render = commands.add_parser("render", help="a template with its ${NAMES} filled in, on one line")
    render.add_argument("template", type=Path)
    render.add_argument("values", nargs="*", metavar="NAME=VALUE")
    render.add_argument(
        "--without", default="", metavar="SID", help="leave this statement out; nothing left: no output"
    )

    same = commands.add_parser("same", help="exit 0 if both documents say the same")
    same.add_argument("expected")
    same.add_argument("found")

    commands.add_parser("with-eventbridge", help="stdin: a bucket's notification configuration; adds EventBridge to it")

    secret = commands.add_parser("secret", help="stdin: a secret; put-parameter's input, so that no argument shows it")
    secret.add_argument("name")

    pack = commands.add_parser("object", help="an object; an empty value is left out")
    pack.add_argument("values", nargs="*", metavar="NAME=TEXT|NAME:=JSON")

    includes = commands.add_parser("includes", help="exit 0 if the second document has all that the first one has")
    includes.add_argument("wanted")
    includes.add_argument("found")

    arguments = parser.parse_args()
    if arguments.command == "render":
        print(rendered(arguments.template.read_text(), pairs(arguments.values), without=arguments.without))
    elif arguments.command == "same":
        return 0 if is_same(arguments.expected, arguments.found) else 1
    elif arguments.command == "with-eventbridge":
        print(compact(with_eventbridge(sys.stdin.read())))
    elif arguments.command == "secret":
        document = {"Name": arguments.name, "Value": sys.stdin.read(), "Type": "SecureString", "Overwrite": True}
        print(compact(document))
    elif arguments.command == "object":
        print(compact(packed(arguments.values)))
    elif arguments.command == "includes":
        wanted, found = json.loads(arguments.wanted), json.loads(arguments.found)
        return 0 if all(normal(value) == normal(found.get(name)) for name, value in wanted.items()) else 1
    return 0


def pairs(arguments: list[str]) -> dict[str, str]:
    return dict(argument.split("=", 1) for argument in arguments)


def packed(arguments: list[str]) -> dict[str, Any]:
    document: dict[str, Any] = {}
    for argument in arguments:
        name, value = argument.split("=", 1)
        if name.endswith(":"):
            document[name[:-1]] = json.loads(value)
        elif value:
            document[name] = value
    return document


def compact(document: Any) -> str:
    return json.dumps(document, separators=(",", ":"))


def rendered(template: str, values: dict[str, str], *, without: str = "") -> str:
    """Fill in, parse (a template that is not JSON must not reach AWS), and print on one line."""
    document = json.loads(string.Template(template).substitute(values))
    if without and "Statement" in document:
        document["Statement"] = [one for one in document["Statement"] if one.get("Sid") != without]
        if not document["Statement"]:
            return ""
    return compact(document)


def is_same(expected: str, found: str) -> bool:
    """Whether AWS gives back what we gave it: it may reorder keys, write numbers as text, and one for [one]."""
    if not expected.strip() or expected == "None" or not found.strip() or found == "None":
        return (expected.strip() or "None") == (found.strip() or "None")
    try:
        return bool(normal(json.loads(expected)) == normal(json.loads(found)))
    except ValueError:
        return False


def normal(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: normal(inner) for key, inner in value.items()}
    if isinstance(value, list):
        items = sorted((normal(item) for item in value), key=compact)
        return items[0] if len(items) == 1 else items
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value


def with_eventbridge(configuration: str) -> dict[str, Any]:
    document = json.loads(configuration.strip() or "{}")
    document.pop("ResponseMetadata", None)
    document["EventBridgeConfiguration"] = {}
    return dict(document)


if __name__ == "__main__":
    sys.exit(main())
