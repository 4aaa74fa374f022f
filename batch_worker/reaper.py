"""Which instances have to end since they do not end themselves, and how many never came to work: pure decisions."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

BOOTS_REMEMBERED = timedelta(hours=3)
# An instance whose server does not become healthy says so of itself, and its group replaces it with these words:
# https://docs.aws.amazon.com/autoscaling/ec2/userguide/replace-unhealthy-instance.html
SAID_UNHEALTHY = "taken out of service in response to a user health-check"


class End(StrEnum):
    """Why an instance has to end."""

    TOO_LONG = "too-long"  # it hangs, or the budget is spent
    GAVE_UP = "gave-up"  # others like it never became healthy, and it has no work


@dataclass(frozen=True)
class Instance:
    """One that is there, booting or in service. `protected`: from scale-in, by its worker, as long as that has work."""

    id: str
    launched: datetime
    protected: bool


@dataclass(frozen=True)
class Activity:
    """What the group did, and why, in AWS's words."""

    began: datetime
    cause: str


def failed_boots(activities: Iterable[Activity], instances: Iterable[Instance], now: datetime) -> int:
    """Instances that were replaced of late, since no healthy server came.

    One that works, and was launched after that, shows that boots go well again.
    """
    since = max([now - BOOTS_REMEMBERED, *(one.launched for one in instances if one.protected)])
    return sum(activity.began > since and SAID_UNHEALTHY in activity.cause for activity in activities)


def to_end(
    instances: Sequence[Instance], *, hours: float, gave_up: bool, spare: int, now: datetime
) -> list[tuple[Instance, End]]:
    """Those that were up for longer than `hours`, and, after giving up, those without work; the oldest first.

    Args:
        spare: how many the group can lose; it would replace more than that.
    """
    deadline = now - timedelta(hours=hours)
    oldest_first = sorted(instances, key=lambda one: one.launched)
    ends = [(one, End.TOO_LONG) for one in oldest_first if one.launched <= deadline]
    if gave_up:
        ends += [(one, End.GAVE_UP) for one in oldest_first if one.launched > deadline and not one.protected]
    return ends[: max(spare, 0)]
