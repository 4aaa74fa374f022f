"""How many GPU instances the backlog is worth: one pure decision, for the launcher and for the simulation alike."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum

HOUR = 3600.0


class Mode(StrEnum):
    """When instances may start from nothing."""

    SCHEDULED = "scheduled"  # when a window opens
    ON_DEMAND = "on-demand"  # also when a job has waited for too long
    ALWAYS = "always"  # one is always there


class Occasion(StrEnum):
    """Why the launcher looks."""

    WINDOW = "window"  # the schedule says that it is time
    WATCH = "watch"  # every few minutes


class Reason(StrEnum):
    """What a decision rests on; a metric's dimension."""

    EMPTY = "empty"  # nothing waits
    WAITS = "waits"  # something does, and may go on waiting
    TOO_LITTLE = "too-little"  # a window is open, and the backlog is not worth a start
    BACKLOG = "backlog"
    OVERDUE = "overdue"  # something has waited for too long although instances are there
    BUDGET = "budget"  # fewer than the backlog wants, or none
    GAVE_UP = "gave-up"  # instances start and never become healthy


@dataclass(frozen=True)
class Waiting:
    """`jobs` counts messages, those in work included. `oldest`: seconds that one has been in the queue."""

    jobs: int
    oldest: float


@dataclass(frozen=True)
class Fleet:
    """`alive`: instances that are there, booting ones included. `failed_boots`: of late, without a healthy server."""

    desired: int
    alive: int
    failed_boots: int = 0


@dataclass(frozen=True)
class Policy:
    """Seconds and dollars.

    `speed`: audio seconds that one instance transcribes in a second. `target`: the backlog should be done in that time.
    `least_jobs`, `latest_age`: a window starts nothing for fewer jobs, unless one is that old. `on_demand_age`: at that
    age a job is worth a start outside of any window. `idle`: what an instance waits before it ends itself. `budget`:
    for one emptying of the queue, at `price` for an instance's hour.
    """

    mode: Mode
    smallest: int
    largest: int
    speed: float
    target: float
    boot: float
    idle: float
    least_jobs: int
    latest_age: float
    on_demand_age: float
    price: float
    budget: float = math.inf
    boots_allowed: int = 2


@dataclass(frozen=True)
class Decision:
    """`capacity`: the group's desired one."""

    capacity: int
    reason: Reason
    why: str


def decide(
    waiting: Waiting, fleet: Fleet, policy: Policy, occasion: Occasion, audio_seconds: Callable[[], float]
) -> Decision:
    """What the group's desired capacity should be, and why.

    Never above `policy.largest`. Never below what is alive: an instance ends by itself when it has nothing to do, so
    running work is safe, and lowering only takes back what was asked for, never came, and would find nothing to do.
    `policy.smallest` when nothing waits and nothing is alive.

    Args:
        audio_seconds: estimates all that waits. Asked only when instances are about to work on it: to look into a
            message counts as a receive.
    """
    wanted, reason, why = _wanted(waiting, fleet, policy, occasion, audio_seconds)
    return Decision(min(policy.largest, max(_floor(policy), fleet.alive, wanted)), reason, why)


def instances_for(audio_seconds: float, policy: Policy) -> int:
    """As many as finish that much audio within the target, their boot included."""
    working = max(policy.target - policy.boot, policy.target / 2)
    return max(1, math.ceil(audio_seconds / policy.speed / working))


def cost(instances: int, audio_seconds: float, policy: Policy) -> float:
    """Dollars: the work is the same however many share it; each pays for its own boot and its own idle end."""
    return policy.price / HOUR * (instances * (policy.boot + policy.idle) + audio_seconds / policy.speed)


def hours_allowed(alive: int, policy: Policy, longest: float) -> float:
    """After how many hours an instance has to end, whatever it does: at `longest`, or when the budget is spent."""
    if not _has_a_budget(policy):
        return longest
    return min(longest, policy.budget / policy.price / max(1, alive))


def _wanted(
    waiting: Waiting, fleet: Fleet, policy: Policy, occasion: Occasion, audio_seconds: Callable[[], float]
) -> tuple[int, Reason, str]:
    jobs, watch = waiting.jobs, occasion is Occasion.WATCH
    waits = f"{jobs} jobs, the oldest {waiting.oldest / HOUR:.1f} hours old"
    if fleet.failed_boots >= policy.boots_allowed and (jobs or fleet.alive):
        return 0, Reason.GAVE_UP, f"{fleet.failed_boots} instances started and never became healthy; {waits}"
    if jobs == 0:
        return 0, Reason.EMPTY, "nothing waits"
    started = max(fleet.desired, fleet.alive) > 0
    asked = min(fleet.desired, jobs)  # of more, some would find nothing to do
    # What was old enough for a start should be done by the target, and what is older than that is late.
    patience = policy.on_demand_age + (policy.target if started else 0)
    overdue = policy.mode is not Mode.SCHEDULED and waiting.oldest >= patience
    if watch and started:
        helped = fleet.alive < fleet.desired or jobs <= fleet.alive  # one is on its way, or would find nothing to do
        if not overdue or helped or fleet.alive >= policy.largest:
            return asked, Reason.WAITS, f"{waits}; {fleet.alive} of {fleet.desired} instances are there"
        return fleet.alive + 1, Reason.OVERDUE, f"{waits}, though all {fleet.alive} instances are there: one more"
    if watch and not overdue:
        return 0, Reason.WAITS, f"{waits}; that can wait"
    if not watch and not started and jobs < policy.least_jobs and waiting.oldest < policy.latest_age:
        return 0, Reason.TOO_LITTLE, f"{waits}; not worth a start"
    if _has_a_budget(policy) and cost(1, 0, policy) >= policy.budget:
        return 0, Reason.BUDGET, f"{waits}; the budget does not pay for a start"
    audio = audio_seconds()
    waits = f"{waits}, {audio / HOUR:.1f} hours of audio"
    enough = min(instances_for(audio, policy), jobs)
    affordable = _affordable(audio, policy)
    if affordable < min(enough, policy.largest):
        return affordable, Reason.BUDGET, f"{waits}; {enough} would do it in time, the budget is for {affordable}"
    limit = f", {policy.largest} are allowed" if enough > policy.largest else ""
    more = f", {asked} are asked for already" if asked > enough else ""
    why = f"{waits}; {enough} do it in {policy.target / HOUR:.1f} hours{limit}{more}"
    # Not fewer than asked for: the same event twice may find no message to look into the second time.
    return max(enough, asked), Reason.BACKLOG, why


def _floor(policy: Policy) -> int:
    return max(policy.smallest, 1 if policy.mode is Mode.ALWAYS else 0)


def _has_a_budget(policy: Policy) -> bool:
    return policy.price > 0 and not math.isinf(policy.budget)


def _affordable(audio_seconds: float, policy: Policy) -> int:
    """How many instances the budget pays for. One at least: its hours are limited, as `hours_allowed` says."""
    start, left = cost(1, 0, policy), policy.budget - cost(0, audio_seconds, policy)
    if not _has_a_budget(policy) or start * policy.largest <= left:
        return policy.largest
    return max(1, math.floor(left / start)) if left > 0 else 1
