"""Metrics as CloudWatch reads them: valid lines, few of them, and nothing in them that is a person's."""

import json
import threading
from typing import Any

import pytest
from aws_lambda_powertools.metrics import MetricUnit

from batch_worker.work import Result
from router_lambda.decide import Decision
from shared.combine import SessionTranscribed
from shared.errors import TransientError
from shared.jobs import Reason
from shared.telemetry import (
    DECISIONS,
    JOBS_QUEUED,
    MESSAGES_HANDLED,
    METRICS,
    NAMESPACE,
    RETRIES,
    SESSIONS_WRITTEN,
    UNAUTHORIZED,
    UPLOAD_TO_TRANSCRIPT,
    Metric,
    Pulse,
    Telemetry,
    counted,
)

SESSION = SessionTranscribed("b", "k", "u", "s", chunks=2, failed=0, duration=10.0, audio_seconds={"direct": 10.0})


class Lines:
    """What was printed, parsed."""

    def __init__(self) -> None:
        self.telemetry = Telemetry("mine", self._write)
        self.printed: list[dict[str, Any]] = []

    def _write(self, line: str) -> None:
        self.printed.append(json.loads(line))

    def flushed(self) -> list[dict[str, Any]]:
        self.telemetry.flush()
        printed, self.printed = self.printed, []
        return printed


@pytest.fixture
def lines() -> Lines:
    return Lines()


def test_a_line_is_what_cloudwatch_makes_metrics_of(lines: Lines, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POWERTOOLS_SERVICE_NAME", "router")  # would be one more dimension
    lines.telemetry.observe(DECISIONS, "direct")
    (line,) = lines.flushed()
    (directive,) = line["_aws"]["CloudWatchMetrics"]
    assert directive == {
        "Namespace": "TranscriptionRouter",
        "Dimensions": [["Deployment", "Decision"]],
        "Metrics": [{"Name": "Decisions", "Unit": "Count"}],
    }
    assert isinstance(line["_aws"]["Timestamp"], int)
    assert {name: value for name, value in line.items() if name != "_aws"} == {
        "Deployment": "mine",
        "Decision": "direct",
        "Decisions": [1.0],
    }


def test_counts_are_added_up_and_what_has_the_same_dimensions_shares_a_line(lines: Lines) -> None:
    for _ in range(3):
        lines.telemetry.observe(RETRIES, value=2)
    lines.telemetry.observe(UNAUTHORIZED)
    lines.telemetry.observe(DECISIONS, "queued")
    first, second = lines.flushed()
    assert (first["Retries"], first["Unauthorized"]) == ([6.0], [1.0])
    assert (second["Decision"], second["Decisions"]) == ("queued", [1.0])
    assert lines.flushed() == []


def test_every_single_time_counts_however_many_there_are(lines: Lines) -> None:
    times = [number / 10 for number in range(250)]
    for seconds in times:
        lines.telemetry.observe(UPLOAD_TO_TRANSCRIPT, "direct", value=seconds)
    printed = lines.flushed()
    assert all(len(line["UploadToTranscript"]) <= 100 for line in printed)  # CloudWatch takes no more in one line
    assert [seconds for line in printed for seconds in line["UploadToTranscript"]] == times


def test_threads_lose_nothing(lines: Lines) -> None:
    def observe() -> None:
        for _ in range(500):
            lines.telemetry.observe(RETRIES)

    threads = [threading.Thread(target=observe) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lines.flushed()[0]["Retries"] == [2000.0]


def test_the_last_beat_comes_at_the_end() -> None:
    beats: list[str] = []
    with Pulse(lambda: beats.append(threading.current_thread().name), seconds=3600):
        assert beats == []
    assert beats == ["MainThread"]


def test_a_pulse_beats_while_the_work_goes_on() -> None:
    beaten = threading.Event()
    with Pulse(beaten.set, seconds=0.001):
        assert beaten.wait(10)


def test_a_session_is_counted_once_the_world_was_told() -> None:
    seen: list[tuple[Metric, tuple[str, ...]]] = []
    told: list[SessionTranscribed] = []
    publish = counted(told.append, lambda metric, *labels, value=1.0: seen.append((metric, labels)))
    publish(SESSION)
    publish(SessionTranscribed("b", "k", "u", "s", 2, failed=1, duration=10.0, audio_seconds={}))
    assert len(told) == 2
    assert seen == [(SESSIONS_WRITTEN, ("whole",)), (SESSIONS_WRITTEN, ("gaps",))]

    def refuses(event: SessionTranscribed) -> None:
        raise TransientError("no")

    with pytest.raises(TransientError):
        counted(refuses, lambda metric, *labels, value=1.0: seen.append((metric, labels)))(SESSION)
    assert len(seen) == 2


def test_the_table_has_the_words_that_the_programs_use() -> None:
    assert set(DECISIONS.dimensions["Decision"]) == {*Decision, "refused", "error"}
    assert set(JOBS_QUEUED.dimensions["Reason"]) == {*Reason} - {Reason.SAFETY_NET, Reason.BACKFILL}
    assert set(MESSAGES_HANDLED.dimensions["Result"]) == {*Result, "parked"}


def test_metrics_stay_few_and_of_one_style() -> None:
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    assert sum(metric.series for metric in METRICS) <= 60
    for metric in METRICS:
        assert metric.name.isalnum()
        assert metric.name[0].isupper()
        assert isinstance(metric.unit, MetricUnit)
    assert NAMESPACE == "TranscriptionRouter"
