"""Which instances of a group are more than its load needs: one pure rule, which each applies to itself.

With work round the clock every instance gets some now and then, and none is ever idle. So each takes the others to be
as busy as itself, and goes when enough of those that stay come before it in an order that all know.

- The first of them never goes.
- While none is busy for less than `FULL` of their mean, enough stay: what each takes to be needed is at least the load.
- A load is not taken for less than it was because the group shrank meanwhile (`load_between`).
- A steady load ends in a steady group with something to spare, so the launcher has no cause to ask for more.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

from aws_lambda_powertools import Logger

FULL = 0.7  # of the time: a recognizer that is busier has nothing to spare for the next rush

logger = Logger(service="batch-worker", child=True)


class Place(Protocol):
    """An instance's place in its group. `working`: those of the group that are at work and mean to stay."""

    @property
    def id(self) -> str: ...

    def working(self) -> frozenset[str]: ...


@dataclass(frozen=True)
class Look:
    """What an instance saw at a moment. `busy`: its recognizer's seconds so far. `working`: who shares the load."""

    at: float
    busy: float
    working: frozenset[str]


@dataclass(frozen=True)
class Load:
    """What a group did: so many `instances`, each busy for that `share` of the time."""

    instances: int
    share: float

    @property
    def needs(self) -> int:
        """So many instances can do that, and have something to spare. One at least."""
        return max(1, math.ceil(self.instances * self.share / FULL))


def load_between(before: Look, now: Look) -> Load:
    """Of as many instances as there were at most: a load on fewer made each of them busier, never less busy."""
    share = (now.busy - before.busy) / (now.at - before.at)
    return Load(max(len(before.working), len(now.working)), share)


def is_surplus(me: str, staying: Collection[str], load: Load) -> bool:
    """Whether enough of `staying` come before this instance. The order is that of their ids, which no two share."""
    return sum(other < me for other in staying) >= load.needs


class Surplus:
    """Whether this instance is surplus, asked once in every `seconds`."""

    def __init__(self, place: Place, seconds: float) -> None:
        self._place = place
        self._seconds = seconds
        self._last: Look | None = None
        self._load: Load | None = None

    def is_due(self, now: float, busy: float) -> bool:
        """Whether it is, judged by the time since the last answer; False in between, and when nobody says."""
        before = self._last
        if before and now - before.at < self._seconds:
            return False
        working = self._place.working()
        self._last = Look(now, busy, working | {self._place.id}) if working else None
        if not before or not self._last or busy < before.busy:  # a server that was started again counts from nought
            return False
        self._load = load_between(before, self._last)
        surplus = is_surplus(self._place.id, working, self._load)
        if surplus:
            logger.info("surplus", extra={"needs": self._load.needs, **vars(self._load)})
        return surplus

    def is_confirmed(self) -> bool:
        """The same once more, now that the others do not count on this instance: one that it counted on may go too."""
        return self._load is not None and is_surplus(self._place.id, self._place.working(), self._load)
