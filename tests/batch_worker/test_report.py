"""The batch report: each run counts once, whoever writes when; and its figures are what happened."""

import json
import re
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_worker import recorder
from batch_worker.instance import Instance
from batch_worker.lease import Leases
from batch_worker.recorder import Recorder
from batch_worker.report import Day, Failures, Host, Run, merge, report_key, write
from batch_worker.work import Result
from shared.errors import InputRefused, StoreUnavailable
from shared.jobs import Job, Reason
from shared.keys import IgnoredKey, Session, parse_key
from shared.prices import Prices, prices
from shared.server import Answer, Said
from tests.batch_worker.test_worker import Night
from tests.fakes import MemoryStore, transcript_for

MIDNIGHT = datetime(2026, 1, 31, tzinfo=UTC)
TABLE = Prices("2025-06", {"g4dn.xlarge": {"spot": 0.2, "on-demand": 0.5}})


def at(minutes: float) -> datetime:
    return MIDNIGHT + timedelta(minutes=minutes)


def host(id: str = "i-1", type: str = "g4dn.xlarge", market: str = "spot", up_since: float = 0) -> Host:
    return Host(id=id, type=type, market=market, up_since=at(up_since))


def run(id: str = "a", started: float = 5, ended: float = 60, **changes: Any) -> Run:
    """Ten minutes of audio in five of work."""
    values: dict[str, Any] = {
        "finished": True,
        "results": {"transcribed": 120},
        "chunks": 120,
        "sessions": 2,
        "audio_seconds": 600.0,
        "working_seconds": 300.0,
        "busy_seconds": 290.0,
    }
    return Run(id=id, started=at(started), ended=at(ended), **(values | changes))


runs = st.builds(
    run,
    id=st.sampled_from("abcd"),
    ended=st.floats(60, 120),
    chunks=st.integers(0, 50),
    instance=st.none() | st.builds(host, id=st.sampled_from(["i-1", "i-2"]), up_since=st.floats(0, 4)),
)


@given(st.lists(runs, min_size=1), st.randoms())
def test_a_run_counts_once_however_often_it_is_written_and_in_whatever_order(written: list[Run], shuffled: Any) -> None:
    latest = {one.id: one for one in written}
    day: Day | None = None
    for one in written:
        day = merge(day, one, TABLE)
    other_way: Day | None = None
    order = list(latest.values())
    shuffled.shuffle(order)
    for one in [*order, *order]:
        other_way = merge(other_way, one, TABLE)
    assert day == other_way
    assert day is not None
    assert day.totals.chunks == sum(one.chunks for one in latest.values())


def test_an_instance_is_paid_for_once_from_its_start_to_the_end_of_its_last_run() -> None:
    day = merge(None, run("a", ended=30, instance=host(up_since=0)), TABLE)
    day = merge(day, run("b", started=31, ended=60, instance=host(up_since=0)), TABLE)
    day = merge(day, run("c", ended=90, instance=host("i-2", market="on-demand", up_since=60)), TABLE)
    assert day.totals.instance_hours == {"g4dn.xlarge": {"spot": 1.0, "on-demand": 0.5}}
    assert day.totals.dollars == pytest.approx(0.2 + 0.25)
    assert day.totals.audio_hours == 0.5
    assert day.totals.dollars_per_audio_hour == pytest.approx(0.9)


def test_what_has_no_price_makes_no_dollars_rather_than_wrong_ones() -> None:
    day = merge(None, run(instance=host(type="p9.huge")), TABLE)
    assert (day.totals.dollars, day.totals.dollars_per_audio_hour) == (None, None)
    assert any("prices.json" in advice for advice in day.tune)


def test_off_an_instance_nothing_is_paid() -> None:
    day = merge(None, run(), TABLE)
    assert (day.totals.instance_hours, day.totals.dollars) == ({}, 0)
    assert day.tune == ()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"instance": host(), "boot_seconds": 1500.0, "working_seconds": 1800.0}, ["LEAST_JOBS"]),
        ({"instance": host(), "boot_seconds": 300.0, "working_seconds": 600.0}, ["IDLE_TIMEOUT_MINUTES"]),
        ({"instance": host(), "boot_seconds": 300.0, "working_seconds": 3000.0}, []),
        ({"busy_seconds": 100.0}, ["WORKER_CONCURRENCY"]),
        ({"results": {"transcribed": 80, "later": 40}}, ["later"]),
        ({}, []),
    ],
)
def test_advice_follows_from_the_figures(changes: dict[str, Any], named: list[str]) -> None:
    values = {"busy_seconds": changes.get("working_seconds", 300.0)} | changes
    advice = [line for line in merge(None, run(**values), TABLE).tune if "INSTANCE_SPEED" not in line]
    assert len(advice) == len(named)
    assert all(name in line for name, line in zip(named, advice, strict=True))


