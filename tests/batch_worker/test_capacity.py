"""How many instances the backlog is worth: the specification as a table, and what holds for every backlog."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from batch_worker.capacity import (
    HOUR,
    Decision,
    Fleet,
    Mode,
    Occasion,
    Policy,
    Reason,
    Waiting,
    cost,
    decide,
    hours_allowed,
    instances_for,
)
from shared.telemetry import CAPACITY_DECISIONS

# One instance does 3 hours of audio an hour, 2.5 of them in the first one, for it boots for 10 minutes. It costs 12
# cents a minute, so a start is 2.40: 10 minutes of boot, 10 of idling at the end.
POLICY = Policy(
    mode=Mode.SCHEDULED,
    smallest=0,
    largest=10,
    speed=3.0,
    target=HOUR,
    boot=600,
    idle=600,
    least_jobs=5,
    latest_age=24 * HOUR,
    on_demand_age=900,
    price=7.20,
)
OLD, TOO_OLD = 901.0, 901.0 + HOUR
WINDOW, WATCH = Occasion.WINDOW, Occasion.WATCH


def decision(
    jobs: int,
    oldest: float = 0.0,
    *,
    desired: int = 0,
    alive: int = 0,
    failed: int = 0,
    occasion: Occasion = WINDOW,
    hours: float | None = None,
    **policy: Any,
) -> Decision:
    """`hours`: of audio; None when nobody may ask for it."""

    def audio_seconds() -> float:
        assert hours is not None, "a message was looked into for nothing"
        return hours * HOUR

    fleet = Fleet(desired, alive, failed)
    return decide(Waiting(jobs, oldest), fleet, replace(POLICY, **policy), occasion, audio_seconds)


@pytest.mark.parametrize(
    ("situation", "capacity", "reason"),
    [
        # Nothing waits
        ({"jobs": 0}, 0, Reason.EMPTY),
        ({"jobs": 0, "occasion": WATCH}, 0, Reason.EMPTY),
        ({"jobs": 0, "desired": 3, "alive": 2}, 2, Reason.EMPTY),  # the third is not needed any more
        ({"jobs": 0, "smallest": 1}, 1, Reason.EMPTY),
        ({"jobs": 0, "mode": Mode.ALWAYS}, 1, Reason.EMPTY),
        # A window opens
        ({"jobs": 100, "hours": 2.5}, 1, Reason.BACKLOG),
        ({"jobs": 100, "hours": 2.6}, 2, Reason.BACKLOG),
        ({"jobs": 100, "hours": 20.0}, 8, Reason.BACKLOG),
        ({"jobs": 100, "hours": 900.0}, 10, Reason.BACKLOG),  # as many as there may be
        ({"jobs": 7, "hours": 90.0}, 7, Reason.BACKLOG),  # the eighth would find no job
        ({"jobs": 100, "hours": 20.0, "target": 600.0}, 10, Reason.BACKLOG),  # shorter than a boot
        ({"jobs": 100, "hours": 5.0, "desired": 4, "alive": 4}, 4, Reason.BACKLOG),  # they end by themselves
        ({"jobs": 100, "hours": 5.0, "desired": 4, "alive": 1}, 4, Reason.BACKLOG),  # they were asked for already
        ({"jobs": 3, "hours": 0.1, "desired": 4, "alive": 1}, 3, Reason.BACKLOG),  # the fourth would find no job
        ({"jobs": 4}, 0, Reason.TOO_LITTLE),
        ({"jobs": 4, "oldest": 24 * HOUR, "hours": 0.1}, 1, Reason.BACKLOG),
        ({"jobs": 4, "desired": 1, "hours": 0.1}, 1, Reason.BACKLOG),  # it is there anyway
        # Between the windows
        ({"jobs": 100, "oldest": 23 * HOUR, "occasion": WATCH}, 0, Reason.WAITS),
        ({"jobs": 100, "oldest": 23 * HOUR, "occasion": WATCH, "desired": 3, "alive": 1}, 3, Reason.WAITS),
        ({"jobs": 2, "occasion": WATCH, "desired": 3, "alive": 1}, 2, Reason.WAITS),  # the third is not needed any more
        ({"jobs": 100, "oldest": 899, "occasion": WATCH, "mode": Mode.ON_DEMAND}, 0, Reason.WAITS),
        ({"jobs": 1, "oldest": OLD, "occasion": WATCH, "mode": Mode.ON_DEMAND, "hours": 0.1}, 1, Reason.BACKLOG),
        ({"jobs": 100, "oldest": OLD, "occasion": WATCH, "mode": Mode.ON_DEMAND, "hours": 5.0}, 2, Reason.BACKLOG),
        ({"jobs": 100, "oldest": OLD, "occasion": WATCH, "mode": Mode.ALWAYS, "alive": 1}, 1, Reason.WAITS),
    ],
)
def test_the_backlog_is_worth(situation: dict[str, Any], capacity: int, reason: Reason) -> None:
    found = decision(**situation)
    assert (found.capacity, found.reason) == (capacity, reason), found.why


RUNS = {"occasion": WATCH, "mode": Mode.ON_DEMAND, "oldest": TOO_OLD, "desired": 2, "alive": 2, "jobs": 100}


@pytest.mark.parametrize(
    ("but", "capacity", "reason"),
    [
        ({}, 3, Reason.OVERDUE),
        ({"oldest": OLD}, 2, Reason.WAITS),  # the two were started for it, and have until the target
        ({"alive": 1}, 2, Reason.WAITS),  # the second one is on its way
        ({"jobs": 2}, 2, Reason.WAITS),  # each has one
        ({"largest": 2}, 2, Reason.WAITS),
        ({"mode": Mode.SCHEDULED}, 2, Reason.WAITS),
    ],
)
def test_one_more_comes_when_a_job_is_late_although_all_are_there(
    but: dict[str, Any], capacity: int, reason: Reason
) -> None:
    found = decision(**RUNS | but)
    assert (found.capacity, found.reason) == (capacity, reason), found.why


@pytest.mark.parametrize(
    ("situation", "capacity", "reason"),
    [
        ({"failed": 1, "hours": 2.5}, 1, Reason.BACKLOG),
        ({"failed": 2}, 0, Reason.GAVE_UP),
        ({"failed": 2, "occasion": WATCH, "desired": 2, "alive": 1}, 1, Reason.GAVE_UP),
        ({"failed": 2, "occasion": WATCH, "mode": Mode.ALWAYS}, 1, Reason.GAVE_UP),  # the group insists on it
        ({"failed": 2, "jobs": 0, "alive": 1, "desired": 1}, 1, Reason.GAVE_UP),  # one that would be replaced for ever
        ({"failed": 2, "jobs": 0}, 0, Reason.EMPTY),
    ],
)
def test_it_gives_up_when_instances_never_become_healthy(
    situation: dict[str, Any], capacity: int, reason: Reason
) -> None:
    found = decision(**{"jobs": 100, **situation})
    assert (found.capacity, found.reason) == (capacity, reason), found.why


@pytest.mark.parametrize(
    ("budget", "capacity", "reason"),
    [
        # 20 hours of audio are 48 dollars of work, whoever does it.
        (48 + 8 * 2.4, 8, Reason.BACKLOG),
        (48 + 8 * 2.4 - 0.01, 7, Reason.BUDGET),
        (48 + 2.4, 1, Reason.BUDGET),
        (20.0, 1, Reason.BUDGET),  # it ends when its hours are over
        (2.41, 1, Reason.BUDGET),
    ],
)
def test_a_budget_starts_as_many_as_it_pays_for(budget: float, capacity: int, reason: Reason) -> None:
    found = decision(100, hours=20.0, budget=budget)
    assert (found.capacity, found.reason) == (capacity, reason), found.why


def test_a_budget_below_a_start_starts_nothing_and_looks_into_no_message() -> None:
    found = decision(100, budget=2.40)
    assert (found.capacity, found.reason) == (0, Reason.BUDGET)


def test_a_start_that_costs_nothing_is_affordable_as_often_as_wished() -> None:
    free = {"boot": 0.0, "idle": 0.0, "budget": 60.0}
    assert decision(100, hours=20.0, **free).capacity == 7
    assert decision(100, hours=40.0, **free).reason is Reason.BUDGET  # the work itself costs more


def test_without_a_price_there_is_no_budget() -> None:
    assert decision(100, hours=20.0, budget=1.0, price=0.0).capacity == 8
    assert hours_allowed(2, replace(POLICY, budget=1.0, price=0.0), longest=12) == 12


def test_an_instance_may_run_until_its_share_of_the_budget_is_spent() -> None:
    policy = replace(POLICY, budget=14.40)
    assert hours_allowed(1, policy, longest=12) == pytest.approx(2)
    assert hours_allowed(4, policy, longest=12) == pytest.approx(0.5)
    assert hours_allowed(0, policy, longest=1) == 1
    assert hours_allowed(4, POLICY, longest=12) == 12


def test_the_metric_knows_every_reason() -> None:
    assert set(CAPACITY_DECISIONS.dimensions["Reason"]) == set(Reason)


# For every backlog -------------------------------------------------------------------------------------------------

positive = st.floats(0.1, 1e6)


@st.composite
def policies(draw: st.DrawFn, **fixed: Any) -> Policy:
    smallest = draw(st.integers(0, 5))
    drawn = Policy(
        mode=draw(st.sampled_from(Mode)),
        smallest=smallest,
        largest=draw(st.integers(max(1, smallest), 50)),
        speed=draw(st.floats(0.1, 1000)),
        target=draw(positive),
        boot=draw(st.floats(0, 3600)),
        idle=draw(st.floats(0, 3600)),
        least_jobs=draw(st.integers(1, 100)),
        latest_age=draw(positive),
        on_demand_age=draw(positive),
        price=draw(st.floats(0, 10)),
        budget=draw(st.one_of(st.just(math.inf), st.floats(0.01, 1000))),
        boots_allowed=draw(st.integers(1, 5)),
    )
    return replace(drawn, **fixed)


waitings = st.builds(Waiting, st.integers(0, 10**7), st.floats(0, 10**6))
fleets = st.builds(Fleet, st.integers(0, 60), st.integers(0, 60), st.integers(0, 6))
occasions = st.sampled_from(Occasion)
audio = st.floats(0, 1e9)


class Asked:
    """Says how much audio waits, and how often it was asked."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        self.times = 0

    def __call__(self) -> float:
        self.times += 1
        return self.seconds


