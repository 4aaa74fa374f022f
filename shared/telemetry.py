"""What CloudWatch gets to know: every metric of every program in one table, and how they are told.

A program prints lines in the embedded metric format, and CloudWatch makes metrics of those in its log group:
https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
Each value of a dimension is one more metric that is paid for; and none ever has a key, a person or a word of speech.
"""

import json
import threading
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Protocol

from aws_lambda_powertools.metrics import EphemeralMetrics, MetricUnit

from shared.combine import SessionTranscribed

NAMESPACE = "TranscriptionRouter"
DEPLOYMENT = "Deployment"  # on every metric: QUEUE_PREFIX, so that two deployments in one account stay apart
DEFAULT_DEPLOYMENT = "smart-transcription"
PULSE_SECONDS = 60.0  # CloudWatch's own resolution
VALUES_IN_LINE = 99  # of one metric; Powertools prints at 100 by itself


@dataclass(frozen=True, eq=False)
class Metric:
    """One row of the table.

    `dimensions`: beside Deployment, with the values they take. `spread`: single values count (percentiles), not only
    what they add up to.
    """

    name: str
    unit: MetricUnit
    dimensions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    spread: bool = False

    @property
    def series(self) -> int:
        """How many metrics CloudWatch counts, at most."""
        return prod(len(values) for values in self.dimensions.values())


# The router
DECISIONS = Metric(
    "Decisions",
    MetricUnit.Count,
    {
        "Decision": (
            *("ignored", "skipped", "direct", "accepted", "queued", "failed", "checked"),
            *("refused", "error"),  # not handled: an event nobody can read, and whatever else
        )
    },
)
# Without safety nets, which are the decision "accepted", and backfills, which a person's own machine queues.
JOBS_QUEUED = Metric("JobsQueued", MetricUnit.Count, {"Reason": ("unhealthy", "failed", "forced", "deferred", "swept")})
RETRIES = Metric("Retries", MetricUnit.Count)
UNAUTHORIZED = Metric("Unauthorized", MetricUnit.Count)
# The router and the worker
UPLOAD_TO_TRANSCRIPT = Metric(
    "UploadToTranscript", MetricUnit.Seconds, {"Route": ("direct", "queue", "batch")}, spread=True
)
# Whoever completes a session
SESSIONS_WRITTEN = Metric("SessionsWritten", MetricUnit.Count, {"Outcome": ("whole", "gaps")})
# The server
SERVERS_READY = Metric("ServersReady", MetricUnit.Count)
INSTANCE_MINUTES = Metric(
    "InstanceMinutes",
    MetricUnit.Count,
    {"InstanceType": ("g4dn.xlarge", "g5.xlarge", "g6.xlarge"), "Market": ("on-demand", "spot")},
)
SERVER_JOBS = Metric("ServerJobs", MetricUnit.Count, {"Result": ("written", "skipped", "failed", "error")})
AUDIO_SECONDS = Metric("AudioSeconds", MetricUnit.Seconds)
RECOGNIZER_BUSY_SECONDS = Metric("RecognizerBusySeconds", MetricUnit.Seconds)
# The worker
MESSAGES_HANDLED = Metric(
    "MessagesHandled",
    MetricUnit.Count,
    {"Result": ("transcribed", "skipped", "failed", "checked", "ignored", "later", "parked")},
)
JOBS_LEFT = Metric("JobsLeft", MetricUnit.Count)
OPEN_SESSIONS = Metric("OpenSessions", MetricUnit.Count)
STUCK_SESSIONS = Metric("StuckSessions", MetricUnit.Count)
INSTANCE_NOTICES = Metric("InstanceNotices", MetricUnit.Count, {"Notice": ("interruption", "rebalance", "scale-in")})
# The launcher
CAPACITY_DECISIONS = Metric(
    "CapacityDecisions",
    MetricUnit.Count,
    {"Reason": ("empty", "waits", "too-little", "backlog", "overdue", "budget", "gave-up")},
)
DESIRED_CAPACITY = Metric("DesiredCapacity", MetricUnit.Count)
INSTANCES_REAPED = Metric("InstancesReaped", MetricUnit.Count)

