"""The query protocol's parameters as the structure that they spell: `Name.member.1.Field=value`."""

from collections.abc import Mapping
from typing import Any


def nested(p: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    """What was sent as `prefix.Member.member.1.Field=value`; every value is a text."""
    return structure({name.removeprefix(f"{prefix}."): p[name] for name in p if name.startswith(f"{prefix}.")})


def structure(p: Mapping[str, Any]) -> dict[str, Any]:
    """All of it; every value is a text."""
    tree: dict[str, Any] = {}
    for name, value in p.items():
        node = tree
        *parents, leaf = name.split(".")
        for parent in parents:
            node = node.setdefault(parent, {})
        node[leaf] = value
    return {name: _with_lists(value) for name, value in tree.items()}


def _with_lists(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    if set(node) == {"member"}:
        return [_with_lists(item) for _, item in sorted(node["member"].items(), key=lambda pair: int(pair[0]))]
    return {name: _with_lists(value) for name, value in node.items()}