@given(waitings, fleets, policies(), occasions, audio)
def test_it_is_never_above_the_limit_and_never_below_what_is_alive(
    waiting: Waiting, fleet: Fleet, policy: Policy, occasion: Occasion, seconds: float
) -> None:
    found = decide(waiting, fleet, policy, occasion, lambda: seconds)
    assert found.capacity <= policy.largest
    assert found.capacity >= min(fleet.alive, policy.largest)
    assert found.capacity >= policy.smallest
    assert found.why


@given(fleets, policies(smallest=0), occasions)
def test_it_is_zero_when_nothing_waits_and_nothing_is_alive(fleet: Fleet, policy: Policy, occasion: Occasion) -> None:
    assume(policy.mode is not Mode.ALWAYS)
    assert decide(Waiting(0, 0.0), replace(fleet, alive=0), policy, occasion, Asked(0)).capacity == 0


@given(waitings, fleets, policies(), occasions, audio)
def test_messages_are_looked_into_at_most_once_and_only_for_instances_that_will_work(
    waiting: Waiting, fleet: Fleet, policy: Policy, occasion: Occasion, seconds: float
) -> None:
    asked = Asked(seconds)
    found = decide(waiting, fleet, policy, occasion, asked)
    assert asked.times == (found.reason is Reason.BACKLOG or (found.reason is Reason.BUDGET and asked.times == 1))
    assert not asked.times or (waiting.jobs and found.capacity >= 1)


