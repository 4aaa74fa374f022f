"""The report."""

import json
from io import StringIO
from pathlib import Path

from rich.console import Console

from bench import report
from bench.measure import Row
from bench.targets import targets

STOCK = Row("stock", "stock WhisperX", 1, audio_seconds=60, wall=6, p50=0.5, p95=0.7, wer=0.123, cpu_seconds=12)
OURS = Row(
    "upload-16",
    "ours",
    16,
    audio_seconds=60,
    wall=1.5,
    p50=0.4,
    p95=0.5,
    wer=0.121,
    peak_bytes=5 * 10**8,
    busy_share=0.9,
)
FAILED = Row("session-4", "stitched", 1, failed="Refusal: [404] not there")
ROWS = [STOCK, OURS, FAILED]


def test_the_headline_has_speed_ratio_and_word_errors() -> None:
    said = report.headline({row.id: row for row in ROWS})
    assert said == "5-second chunks, 16 in flight: 40x real time, 4.0x stock WhisperX, WER 12.1 % (stock 12.3 %)"


def test_the_headline_says_what_there_is() -> None:
    assert report.headline({}) == "5-second chunks, 16 in flight: not measured"
    assert report.headline({"upload-16": OURS}) == "5-second chunks, 16 in flight: 40x real time"


def test_a_line_has_the_ratio_to_stock_and_a_dash_for_what_is_unknown() -> None:
    assert report.cells(OURS, STOCK) == (
        "ours", "16", "40.0", "4.00", "0.40", "0.50", "12.10%", "-", "500", "90%",
    )  # fmt: skip
    assert report.cells(STOCK, None)[3] == "-"
    assert len(report.cells(FAILED, STOCK)) == len(report.COLUMNS)


def test_the_page_has_rows_failures_targets_and_notes() -> None:
    page = report.markdown(ROWS, targets({row.id: row for row in ROWS}), ["one machine"])
    assert "| ours | 16 | 40.0 | 4.00 |" in page
    assert "- stitched, 1 in flight: failed: Refusal: [404] not there" in page
    assert "| 16 in flight / stock, file by file | >= 4x | 4.00x | ✓ |" in page
    assert "- one machine" in page


def test_the_terminal_shows_the_same(tmp_path: Path) -> None:
    console = Console(file=StringIO(), width=160)
    report.show(console, ROWS, targets({row.id: row for row in ROWS}))
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert "40.0x" in shown
    assert "Refusal: [404] not there" in shown
    assert "✓" in shown


def test_page_picture_and_raw_numbers_are_written(tmp_path: Path) -> None:
    report.write(tmp_path, ROWS, targets({row.id: row for row in ROWS}), [])
    raw = json.loads((tmp_path / "bench.json").read_text())
    assert [row["speed"] for row in raw["rows"]] == [10, 40, 0]
    assert (tmp_path / "bench.png").read_bytes().startswith(b"\x89PNG")
    assert (tmp_path / "bench.md").exists()


def test_nothing_measured_is_a_report_too(tmp_path: Path) -> None:
    report.write(tmp_path, [FAILED], targets({}), [])
    report.show(Console(file=StringIO()), [FAILED], targets({}))
