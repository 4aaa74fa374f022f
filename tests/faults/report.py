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
from tests.faults.table import Part, Row

RESULTS = Path(__file__).resolve().parents[2] / "bench/results"
KINDS = 50


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


def kinds_row(parts: Mapping[str, Kept]) -> Row:
    """Over all parts: one that was meant to fire and did not spoils it."""
    fired = {kind for kept in parts.values() for kind, times in kept.part.kinds.items() if times}
    slept = [kind for kept in parts.values() for kind, times in kept.part.kinds.items() if not times]
    return Row("kinds of fault, each seen to happen", f">= {KINDS}", str(len(fired)), len(fired) >= KINDS and not slept)


def table(rows: Sequence[Row]) -> Table:
    """For a terminal."""
    made = Table("to reach", "wanted", "measured", "")
    for row in rows:
        made.add_row(row.what, row.wanted, row.measured, _mark(row), style=None if row.reached else "bold red")
    return made


def page(parts: Mapping[str, Kept]) -> str:
    lines = ["# Faults", ""]
    lines += _rows([kinds_row(parts)])
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
    return "✓" if row.reached else "✗"


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
