"""The launcher and its reaper, on their schedules. What they decide is the project's own code."""

import random
from collections import Counter, deque
from collections.abc import Callable

from batch_worker import capacity
from batch_worker.capacity import HOUR, Decision, Occasion, Policy, Reason, Waiting
from bench.simulation.fleet import Fleet
from bench.simulation.instance import GAVE_UP, OVERTIME
from bench.simulation.scenario import DAY, MINUTE
from bench.simulation.world import Steps, World

WATCH = 5 * MINUTE
AGE_MEMORY = 15  # minutes: CloudWatch is asked for the greatest age in them

Decide = Callable[[Waiting, capacity.Fleet, Policy, Occasion, Callable[[], float]], Decision]


class Launcher:
    """`reasons`: of all its decisions."""

    def __init__(self, world: World, fleet: Fleet, decide: Decide) -> None:
        self._world = world
        self._fleet = fleet
        self._decide = decide
        self._policy = world.scenario.policy()
        self._ages: deque[float] = deque(maxlen=AGE_MEMORY)
        self._first = random.Random(f"watch {world.scenario.seed}").uniform(0, WATCH)
        self.reasons: Counter[Reason] = Counter()

    def measure(self) -> None:
        """CloudWatch's datapoint of this minute."""
        self._ages.append(self._world.queue.age())

    def watch(self) -> Steps[None]:
        yield self._world.env.timeout(self._first)
        while True:
            self._look(Occasion.WATCH)
            yield self._world.env.timeout(WATCH)

    def windows(self) -> Steps[None]:
        day = 0.0
        while True:
            for window in sorted(self._world.scenario.windows):
                yield self._world.env.timeout(max(0.0, day + window - self._world.now))
                self._look(Occasion.WINDOW)
            day += DAY

    def _look(self, occasion: Occasion) -> None:
        queue, fleet = self._world.queue, self._fleet
        waiting = Waiting(queue.jobs, max(self._ages, default=0.0))
        there = capacity.Fleet(fleet.desired, len(fleet.members), fleet.failed_of_late)
        decision = self._decide(waiting, there, self._policy, occasion, queue.sample)
        self.reasons[decision.reason] += 1
        fleet.set_desired(decision.capacity)
        if decision.reason is Reason.GAVE_UP:
            for member in list(fleet.members):
                if not member.healthy:
                    member.end(GAVE_UP)
        longest = HOUR * capacity.hours_allowed(len(fleet.members), self._policy, self._world.scenario.longest / HOUR)
        for member in list(fleet.members):
            if self._world.now - member.started >= longest and fleet.may_shrink():
                member.end(OVERTIME)