def test_a_fleet_that_ends_at_once_leaves_a_report_of_all_of_it(store: MemoryStore) -> None:
    together = threading.Barrier(8)

    def write_one(number: int) -> None:
        together.wait()
        write(store, run(str(number)), TABLE)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(write_one, range(8)))
    assert read(store).totals.chunks == 8 * 120


def test_a_write_whose_answer_was_lost_counts_once(store: MemoryStore) -> None:
    lost = []

    def lose_the_first(name: str, key: str, when: str) -> None:
        if (name, when) == ("put", "after") and not lost:
            lost.append(key)
            raise StoreUnavailable("the answer was lost")

    store.hook = lose_the_first
    with pytest.raises(StoreUnavailable):
        write(store, run(), TABLE)
    write(store, run(), TABLE)
    assert read(store).totals.chunks == 120


def test_a_document_that_nobody_here_can_read_is_left_as_it_is(store: MemoryStore) -> None:
    key = report_key(at(5))
    store.upload(key, b'{"version": 2}')
    Recorder(store, None, Counter(), busy_seconds=lambda: None, now=lambda: at(5)).save()
    assert store.objects[key][0] == b'{"version": 2}'


def test_a_report_is_nothing_to_the_pipeline() -> None:
    """Neither the sweep nor the router, nor the rule that calls it, takes one for audio or a manifest."""
    key = report_key(at(0))
    assert key == "reports/batch/2026-01-31.json"
    assert isinstance(parse_key(key), IgnoredKey)
    pattern = (Path(__file__).parents[2] / "infra/scripts/patterns/uploads.json").read_text()
    suffixes = re.findall(r'"suffix": \{"equals-ignore-case": "([^"]+)"', pattern)
    assert suffixes
    assert not key.endswith(tuple(suffixes))
    assert re.findall(r'"wildcard": "([^"]+)"', pattern) == ["users/*/audio/sessions/*/metadata.json"]


# What one run notes down --------------------------------------------------------------------------------------------


class Clock:
    """A run that the test tells the time."""

    def __init__(self) -> None:
        self.minutes = 10.0

    def __call__(self) -> datetime:
        return at(self.minutes)


def chunk(store: MemoryStore, number: int, session: str = "s") -> Job:
    key = f"users/u/audio/sessions/{session}/chunk-{number}.webm"
    return Job(bucket=store.bucket, key=key, etag=store.upload(key, f"{session}{number}".encode()))


def test_a_run_is_told_as_it_was(store: MemoryStore) -> None:
    clock, results = Clock(), Counter({Result.TRANSCRIBED: 3, Result.FAILED: 1, Result.SKIPPED: 1})
    jobs = [chunk(store, number) for number in (1, 2, 3, 4)]
    heard = {job.job_id: transcript_for(job, duration=4.0) for job in jobs[:3]}
    with Recorder(store, None, results, busy_seconds=lambda: clock.minutes * 6, now=clock) as noted:
        clock.minutes += 2
        noted.ended(jobs[:2], heard, 60.0)
        noted.completed(Session("u", "other"))  # nothing of it was done here
        clock.minutes += 3
        noted.ended([jobs[2]], heard, 7.5)
        noted.ended([jobs[3]], {jobs[3].job_id: InputRefused("no sound", type="media-no-audio")}, 1.0)
        noted.ended([jobs[0]], {}, 500.0)
        noted.completed(Session("u", "s"))
        clock.minutes += 10
    [told] = read(store).runs
    assert (told.started, told.ended, told.finished) == (at(10), at(25), True)
    assert (told.chunks, told.sessions, told.audio_seconds) == (3, 1, 12.0)
    assert told.results == {"transcribed": 3, "failed": 1, "skipped": 1}
    assert told.working_seconds == 4 * 60
    assert told.busy_seconds == pytest.approx(15 * 6)
    assert [(job.key, job.chunks, job.seconds) for job in told.slowest] == [
        (jobs[0].key, 2, 60.0),
        (jobs[2].key, 1, 7.5),
        (jobs[3].key, 1, 1.0),
    ]
    assert told.failures == (Failures(type="media-no-audio", message="no sound", count=1, keys=(jobs[3].key,)),)


