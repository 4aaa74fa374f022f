"""The Auto Scaling group: as many instances as desired, as far as there are any to be had, and what they cost."""

from collections import Counter

from batch_worker.capacity import HOUR
from bench.simulation.instance import Instance, Why
from bench.simulation.ledger import Violation
from bench.simulation.world import World

FAILURES_COUNT_FOR = 3 * HOUR  # the launcher looks so far back


class Fleet:
    """`members`: in the order of their starts."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._failures: list[float] = []
        self._gone_seconds = 0.0
        self.desired = world.scenario.floor
        self.members: dict[Instance, None] = {}
        self.starts = 0
        self.most = 0
        self.ends: Counter[Why] = Counter()
        self._fill()

    def set_desired(self, capacity: int) -> None:
        """Raises Violation where that would end what may be at work, or is more than allowed."""
        largest = self._world.scenario.largest
        if capacity > largest:
            raise Violation(f"{capacity} instances are asked for, {largest} are allowed")
        if capacity < len(self.members):
            raise Violation(f"{capacity} instances are asked for while {len(self.members)} are there")
        self.desired = capacity
        self._fill()

    def may_shrink(self) -> bool:
        """Whether AWS lets an instance go and lowers the desired capacity with it."""
        return self.desired > self._world.scenario.floor

    def working(self) -> frozenset[str]:
        """Ids of those that have a healthy server, and are not about to end."""
        return frozenset(member.id for member in self.members if member.healthy)

    def ended(self, member: Instance, why: Why, *, shrink: bool) -> None:
        del self.members[member]
        self._gone_seconds += self._world.now - member.started
        self.ends[why] += 1
        if why is Why.UNHEALTHY:
            self._failures.append(self._world.now)
        if shrink and self.may_shrink():
            self.desired -= 1
        self._fill()

    @property
    def failed_of_late(self) -> int:
        """As batch_worker/reaper.py counts: one that works, and started after that, shows that boots go well again."""
        working = (member.started for member in self.members if member.healthy)
        since = max([self._world.now - FAILURES_COUNT_FOR, *working])
        return sum(at > since for at in self._failures)

    def instance_seconds(self) -> float:
        return self._gone_seconds + sum(self._world.now - member.started for member in self.members)

    def _fill(self) -> None:
        missing = self.desired - len(self.members)
        drought = next(
            (end for start, end in self._world.scenario.cloud.droughts if start <= self._world.now < end), None
        )
        if missing > 0 and drought is not None:
            self._world.after(drought - self._world.now, self._fill)
            return
        for _ in range(missing):
            self.starts += 1
            self.members[Instance(self._world, self, f"instance {self._world.scenario.seed} {self.starts}")] = None
        self.most = max(self.most, len(self.members))
