"""What counts as reached."""

from bench.measure import Row
from bench.targets import Target, targets


def row(id: str, *, speed: float = 10, wer: float | None = None, p50: float = 1.0, cpu: float | None = None) -> Row:
    return Row(id, id, 1, audio_seconds=100, wall=100 / speed, p50=p50, wer=wer, cpu_seconds=cpu)


def of(what: str, *rows: Row, with_wer: bool = True) -> Target:
    (found,) = (
        target for target in targets({row.id: row for row in rows}, with_wer=with_wer) if target.what.startswith(what)
    )
    return found


def test_throughput_is_compared_with_stock_file_by_file() -> None:
    stock = row("stock", speed=10)
    assert of("16 in flight / stock", stock, row("upload-16", speed=40)).reached
    missed = of("16 in flight / stock", stock, row("upload-16", speed=39))
    assert missed.reached is False
    assert missed.measured == "3.90x"


def test_throughput_is_compared_with_the_plain_server() -> None:
    assert of("16 in flight / plain", row("plain-4", speed=8), row("upload-16", speed=40)).reached


def test_the_stitched_session_is_compared_with_stock_on_chunks_and_uncut() -> None:
    rows = (row("stock", speed=10), row("stock-whole", speed=20), row("session-4", speed=41))
    assert of("stitched session / stock, file", *rows).reached
    assert of("stitched session / stock, uncut", *rows).reached


def test_lone_chunks_may_be_a_point_worse() -> None:
    stock = row("stock", wer=0.10)
    assert of("WER, lone", stock, row("upload-1", wer=0.109)).reached
    assert of("WER, lone", stock, row("upload-1", wer=0.111)).reached is False


def test_the_live_route_must_win_back_half_of_what_cutting_costs() -> None:
    rows = (row("stock", wer=0.10), row("stock-whole", wer=0.04))
    assert of("WER, live", *rows, row("live-4", wer=0.069)).reached
    assert of("WER, live", *rows, row("live-4", wer=0.071)).reached is False


def test_the_stitched_session_must_be_as_good_as_uncut() -> None:
    rows = (row("stock", wer=0.10), row("stock-whole", wer=0.04))
    assert of("WER, stitched", *rows, row("session-4", wer=0.044)).reached
    assert of("WER, stitched", *rows, row("session-4", wer=0.046)).reached is False


def test_words_are_left_out_where_they_mean_nothing() -> None:
    assert not [target for target in targets({}, with_wer=False) if "WER" in target.what]


def test_latency_is_the_median_of_a_call() -> None:
    assert of("latency", row("stock", p50=0.5), row("upload-1", p50=0.25)).reached


def test_the_overhead_is_told_by_processor_time_and_by_wall_clock() -> None:
    found = of("service overhead", row("bare-16", speed=40, cpu=10), row("s3-16", speed=30, cpu=10.5))
    assert found.reached
    assert found.measured == "5.0% by CPU seconds, 33.3% by wall clock"


def test_without_processor_time_the_wall_clock_decides() -> None:
    assert of("service overhead", row("bare-16", speed=40), row("s3-16", speed=30)).reached is False


def test_memory_counts_from_the_idle_server() -> None:
    long = Row("long-1", "long", 1, audio_seconds=1, wall=1, peak_bytes=1_900_000_000, idle_bytes=1_000_000_000)
    assert of("memory", long) == Target("memory for a 3-hour file above the idle server", "< 1 GB", "900 MB", True)
    assert not [target for target in targets({}) if target.what.startswith("memory")]


def test_a_row_that_failed_leaves_its_targets_open() -> None:
    failed = Row("upload-16", "ours", 16, failed="ChildError: gone")
    assert of("16 in flight / stock", row("stock"), failed) == Target(
        "16 in flight / stock, file by file", ">= 4x", "-", None
    )
