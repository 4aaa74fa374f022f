"""What CloudWatch is told of a batch run."""

from datetime import timedelta
from typing import Any

import pytest

from batch_worker.arrivals import Arrivals
from batch_worker.drain import Drain, Tally
from batch_worker.lease import Leases
from shared.errors import StoreUnavailable
from shared.jobs import Job, JobMessage, Reason
from shared.queues import Message
from shared.telemetry import Metric
from tests.batch_worker.test_worker import PREFIX, Night
from tests.fakes import EPOCH, MemoryStore


class Observed:
    def __init__(self) -> None:
        self.values: dict[tuple[str, ...], list[float]] = {}

    def observe(self, metric: Metric, *labels: str, value: float = 1.0) -> None:
        self.values.setdefault((metric.name, *labels), []).append(value)

    def sums(self, name: str) -> dict[str, float]:
        return {labels[0]: sum(values) for (one, *labels), values in self.values.items() if one == name}


class WatchedNight(Night):
    """A batch run whose metrics are looked at."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.observed = Observed()

    def drain(self, leases: Leases) -> Drain:
        drain = super().drain(leases)
        drain.tally = Tally(self.observed.observe)
        drain.arrivals = Arrivals(self.store, self.observed.observe, now=lambda: EPOCH + timedelta(hours=1))
        return drain


@pytest.fixture
def night(store: MemoryStore) -> WatchedNight:
    return WatchedNight(store)


def test_a_run_tells_how_its_messages_ended_and_what_is_left(night: WatchedNight) -> None:
    for number in (1, 2, 3):
        night.queue.send(night.upload(f"chunk-{number}.webm"), Reason.UNHEALTHY)
    night.upload("metadata.json", b'{"chunkCount": 3}')
    night.queue.send_raw("no json")
    night.store.upload("calls/a.mp3")
    night.store.upload("users/u/audio/sessions/abandoned/chunk-1.webm")
    assert night.run().all_done
    handled = night.observed.sums("MessagesHandled")
    assert (handled["transcribed"], handled["parked"]) == (5, 1)
    assert night.observed.sums("JobsQueued") == {"swept": 2}
    assert night.observed.values["JobsLeft",] == [0]
    assert night.observed.values["OpenSessions",] == [1]
    assert night.observed.values["StuckSessions",] == [1]  # nobody has uploaded to it for a day


def test_a_session_that_is_being_recorded_is_open_and_not_stuck(
    night: WatchedNight, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batch_worker.batch.STUCK_AFTER", timedelta(days=36500))
    night.upload("chunk-1.webm")
    night.run()
    assert (night.observed.values["OpenSessions",], night.observed.values["StuckSessions",]) == ([1], [0])


def test_how_long_a_transcript_took_is_told_by_the_way_it_came(night: WatchedNight) -> None:
    night.queue.send(night.upload("chunk-1.webm"), Reason.UNHEALTHY)
    night.queue.send(night.upload("chunk-2.webm"), Reason.FORCED)
    night.store.upload("calls/lost.mp3")  # the sweep finds it
    night.run()
    routes = {labels[0]: values for (name, *labels), values in night.observed.values.items() if "Upload" in name}
    assert {route: len(values) for route, values in routes.items()} == {"queue": 1, "batch": 2}
    assert all(3500 < seconds <= 3600 for values in routes.values() for seconds in values)


def message(job: Job) -> Message:
    return Message("id", "receipt", JobMessage.of(job, Reason.FAILED).to_json(), 1)


def test_a_group_costs_one_listing_and_another_version_is_nobodys_time(store: MemoryStore) -> None:
    jobs = []
    for number in (1, 2):
        key = f"{PREFIX}chunk-{number}.webm"
        jobs.append(Job(bucket=store.bucket, key=key, etag=store.upload(key)))
    store.upload(f"{PREFIX}chunk-2.webm", b"recorded again")
    store.trace.clear()
    observed = Observed()
    Arrivals(store, observed.observe).observe_all([message(job) for job in jobs])
    assert [name for name, _ in store.trace] == ["list"]
    assert [len(values) for values in observed.values.values()] == [1]


def test_no_trouble_with_the_metrics_is_trouble_with_the_job(store: MemoryStore) -> None:
    def away(*_: Any) -> None:
        raise StoreUnavailable("S3 is away")

    observed = Observed()
    arrivals = Arrivals(store, observed.observe)
    job = Job(bucket=store.bucket, key=f"{PREFIX}chunk-1.webm", etag="e")
    arrivals.observe_all([message(job)])  # the audio is gone
    arrivals.observe_all([Message("id", "receipt", "no json", 1)])
    store.hook = away
    arrivals.observe_all([message(job)])
    assert observed.values == {}
