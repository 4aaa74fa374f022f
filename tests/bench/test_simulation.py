"""The simulated system: what it promises in every run, and that a broken promise is noticed."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import typer
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from batch_worker.capacity import HOUR, Decision, Mode, Reason
from batch_worker.stay import NEXT_BATCH_SECONDS
from batch_worker.surplus import Surplus
from bench.simulation import plots, tables
from bench.simulation.__main__ import main
from bench.simulation.day import Lump, uploads
from bench.simulation.experiments import EXPERIMENTS
from bench.simulation.instance import Instance, Why
from bench.simulation.ledger import Histogram, Ledger, Outcome, Violation, Work
from bench.simulation.model import Result, simulate
from bench.simulation.scenario import DAY, MINUTE, Cloud, Scenario, Speeds
from bench.simulation.sqs import JobsQueue, Message

GPU = Speeds(stitched=40, lone=50, single=15)


def scenario(**changes: object) -> Scenario:
    return Scenario(**{"chunks": 300, "speeds": GPU, "largest": 5, **changes})  # type: ignore[arg-type]


@st.composite
def small_days(draw: st.DrawFn) -> Scenario:
    mode = draw(st.sampled_from(Mode))
    cloud = Cloud(
        boots_fail=draw(st.sampled_from([0.0, 0.3])),
        broken_until=draw(st.sampled_from([0.0, DAY + HOUR])),
        interruptions=draw(st.sampled_from([0.0, 0.5, 4.0])),
        unnoticed=draw(st.sampled_from([0.0, 0.5, 1.0])),
        droughts=draw(st.sampled_from([(), ((DAY - HOUR, DAY + HOUR),), ((0.0, HOUR), (10 * HOUR, 15 * HOUR))])),
        lost=draw(st.sampled_from([0.0, 0.1])),
        duplicated=draw(st.sampled_from([0.0, 0.3])),
    )
    # A lump is heard as one: it must not take longer than instances live.
    grain = draw(st.sampled_from([1, 7, 100]))
    return scenario(
        chunks=draw(st.integers(1, 2_000)),
        chunk_seconds=draw(st.sampled_from([5.0, 60.0])) if grain < 100 else 5.0,
        bad=draw(st.sampled_from([0.0, 0.05])),
        grain=grain,
        mode=mode,
        windows=draw(st.sampled_from([(0.0,), (0.0, 12 * HOUR)])),
        largest=draw(st.integers(1, 6)),
        least_jobs=draw(st.sampled_from([1, 500])),
        target=draw(st.sampled_from([15 * MINUTE, HOUR])),
        reachable=draw(st.booleans()),
        second_hearing=draw(st.booleans()),
        speeds=GPU.scaled(draw(st.sampled_from([2.0, 40.0]))),
        cloud=cloud,
        seed=draw(st.integers(0, 10**6)),
    )


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(small_days())
def test_nothing_is_lost_and_capacity_returns_to_its_floor_whatever_happens(day: Scenario) -> None:
    result = simulate(day)  # raises a Violation otherwise
    assert result.outcomes.total() == result.chunks >= day.chunks
    assert result.most <= day.largest
    assert result.audio == pytest.approx(result.chunks * day.chunk_seconds)
    assert 0 <= result.busy_share <= 1


def test_the_same_seed_gives_the_same_day() -> None:
    cloud = Cloud(interruptions=1, duplicated=0.1, lost=0.05, boots_fail=0.1)
    day = scenario(chunks=2_000, cloud=cloud, speeds=GPU.scaled(4))
    first, second, other = simulate(day), simulate(day), simulate(replace(day, seed=2))
    assert _told(first) == _told(second)
    assert _told(first) != _told(other)


def _told(result: Result) -> tuple[object, ...]:
    return result.outcomes, result.instance_seconds, result.busy, result.series, result.seconds(0.5)


@pytest.mark.parametrize("mode", Mode)
def test_lumps_of_chunks_give_the_figures_of_single_ones(mode: Mode) -> None:
    """So that millions may be simulated: a hundred chunks that share one event change no figure by much."""
    day = scenario(chunks=20_000, mode=mode, speeds=GPU.scaled(20), largest=20, concurrency=50)
    single, lumps = simulate(day), simulate(replace(day, grain=100))
    assert lumps.chunks == single.chunks
    assert lumps.instance_seconds == pytest.approx(single.instance_seconds, rel=0.1)
    assert lumps.seconds(0.5) == pytest.approx(single.seconds(0.5), rel=0.1)
    assert lumps.seconds(0.95) == pytest.approx(single.seconds(0.95), rel=0.1)
    assert lumps.busy_share == pytest.approx(single.busy_share, rel=0.1)
    direct = [result.outcomes[Outcome.DIRECT] / result.chunks for result in (single, lumps)]
    assert direct[1] == pytest.approx(direct[0], abs=0.03)


# A broken promise is noticed --------------------------------------------------------------------------------------


def test_a_message_that_is_not_given_back_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def forget(self: JobsQueue, message: Message) -> None:
        self.delete(message)

    monkeypatch.setattr(JobsQueue, "give_back", forget)
    with pytest.raises(Violation, match="chunks were uploaded"):
        simulate(_interrupted())


def test_an_instance_that_ends_with_messages_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Instance, "_hand_back", lambda self, end: None)
    with pytest.raises(Violation, match="ended with"):
        simulate(_interrupted())


def test_a_capacity_above_the_largest_is_noticed() -> None:
    with pytest.raises(Violation, match="6 instances are asked for, 5 are allowed"):
        simulate(scenario(), lambda *_: Decision(6, Reason.BACKLOG, ""))


def test_a_capacity_below_what_is_alive_is_noticed() -> None:
    capacities = iter([2, 1])
    with pytest.raises(Violation, match="1 instances are asked for while 2 are there"):
        simulate(scenario(), lambda *_: Decision(next(capacities), Reason.BACKLOG, ""))


def test_instances_that_stay_are_noticed() -> None:
    with pytest.raises(Violation, match="come again"):
        simulate(scenario(), lambda waiting, fleet, *_: Decision(max(1, fleet.alive), Reason.BACKLOG, ""))


def test_audio_that_nobody_looks_for_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bench.simulation.world.World.sweep", lambda self: False)
    with pytest.raises(Violation, match="chunks were uploaded"):
        simulate(scenario(cloud=Cloud(lost=0.1)))


def _interrupted() -> Scenario:
    """Slow enough that an interruption hits work that cannot be finished within the notice."""
    return scenario(chunks=5_000, chunk_seconds=60.0, speeds=GPU.scaled(10), cloud=Cloud(interruptions=3, unnoticed=0))


def test_a_server_that_takes_more_than_there_is_time_for_is_noticed() -> None:
    """Work is counted where it is done, so a model that did it twice or for nothing would be busy beyond its time."""
    crowded = simulate(scenario(mode=Mode.ALWAYS, chunks=20_000, largest=1, speeds=GPU.scaled(3)))
    assert 0.6 < crowded.busy_share <= 1


# The parts --------------------------------------------------------------------------------------------------------


def test_each_mode_starts_when_it_should() -> None:
    first = {mode: next(s for s in simulate(scenario(mode=mode)).series if s.alive) for mode in Mode}
    assert first[Mode.ALWAYS].at == 0
    assert HOUR / 4 < first[Mode.ON_DEMAND].at < 12 * HOUR
    assert first[Mode.SCHEDULED].at == pytest.approx(DAY, abs=MINUTE)


def test_a_healthy_server_hears_what_comes() -> None:
    result = simulate(scenario(mode=Mode.ALWAYS, chunks=2_000))
    assert result.outcomes[Outcome.DIRECT] / result.chunks > 0.95
    assert result.latency[Outcome.DIRECT].quantile(0.5) < 5
    assert simulate(scenario(mode=Mode.ALWAYS, reachable=False)).outcomes == Counter({Outcome.QUEUE: 300})


def test_instances_that_never_become_healthy_end_the_night_not_the_budget() -> None:
    result = simulate(scenario(chunks=20_000, cloud=Cloud(broken_until=DAY + 6 * HOUR)))
    assert result.reasons[Reason.GAVE_UP] > 0
    assert result.ends[Why.UNHEALTHY] >= 2
    assert result.emptied > DAY  # the next night
    first_night = [sample.alive for sample in result.series if DAY + HOUR < sample.at < 2 * DAY]
    assert max(first_night) == 0


def test_what_nobody_can_read_is_a_recorded_failure_on_either_route() -> None:
    for mode in (Mode.SCHEDULED, Mode.ALWAYS):
        result = simulate(scenario(mode=mode, bad=0.1))
        assert 10 < result.outcomes[Outcome.FAILED] < 60


def test_what_is_surplus_leaves_while_little_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    """With uploads round the clock no instance is ever idle: without the rule all of the night's stay for the day."""
    day = scenario(chunks=200_000, days=2, grain=100, concurrency=50)
    result = simulate(day)
    monkeypatch.setattr(Surplus, "is_due", lambda *_: False)
    idle_only = simulate(day)
    assert result.most == idle_only.most == 5
    assert result.ends[Why.SURPLUS] > 0
    assert result.instance_seconds < 0.8 * idle_only.instance_seconds


