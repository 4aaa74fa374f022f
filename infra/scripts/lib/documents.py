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

    alarms = commands.add_parser("alarms", help="put-metric-alarm's inputs, one on a line: the rendered template's own")
    alarms.add_argument("template", type=Path)
    alarms.add_argument("values", nargs="*", metavar="NAME=VALUE")

    for name, help in (("changed", "those alarms (files) that AWS does not have so"), ("differences", "in words")):
        compare = commands.add_parser(name, help=help)
        compare.add_argument("wanted", type=Path, help="a file as `alarms` prints it")
        compare.add_argument("found", type=Path, help="describe-alarms' MetricAlarms")

    on = commands.add_parser("on", help="the alarms that are on now, and why")
    on.add_argument("found", type=Path, help="describe-alarms' MetricAlarms")

    costs = commands.add_parser("costs", help="a dashboard's metrics of what each kind of instance costs")
    costs.add_argument("prices", type=Path)
    costs.add_argument("deployment")
    costs.add_argument("types", help="with commas")
    costs.add_argument("--hidden", action="store_true", help="only to be added up")

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
    elif arguments.command == "alarms":
        for alarm in alarms_of(arguments.template.read_text(), pairs(arguments.values)):
            print(compact(alarm))
    elif arguments.command in ("changed", "differences"):
        wanted = [json.loads(line) for line in arguments.wanted.read_text().splitlines()]
        found = {alarm["AlarmName"]: alarm for alarm in json.loads(arguments.found.read_text().strip() or "[]") or ()}
        for alarm in wanted:
            differing = differences(alarm, found.get(alarm["AlarmName"]))
            if differing and arguments.command == "changed":
                print(compact(alarm))
            elif differing:
                print("\n".join(differing))
    elif arguments.command == "on":
        for alarm in json.loads(arguments.found.read_text()):
            if alarm["StateValue"] == "ALARM":
                print(f"{alarm['AlarmName']} is on: {alarm.get('AlarmDescription', '')}")
    elif arguments.command == "costs":
        prices = json.loads(arguments.prices.read_text())["dollars_an_hour"]
        rows = costs_of(prices, arguments.deployment, arguments.types.split(","), visible=not arguments.hidden)
        print(",".join(compact(row) for row in rows))
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
    if isinstance(value, float) and value.is_integer():
        return str(int(value))
    return value


def alarms_of(template: str, values: dict[str, str]) -> list[dict[str, Any]]:
    document = json.loads(rendered(template, values))
    return [{**document["common"], **alarm} for alarm in document["alarms"]]


def differences(wanted: dict[str, Any], found: dict[str, Any] | None) -> list[str]:
    """In words, nothing if there is none. Tags are not among what AWS describes of an alarm."""
    name = wanted["AlarmName"]
    if found is None:
        return [f"alarm {name} does not exist"]
    return [
        f"alarm {name}: {field} is {compact(found.get(field))}, expected {compact(value)}"
        for field, value in wanted.items()
        if field != "Tags" and normal(value) != normal(found.get(field))
    ]


def costs_of(
    prices: dict[str, dict[str, float]], deployment: str, types: list[str], *, visible: bool
) -> list[list[Any]]:
    """The minutes that instances of each type and market ran, and the dollars that is."""
    kinds = [(type, market, price) for type in types for market, price in prices.get(type, {}).items()]
    rows: list[list[Any]] = []
    for number, (type, market, price) in enumerate(kinds, 1):
        dimensions = ["Deployment", deployment, "InstanceType", type, "Market", market]
        minutes = {"id": f"minutes{number}", "visible": False}
        rows.append(["TranscriptionRouter", "InstanceMinutes", *dimensions, minutes])
        dollars = {"expression": f"minutes{number} / 60 * {price}", "label": f"{type} {market}"}
        rows.append([{**dollars, "id": f"dollars{number}", "visible": visible}])
    return rows


def with_eventbridge(configuration: str) -> dict[str, Any]:
    document = json.loads(configuration.strip() or "{}")
    document.pop("ResponseMetadata", None)
    document["EventBridgeConfiguration"] = {}
    return dict(document)


if __name__ == "__main__":
    sys.exit(main())
