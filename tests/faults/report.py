"""The table of `make faults`, for people and in bench/results: what each part showed when it was run last."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.table import Table

from bench.about import machine, revision
from tests.faults.table import AGAIN, Part, Row

RESULTS = Path(__file__).resolve().parents[2] / "bench/results"
KINDS = 50
ON_PROCESSES = ("aws", "chaos", "processes")  # parts: what they survive, the deployed programs do
SEEN = ("request answered ", "input made for the code: ", "overload: ")  # of what came of it: these kinds are no faults


@dataclass(frozen=True)
class Kept:
    """A part, and when, where and how it ran."""

    part: Part
    note: str


def keep(name: str, part: Part, *, seconds: float, seed: int, folder: Path = RESULTS) -> None:
    """Put the part's newest results in place of its older ones, in faults.json and faults.md."""
    parts = read(folder)
    where = f"{datetime.now(UTC):%Y-%m-%d}, {machine()}, commit {revision() or 'unknown'}"
    parts[name] = Kept(part, f"{where}, {seconds / 60:.0f} minutes, seed {seed}")
    document = {
        name: {"note": kept.note, "rows": [asdict(row) for row in kept.part.rows], "kinds": dict(kept.part.kinds)}
        for name, kept in sorted(parts.items())
    }
    (folder / "faults.json").write_text(json.dumps(document, indent=1, ensure_ascii=False) + "\n")
    (folder / "faults.md").write_text(page(parts))


def read(folder: Path = RESULTS) -> dict[str, Kept]:
    file = folder / "faults.json"
    document: dict[str, Any] = json.loads(file.read_text()) if file.exists() else {}
    return {
        name: Kept(Part([Row(**row) for row in kept["rows"]], Counter(kept["kinds"])), kept["note"])
        for name, kept in document.items()
    }


def head(parts: Mapping[str, Kept]) -> list[Row]:
    """Over all parts."""
    struck = Counter[str]()
    for name in set(ON_PROCESSES) & set(parts):
        struck.update(parts[name].part.kinds)
    duplicates = struck.pop(AGAIN, 0)
    return [
        _kinds_row(parts),
        Row(f"faults survived by real processes ({', '.join(ON_PROCESSES)})", "-", f"{struck.total():,}", None),
        Row("duplicates absorbed by them: deliveries beyond the first", "-", f"{duplicates:,}", None),
    ]


def _kinds_row(parts: Mapping[str, Kept]) -> Row:
    """One that was meant to fire and did not spoils it."""
    kinds = [(kind, times) for kept in parts.values() for kind, times in kept.part.kinds.items()]
    fired = {kind for kind, times in kinds if times and not kind.startswith(SEEN)}
    well = len(fired) >= KINDS and all(times for _, times in kinds)
    return Row("kinds of fault, each seen to happen", f">= {KINDS}", str(len(fired)), well)


def table(rows: Sequence[Row]) -> Table:
    """For a terminal."""
    made = Table("to reach", "wanted", "measured", "")
    for row in rows:
        made.add_row(row.what, row.wanted, row.measured, _mark(row), style="bold red" if row.reached is False else None)
    return made


def page(parts: Mapping[str, Kept]) -> str:
    lines = ["# Faults", ""]
    lines += _rows(head(parts))
    for name, kept in sorted(parts.items()):
        lines += [f"## {name}", "", kept.note, "", *_rows(kept.part.rows)]
    lines += ["## Kinds of fault", "", "| part | kind | times |", "| --- | --- | --- |"]
    for name, kept in sorted(parts.items()):
        lines += [f"| {name} | {_cell(kind)} | {times:,} |" for kind, times in sorted(kept.part.kinds.items())]
    return "\n".join([*lines, ""])


def _rows(rows: Sequence[Row]) -> list[str]:
    cells = [f"| {_cell(row.what)} | {_cell(row.wanted)} | {_cell(row.measured)} | {_mark(row)} |" for row in rows]
    return ["| to reach | wanted | measured | |", "| --- | --- | --- | --- |", *cells, ""]


def _mark(row: Row) -> str:
    return {True: "✓", False: "✗", None: ""}[row.reached]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