def test_what_is_lost_while_an_instance_stays_is_found_within_the_day() -> None:
    result = simulate(scenario(mode=Mode.ALWAYS, chunks=2_000, cloud=Cloud(lost=0.1)))
    assert result.outcomes[Outcome.QUEUE] > 100
    assert result.latency[Outcome.QUEUE].quantile(1) < 1.1 * NEXT_BATCH_SECONDS


def test_a_synthetic_day_has_exactly_its_chunks_and_is_busiest_in_working_hours() -> None:
    lumps = list(uploads(scenario(chunks=50_000, grain=10, days=2)))
    assert sum(lump.count for lump in lumps) == 100_000
    assert [lump.at for lump in lumps] == sorted(lump.at for lump in lumps)
    assert max(lump.count for lump in lumps) <= 10
    hours = Counter(int(lump.at % DAY // HOUR) for lump in lumps)
    assert 8 <= hours.most_common(1)[0][0] <= 16


CSV = """time,key,audio_seconds
2026-03-01T23:59:50Z,users/u/audio/sessions/a/chunk-1.webm,5
2026-03-01T23:59:55Z,users/u/audio/sessions/a/chunk-2.webm,4.5
2026-03-02T00:00:30Z,archive/long.mp3,3600
2026-03-02T00:10:00Z,users/u/audio/sessions/b/chunk-1.webm,5
"""


def test_uploads_can_be_replayed(tmp_path: Path) -> None:
    path = tmp_path / "uploads.csv"
    path.write_text(CSV)
    assert list(uploads(scenario(replay=path, grain=10))) == [
        Lump(at=DAY - 5, count=2, audio=9.5, span=5.0, sessions=1),
        Lump(at=DAY + 30, count=1, audio=3600, span=0.0, sessions=0),
        Lump(at=DAY + 600, count=1, audio=5, span=0.0, sessions=1),
    ]
    assert simulate(scenario(replay=path)).chunks == 4


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("time,key\n1,a\n", "line 2: wanted are time, key, audio_seconds"),
        ("time,key,audio_seconds\nyesterday,a.mp3,5\n", "line 2: wanted are"),
        (CSV + "2026-03-01T00:00:00Z,a.mp3,5\n", "line 6: out of order"),
        ("time,key,audio_seconds\n", "has no uploads"),
    ],
)
def test_a_csv_that_cannot_be_used_is_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "uploads.csv"
    path.write_text(text)
    with pytest.raises(ValueError, match=says):
        list(uploads(scenario(replay=path)))


