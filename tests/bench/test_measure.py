"""The numbers of the bench."""

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from unittest.mock import Mock

import pytest

from bench import measure
from bench.measure import (
    Row,
    busy_seconds,
    cpu_seconds,
    join,
    peak_bytes,
    percentile,
    reset_peak,
    rss_bytes,
    timed,
    wer,
)


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0.0, 1.0), (0.5, 5.0), (0.95, 10.0), (0.9, 9.0), (0.91, 10.0), (1.0, 10.0)],
)
def test_a_percentile_is_a_value_that_occurred(share: float, expected: float) -> None:
    assert percentile([float(value) for value in range(10, 0, -1)], share) == expected


def test_the_percentile_of_one_value_is_that_value() -> None:
    assert percentile([3.0], 0.5) == percentile([3.0], 0.95) == 3.0


def test_word_errors_of_all_recordings_are_over_all_their_words() -> None:
    assert wer(["one two three", "four"], ["one two", "five"]) == pytest.approx(2 / 4)


def test_case_punctuation_and_hyphens_are_no_word_errors() -> None:
    assert wer(["Printing, the well-known art"], ["printing the well known ART."]) == 0.0


def test_a_recording_of_which_nothing_was_heard_counts_with_all_its_words() -> None:
    assert wer(["one two", "three"], ["", "three"]) == pytest.approx(2 / 3)


def test_texts_come_together_in_the_chunks_order_whatever_order_they_came_in() -> None:
    order = [(0, 1), (1, 0), (0, 0)]
    assert join([" b ", "c", "a"], order, 2) == ["a b", "c"]


def test_the_busy_seconds_are_read_from_the_metrics_page() -> None:
    page = "# TYPE recognizer_busy_seconds counter\nrecognizer_busy_seconds_total 12.5\nother_total 3\n"
    assert busy_seconds(page) == 12.5
    assert busy_seconds("") == 0.0


def test_calls_of_a_group_wait_for_each_other_and_groups_do_not() -> None:
    together = threading.Barrier(2, timeout=60)
    done: list[str] = []

    def first() -> str:
        together.wait()
        done.append("first")
        return "first"

    def second() -> str:
        assert done  # of its group's first
        return "second"

    times = timed([[first, second], [first, second]], in_flight=2, pid=os.getpid())
    assert times.texts == ["first", "second", "first", "second"]
    assert len(times.latencies) == 4


def test_a_call_that_fails_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    over = threading.Event()
    begun: list[str] = []

    class Pool(ThreadPoolExecutor):
        def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
            super().shutdown(wait=False, cancel_futures=cancel_futures)
            over.set()
            super().shutdown(wait)

    def fail() -> str:
        raise ValueError("no")

    def linger() -> str:
        """It may have begun by then."""
        return str(over.wait(60))

    def begin() -> str:
        begun.append("one that should not have")
        return ""

    monkeypatch.setattr(measure, "ThreadPoolExecutor", Pool)
    with pytest.raises(ValueError, match="no"):
        timed([[fail], [linger], [begin], [begin]], in_flight=1, pid=os.getpid())
    assert begun == []


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="the system has no /proc")
def test_a_process_has_processor_time_and_memory() -> None:
    pid = os.getpid()
    reset_peak(pid)
    cpu, peak, now = cpu_seconds(pid), peak_bytes(pid), rss_bytes(pid)
    assert cpu is not None
    assert cpu > 0
    assert peak is not None
    assert now is not None
    assert peak > 1_000_000


@pytest.mark.skipif(not os.path.exists("/proc/self/stat"), reason="the system has no /proc")
def test_memory_that_may_not_be_looked_at_is_no_memory_of_nought(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is a peak that was not reset one since then; but a child may end at any moment."""

    def refuse(error: type[OSError]) -> None:
        refused = Mock(side_effect=error)
        monkeypatch.setattr(measure.Path, "write_text", refused)
        monkeypatch.setattr(measure, "_tree", lambda root: iter([(root, [])]))
        monkeypatch.setattr(measure.Path, "read_text", refused)

    refuse(ProcessLookupError)
    reset_peak(os.getpid())
    assert peak_bytes(os.getpid()) is None
    refuse(PermissionError)
    with pytest.raises(PermissionError):
        reset_peak(os.getpid())
    with pytest.raises(PermissionError):
        peak_bytes(os.getpid())


def test_a_process_that_is_not_there_has_none() -> None:
    assert cpu_seconds(2**22 + 1) is None
    assert peak_bytes(2**22 + 1) is None


def test_the_speed_is_audio_over_wall_clock() -> None:
    assert Row("a", "a", 1, audio_seconds=60, wall=2).speed == 30
    assert Row("a", "a", 1, failed="no").speed == 0