@given(st.integers(1, 10**6), fleets, policies(), occasions, audio)
def test_more_than_one_is_started_only_within_the_budget(
    jobs: int, fleet: Fleet, policy: Policy, occasion: Occasion, seconds: float
) -> None:
    waiting, idle = Waiting(jobs, 0.0), replace(fleet, desired=0, alive=0)
    found = decide(waiting, idle, replace(policy, smallest=0), occasion, lambda: seconds)
    if found.capacity > 1 and policy.price:
        assert cost(found.capacity, seconds, policy) <= policy.budget * (1 + 1e-9)


@given(waitings, st.integers(0, 10**6), fleets, policies(budget=math.inf), occasions, audio, audio)
def test_a_larger_backlog_never_gets_fewer_instances(
    waiting: Waiting, more: int, fleet: Fleet, policy: Policy, occasion: Occasion, seconds: float, extra: float
) -> None:
    assume(fleet.failed_boots < policy.boots_allowed and waiting.jobs)
    larger = replace(waiting, jobs=waiting.jobs + more)
    before = decide(waiting, fleet, policy, occasion, lambda: seconds)
    after = decide(larger, fleet, policy, occasion, lambda: seconds + extra)
    assert after.capacity >= before.capacity


@given(st.floats(0, 1e7), policies())
def test_as_many_as_it_takes_finish_in_time_and_one_fewer_do_not(seconds: float, policy: Policy) -> None:
    working = max(policy.target - policy.boot, policy.target / 2)
    count = instances_for(seconds, policy)
    assert count * working * policy.speed >= seconds * (1 - 1e-9)
    assert count == 1 or (count - 1) * working * policy.speed < seconds * (1 + 1e-9)


@given(waitings, fleets, policies(), occasions, audio)
def test_the_same_event_twice_changes_nothing_once_its_instances_are_on_their_way(
    waiting: Waiting, fleet: Fleet, policy: Policy, occasion: Occasion, seconds: float
) -> None:
    assume(fleet.desired >= max(policy.smallest, policy.mode is Mode.ALWAYS))  # the group sees to that
    first = decide(waiting, fleet, policy, occasion, lambda: seconds)
    assume(fleet.alive < first.capacity and first.reason is not Reason.BUDGET)  # AWS needs a moment
    # Nor when it finds no message to look into.
    again = decide(waiting, replace(fleet, desired=first.capacity), policy, occasion, lambda: min(seconds, 5.0))
    assert again.capacity == first.capacity