def test_the_last_line_is_the_headline() -> None:
    app = typer.Typer()
    app.command()(main)
    said = CliRunner().invoke(app, ["--chunks", "500", "--speed", "40", "--interruptions", "1"])
    assert said.exit_code == 0
    last = said.stdout.splitlines()[-1]
    assert re.match(
        r"500 chunks \(1 h of audio\) a day: 0 lost, at most 1 instances and then 0, .* \$ an hour of audio", last
    )


def test_experiments_have_tables_and_plots(tmp_path: Path) -> None:
    runs = list(EXPERIMENTS["gate"](scenario()))
    costs = [result.dollars for _, result in runs]
    assert costs == sorted(costs, reverse=True)  # a start for more jobs is a start for less money
    plots.write(tmp_path, {"gate": runs})
    assert [path.name for path in tmp_path.iterdir()] == ["gate.png"]
    assert tables.markdown("LEAST_JOBS", runs).count("\n| ") == len(runs) + 2


def test_a_chunk_is_settled_once() -> None:
    ledger, work = Ledger(), Work(3, 15.0, uploaded=0.0)
    ledger.upload(work)
    ledger.settle(work, Outcome.DIRECT, 2.0)
    ledger.settle(work, Outcome.QUEUE, 90.0)
    assert (ledger.open, ledger.repeated, ledger.outcomes) == (0, 3, Counter({Outcome.DIRECT: 3}))


def test_a_histogram_tells_quantiles_within_its_bins() -> None:
    histogram = Histogram()
    for seconds in range(1, 1001):
        histogram.add(float(seconds), 1)
    assert histogram.quantile(0.5) == pytest.approx(500, rel=0.02)
    assert histogram.quantile(0.95) == pytest.approx(950, rel=0.02)