METRICS = (
    *(DECISIONS, JOBS_QUEUED, RETRIES, UNAUTHORIZED, UPLOAD_TO_TRANSCRIPT, SESSIONS_WRITTEN),
    *(SERVERS_READY, INSTANCE_MINUTES, SERVER_JOBS, AUDIO_SECONDS, RECOGNIZER_BUSY_SECONDS),
    *(MESSAGES_HANDLED, JOBS_LEFT, OPEN_SESSIONS, STUCK_SESSIONS, INSTANCE_NOTICES),
    *(CAPACITY_DECISIONS, DESIRED_CAPACITY, INSTANCES_REAPED),
)


class Observe(Protocol):
    """Takes note of one thing. `labels`: a value for each of the metric's dimensions, in their order."""

    def __call__(self, metric: Metric, *labels: str, value: float = 1.0) -> None: ...


def unobserved(metric: Metric, *labels: str, value: float = 1.0) -> None:
    """Where nobody reads metrics."""


class Telemetry:
    """Adds up what is observed, and prints it when told to. Safe to share between threads."""

    def __init__(self, deployment: str, write: Callable[[str], None] = lambda line: print(line, flush=True)) -> None:  # noqa: T201
        self._deployment = deployment
        self._write = write
        self._held: dict[tuple[Metric, tuple[str, ...]], list[float]] = {}
        self._lock = threading.Lock()

    def observe(self, metric: Metric, *labels: str, value: float = 1.0) -> None:
        assert len(labels) == len(metric.dimensions), metric.name
        with self._lock:
            values = self._held.setdefault((metric, labels), [])
            if metric.spread or not values:
                values.append(value)
            else:
                values[0] += value

    def flush(self) -> None:
        """One line for all that has the same dimensions; nothing when nothing was observed."""
        with self._lock:
            held, self._held = self._held, {}
        lines: defaultdict[tuple[tuple[str, str], ...], dict[Metric, list[float]]] = defaultdict(dict)
        for (metric, labels), values in held.items():
            lines[tuple(zip(metric.dimensions, labels, strict=True))][metric] = values
        for dimensions, metrics in lines.items():
            while metrics:
                self._write(self._line(dict(dimensions), metrics))
                metrics = {one: rest for one, values in metrics.items() if (rest := values[VALUES_IN_LINE:])}

    def _line(self, dimensions: dict[str, str], metrics: dict[Metric, list[float]]) -> str:
        # An empty service: else Powertools makes a dimension of the one in the environment.
        line = EphemeralMetrics(namespace=NAMESPACE, service="")
        for name, label in {DEPLOYMENT: self._deployment, **dimensions}.items():
            line.add_dimension(name, label)
        for metric, values in metrics.items():
            for value in values[:VALUES_IN_LINE]:
                line.add_metric(metric.name, metric.unit, round(value, 3))
        return json.dumps(line.serialize_metric_set(), separators=(",", ":"))


class Pulse:
    """Calls `beat` every `seconds` in a thread of its own, and once more at the end. Use as a context manager."""

    def __init__(self, beat: Callable[[], None], *, seconds: float = PULSE_SECONDS) -> None:
        self._beat = beat
        self._seconds = seconds
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="pulse", daemon=True)

    def __enter__(self) -> "Pulse":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self._beat()

    def _run(self) -> None:
        while not self._stop.wait(self._seconds):
            self._beat()


def counted(publish: Callable[[SessionTranscribed], None], observe: Observe) -> Callable[[SessionTranscribed], None]:
    """`publish`, with the sessions counted that it was called for."""

    def count(event: SessionTranscribed) -> None:
        publish(event)
        observe(SESSIONS_WRITTEN, "gaps" if event.failed else "whole")

    return count
