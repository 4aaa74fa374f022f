"""What Prometheus reads, and what CloudWatch is told of it."""

import time
from collections.abc import Callable

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from gpu_server.machine import Machine
from shared.chunk_writer import Written
from shared.telemetry import (
    AUDIO_SECONDS,
    INSTANCE_MINUTES,
    RECOGNIZER_BUSY_SECONDS,
    SERVER_JOBS,
    SERVERS_READY,
    Metric,
    Observe,
)

Series = tuple[Metric, tuple[str, ...]]

SECONDS = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 1800)


class ServerMetrics:
    """One set per server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.jobs = Counter("transcription_jobs", "Jobs ended, by result", ["source", "result"], registry=self.registry)
        self.started = Counter("transcriptions_started", "Audio given to the recognizer", registry=self.registry)
        self.audio_seconds = Counter("transcription_audio_seconds", "Decoded audio", registry=self.registry)
        self.recognizer_seconds = Counter(
            "recognizer_busy_seconds", "Time the recognizer worked; its rate is its busy share", registry=self.registry
        )
        self.windows = Counter("recognizer_windows", "Windows recognised", registry=self.registry)
        self.batches = Counter("recognizer_batches", "Batches of windows recognised", registry=self.registry)
        self.shared = Counter(
            "recognizer_shared_chunks", "Chunks that went into a window of another's", registry=self.registry
        )
        self.waiting = Gauge("recognizer_waiting", "Windows that wait for the recognizer", registry=self.registry)
        self.stage_seconds = Counter(
            "stage_seconds", "Time spent in the other stages, which overlap", ["stage"], registry=self.registry
        )
        self.job_seconds = Histogram(
            "transcription_job_seconds", "From taking a job to its end", buckets=SECONDS, registry=self.registry
        )
        self.in_flight = Gauge("transcription_jobs_in_flight", "Jobs taken and not ended", registry=self.registry)

    def recognized(self, seconds: float, windows: int, chunks: int) -> None:
        """One batch: how long the recognizer took for `windows`, in which `chunks` had a part."""
        self.recognizer_seconds.inc(seconds)
        self.batches.inc()
        self.windows.inc(windows)
        self.shared.inc(chunks - windows)


class Snapshots:
    """Each call tells what the counters did since the last one, and that this server is there."""

    def __init__(
        self,
        metrics: ServerMetrics,
        observe: Observe,
        *,
        machine: Machine,
        is_ready: Callable[[], bool],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._metrics = metrics
        self._observe = observe
        self._machine = machine
        self._is_ready = is_ready
        self._clock = clock
        self._seen: dict[Series, float] = {}
        self._since = clock()

    def __call__(self) -> None:
        since, self._since = self._since, self._clock()
        minutes = (self._since - since) / 60
        self._observe(INSTANCE_MINUTES, self._machine.type, self._machine.market, value=minutes)
        if self._is_ready():
            self._observe(SERVERS_READY)
        totals = self._read()
        for series, total in totals.items():
            if more := total - self._seen.get(series, 0.0):
                metric, labels = series
                self._observe(metric, *labels, value=more)
        self._seen = totals

    def _read(self) -> dict[Series, float]:
        read = self._metrics.registry.get_sample_value
        totals: dict[Series, float] = {
            (AUDIO_SECONDS, ()): read("transcription_audio_seconds_total") or 0.0,
            (RECOGNIZER_BUSY_SECONDS, ()): read("recognizer_busy_seconds_total") or 0.0,
        }
        for sample in next(iter(self._metrics.jobs.collect())).samples:
            if sample.name.endswith("_total"):
                series = SERVER_JOBS, (_ending(sample.labels["result"]),)
                totals[series] = totals.get(series, 0.0) + sample.value
        return totals


def _ending(result: str) -> str:
    """The label of a job's end, of which Prometheus knows more: each kind of bad input has its own there."""
    if result in (Written.WRITTEN, "error"):
        return result
    return "skipped" if result in set(Written) else "failed"
