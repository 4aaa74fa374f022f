"""The table of `make faults`: what is kept, and what it takes to be reached."""

from collections import Counter
from pathlib import Path

from tests.faults import report
from tests.faults.report import KINDS, Kept
from tests.faults.table import AGAIN, Part, Row

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
    assert report.head(kept(chaos=many))[0].reached
    assert not report.head(kept(chaos=many | {"kind 1": 0}, processes=many))[0].reached
    assert not report.head(kept(chaos=dict(list(many.items())[1:])))[0].reached


def test_what_came_of_it_is_no_kind_of_fault() -> None:
    seen = {f"request answered {status}": 1 for status in range(KINDS)} | {"input made for the code: keys": 1}
    assert report.head(kept(fuzz=seen | {"media: a bomb": 1}))[0].measured == "1"


def test_the_head_counts_what_real_processes_survived_and_the_duplicates() -> None:
    parts = kept(chaos={"kill": 2, AGAIN: 900}, aws={"kill": 1, AGAIN: 100}, simulation={"put: crash before": 7})
    assert [row.measured for row in report.head(parts)[1:]] == ["3", "1,000"]


def test_a_figure_for_information_is_neither_reached_nor_missed() -> None:
    rows = [Row("times heard", "-", "2", None), ROW]
    page = report.page({"chaos": Kept(Part(rows), "a note")})
    assert "| times heard | - | 2 |  |" in page


def test_a_cell_stays_one_cell() -> None:
    row = next(line for line in report.page(kept(load={})).splitlines() if "things lost" in line)
    assert row.count(" | ") == 3
