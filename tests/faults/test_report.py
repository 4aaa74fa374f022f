"""The table of `make faults`: what is kept, and what it takes to be reached."""

from collections import Counter
from pathlib import Path

from tests.faults import report
from tests.faults.report import KINDS, Kept
from tests.faults.table import Part, Row

ROW = Row("things lost", "0", "0 of | 7\nand more", True)


def kept(**parts: dict[str, int]) -> dict[str, Kept]:
    return {name: Kept(Part([ROW], Counter(kinds)), "a note") for name, kinds in parts.items()}


def test_a_part_takes_the_place_of_its_older_self_and_leaves_the_others(tmp_path: Path) -> None:
    for name, times in (("chaos", 1), ("load", 2), ("chaos", 3)):
        report.keep(name, Part([ROW], Counter({"kill": times})), seconds=60, seed=7, folder=tmp_path)
    found = report.read(tmp_path)
    assert {name: one.part for name, one in found.items()} == {
        "chaos": Part([ROW], Counter({"kill": 3})),
        "load": Part([ROW], Counter({"kill": 2})),
    }
    assert "1 minutes, seed 7" in found["chaos"].note
    assert (tmp_path / "faults.md").read_text() == report.page(found)


def test_a_kind_that_never_fired_in_one_part_spoils_it_whatever_the_others_say() -> None:
    many = {f"kind {number}": 1 for number in range(KINDS)}
    assert report.kinds_row(kept(chaos=many)).reached
    assert not report.kinds_row(kept(chaos=many | {"kind 1": 0}, processes=many)).reached
    assert not report.kinds_row(kept(chaos=dict(list(many.items())[1:]))).reached


def test_a_cell_stays_one_cell() -> None:
    row = next(line for line in report.page(kept(load={})).splitlines() if "things lost" in line)
    assert row.count(" | ") == 3
