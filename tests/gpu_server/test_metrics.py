"""What CloudWatch is told of a server: how it goes on, minute by minute, and on what machine."""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from gpu_server import __main__ as program
from gpu_server.machine import Machine, this_machine
from gpu_server.metrics import ServerMetrics, Snapshots
from gpu_server.readiness import Phase
from gpu_server.settings import ServerSettings
from shared.telemetry import Metric, Telemetry, unobserved
from tests.imds import FakeImds

SPOT = Machine("g5.xlarge", "spot")


class Observed:
    """What one snapshot told."""

    def __init__(self) -> None:
        self.metrics = ServerMetrics()
        self.ready = True
        self.time = 0.0
        self.told: dict[tuple[str, ...], float] = {}
        self.snapshot = Snapshots(
            self.metrics, self._observe, machine=SPOT, is_ready=lambda: self.ready, clock=lambda: self.time
        )

    def _observe(self, metric: Metric, *labels: str, value: float = 1.0) -> None:
        assert (metric.name, *labels) not in self.told
        self.told[metric.name, *labels] = value

    def after(self, seconds: float) -> dict[tuple[str, ...], float]:
        self.time += seconds
        self.told = {}
        self.snapshot()
        return self.told


@pytest.fixture
def observed() -> Observed:
    return Observed()


def test_an_idle_server_is_heard_of_every_minute(observed: Observed) -> None:
    idle = {("InstanceMinutes", "g5.xlarge", "spot"): 1.0, ("ServersReady",): 1.0}
    assert observed.after(60) == observed.after(60) == idle


def test_a_server_that_loads_or_drains_is_paid_for_and_not_ready(observed: Observed) -> None:
    observed.ready = False
    assert observed.after(30) == {("InstanceMinutes", "g5.xlarge", "spot"): 0.5}


def test_counters_are_told_as_what_came_since_the_last_time(observed: Observed) -> None:
    observed.metrics.audio_seconds.inc(5)
    observed.metrics.recognized(0.5, windows=1, chunks=1)
    for result in ("written", "already_done", "superseded", "media-unreadable", "media-empty", "error"):
        observed.metrics.jobs.labels("s3", result).inc()
    observed.metrics.jobs.labels("upload", "written").inc()
    first = observed.after(60)
    assert first["AudioSeconds",] == 5
    assert first["RecognizerBusySeconds",] == 0.5
    assert {name[1]: value for name, value in first.items() if name[0] == "ServerJobs"} == {
        "written": 2,
        "skipped": 2,
        "failed": 2,
        "error": 1,
    }
    observed.metrics.audio_seconds.inc(2)
    second = observed.after(60)
    assert second["AudioSeconds",] == 2
    assert {name[0] for name in second} == {"InstanceMinutes", "ServersReady", "AudioSeconds"}


def test_a_server_prints_what_cloudwatch_reads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program, "this_machine", lambda: SPOT)
    printed: list[dict[str, Any]] = []
    service = program._service(ServerSettings(), tmp_path, unobserved)
    beat = program._beat(service, Telemetry("mine", lambda line: printed.append(json.loads(line))))
    service.readiness.phase = Phase.READY
    beat()
    asyncio.run(service.drain(0))
    beat()
    first, second = [line for line in printed if "InstanceMinutes" not in line], printed[-1]
    assert [line["ServersReady"] for line in first] == [[1.0]]
    assert (second["Deployment"], second["InstanceType"], second["Market"]) == ("mine", "g5.xlarge", "spot")


def test_metrics_are_off_unless_asked_for() -> None:
    assert ServerSettings().metrics == "off"


# The machine ---------------------------------------------------------------------------------------------------------


def test_an_instance_knows_its_type_and_market() -> None:
    with FakeImds(**{"instance-type": "g6.xlarge", "instance-life-cycle": "spot"}) as imds:
        assert this_machine(imds.url) == Machine("g6.xlarge", "spot")


def test_elsewhere_the_machine_is_unknown() -> None:
    with FakeImds() as other:
        assert this_machine(other.url) == Machine("unknown", "unknown")
    assert this_machine("http://127.0.0.1:9") == Machine("unknown", "unknown")