def test_a_batch_run_tells_its_recorder_everything(store: MemoryStore) -> None:
    """Groups and single files, failures, and what somebody else has done; through the real worker."""
    night = Night(store, restitch=False)
    night.server.answers = [Answer(Said.REFUSED, 415, "media-not-recognised", "noise"), Answer(Said.DONE, 200)]
    store.upload("calls/noise.mp3")
    jobs = [night.upload(f"chunk-{number}.webm") for number in (1, 2, 3)]
    done = night.upload("chunk-4.webm")
    store.upload(done.output_key, transcript_for(done).to_json())
    night.upload("metadata.json", b'{"chunkCount": 4}')
    for job in [*jobs, done]:
        night.queue.send(job, Reason.UNHEALTHY)
    with Leases(visibility=120, interval=30) as leases:
        drain = night.drain(leases)
        with Recorder(store, None, drain.tally.results, busy_seconds=lambda: None) as noted:
            drain.worker.witness = noted
            assert night.batch(drain).run().all_done
    [told] = read(store).runs
    assert (told.chunks, told.sessions, told.audio_seconds) == (3, 1, 15.0)
    assert told.results == {"transcribed": 3, "skipped": 1, "failed": 1}
    [failures] = told.failures
    assert (failures.type, failures.keys) == ("media-not-recognised", ("calls/noise.mp3",))
    assert {(job.key, job.chunks) for job in told.slowest} == {(jobs[0].key, 3), ("calls/noise.mp3", 1)}


def test_a_run_that_is_killed_has_told_what_it_had_done_by_then(store: MemoryStore) -> None:
    noted = Recorder(store, None, Counter(), busy_seconds=lambda: None, now=Clock())
    noted.save()
    [told] = read(store).runs
    assert not told.finished


def test_of_many_failures_of_a_kind_only_some_keys_are_kept(store: MemoryStore) -> None:
    jobs = [chunk(store, number) for number in range(1, 31)]
    with Recorder(store, None, Counter(), busy_seconds=lambda: None, now=Clock()) as noted:
        for job in jobs:
            noted.ended([job], {job.job_id: InputRefused("no sound", type="media-no-audio")}, 1.0)
    [failures] = noted.run().failures
    assert (failures.count, len(failures.keys)) == (30, recorder.KEYS)
    assert len(noted.run().slowest) == recorder.SLOWEST


def test_a_server_that_starts_again_counts_its_seconds_from_nought(store: MemoryStore) -> None:
    told = iter([100.0, 130.0, None, 20.0])
    noted = Recorder(store, None, Counter(), busy_seconds=lambda: next(told), now=Clock())
    assert [noted.run().busy_seconds for _ in range(3)] == [30.0, 30.0, 50.0]


def test_an_instance_has_run_since_its_boot(
    store: MemoryStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uptime = tmp_path / "uptime"
    uptime.write_text("240.13 900.00\n")
    monkeypatch.setattr(recorder, "UPTIME", uptime)
    clock = Clock()
    noted = Recorder(store, Instance("i-1", "g5.xlarge", "spot"), Counter(), busy_seconds=lambda: None, now=clock)
    job = chunk(store, 1)
    clock.minutes += 5
    noted.ended([job], {job.job_id: transcript_for(job)}, 60.0)
    told = noted.run()
    assert told.instance is not None
    assert (at(10) - told.instance.up_since).total_seconds() == pytest.approx(240.13)
    assert told.boot_seconds == pytest.approx(240.13 + 4 * 60)


def test_a_store_that_stays_away_costs_the_report_and_nothing_else(store: MemoryStore) -> None:
    def away(*_: str) -> None:
        raise StoreUnavailable("S3 is down")

    job = chunk(store, 1)
    store.hook = away
    with Recorder(store, None, Counter(), busy_seconds=lambda: None, now=Clock()) as noted:
        noted.ended([job], {job.job_id: transcript_for(job)}, 60.0)
    noted.ended([job], {job.job_id: transcript_for(job)}, 60.0)  # a thread that nobody waited for


def test_the_example_in_the_manual_is_what_is_written() -> None:
    page = (Path(__file__).parents[2] / "docs/operations.md").read_text()
    [text] = re.findall(r"```json report\n(.*?)```", page, re.DOTALL)
    example = Day.model_validate_json(text)
    again: Day | None = None
    for one in example.runs:
        again = merge(again, one, prices())
    assert again is not None
    assert json.loads(again.to_json()) == json.loads(text)


def read(store: MemoryStore) -> Day:
    [key] = [key for key in store.objects if key.startswith("reports/")]
    return Day.model_validate_json(store.objects[key][0])
