"""A seeded scheduler of greenlets with a virtual clock: the same seed, the same interleaving.

Priorities with change points (PCT, Burckhardt et al., ASPLOS 2010) instead of a coin at every step: the actor with the
highest priority runs until it blocks or a change point puts it last. Deep races need one actor to stay away for long,
which a coin at every step all but never gives.
"""

import heapq
import itertools
import math
from collections.abc import Callable
from random import Random

from greenlet import greenlet

NEVER = 1 << 60  # steps


class Crash(BaseException):
    """The actor's process has died. No `except Exception` sees it, as none sees a SIGKILL."""


class Process:
    """What dies together."""

    __slots__ = ("alive", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        self.alive = True


class Actor:
    """One thread of a process."""

    __slots__ = ("fibre", "parked", "priority", "process")

    def __init__(self, process: Process, priority: float) -> None:
        self.process = process
        self.priority = priority
        self.parked = False
        self.fibre: greenlet


class Scheduler:
    """`change_gap`: steps between change points, on average. `limit`: steps until the schedule counts as stuck."""

    def __init__(self, random: Random, *, change_gap: float, limit: int) -> None:
        self.random = random
        self.now = 0.0  # seconds
        self.steps = 0
        self.stuck = False
        self.next_fault = NEVER
        self._limit = limit
        self._change_gap = change_gap
        self._next_change = self._gap(change_gap)
        self._wake = 0  # the step at which something other than going on may have to be done
        self._lowest = itertools.count(-1, -1)
        self.numbers = itertools.count()
        self._ready: list[Actor] = []
        self._actors: list[Actor] = []
        self._timers: list[tuple[float, int, Callable[[], None]]] = []
        self._hub = greenlet.getcurrent()
        self._idle = Actor(Process("outside"), 0.0)
        self.current = self._idle

    def spawn(self, process: Process, call: Callable[[], object]) -> Actor:
        actor = Actor(process, self.random.random())

        def run() -> None:
            try:
                if process.alive:
                    call()
            except Crash:
                pass
            finally:
                self._ready.remove(actor)
                self._actors.remove(actor)

        actor.fibre = greenlet(run, self._hub)
        self._ready.append(actor)
        self._actors.append(actor)
        if actor.priority > self.current.priority:
            self._wake = 0
        return actor

    def run(self) -> None:
        """Until nobody is left who could go on."""
        while not self.stuck and (actor := self._next()) is not None:
            self._enter(actor)
            actor.fibre.switch()
        self.current = self._idle

    def step(self) -> bool:
        """One call to the outside. Others may go first; True when a fault is due at this call."""
        self.steps += 1
        return self.steps >= self._wake and self._turn()

    def kill(self, process: Process) -> None:
        """Its actors end where they are, and none of them gets anything done any more."""
        process.alive = False
        for actor in self._actors:
            if actor.process is process:
                self.wake(actor)
        self._wake = 0

    def end(self) -> None:
        """Kill everybody, so that nothing of this schedule is left behind."""
        self.stuck, self._limit = False, NEVER
        while self._actors:
            for actor in list(self._actors):
                self.kill(actor.process)
            self.run()

    def sleep(self, seconds: float) -> None:
        self.park(seconds)

    def park(self, seconds: float | None = None) -> None:
        """Block the current actor until `wake`, or until `seconds` are over."""
        actor = self.current
        if not actor.process.alive:
            raise Crash
        actor.parked = True
        self._ready.remove(actor)
        if seconds is None:
            self._leave(actor)
            return
        waiting = [True]

        def timeout() -> None:
            if waiting:
                self.wake(actor)

        self.at(self.now + seconds, timeout)
        try:
            self._leave(actor)
        finally:
            waiting.clear()

    def wake(self, actor: Actor) -> None:
        if actor.parked:
            actor.parked = False
            self._ready.append(actor)
            if actor.priority > self.current.priority:
                self._wake = 0

    def at(self, when: float, call: Callable[[], None]) -> None:
        """`call` must not block."""
        heapq.heappush(self._timers, (when, next(self.numbers), call))

    def advance(self, seconds: float) -> None:
        """Time goes on for everybody while nobody gets anything done."""
        self.now += seconds
        self._ring()

    def fault_after(self, gap: float) -> None:
        self.next_fault = self.steps + self._gap(gap) if gap else NEVER
        self._wake = 0

    def _turn(self) -> bool:
        if not self.current.process.alive:
            raise Crash
        if self.steps >= self._limit:
            self.stuck = True
            self._hub.switch()
            raise Crash
        if self.steps >= self._next_change:
            self.current.priority = next(self._lowest)
            self._next_change = self.steps + self._gap(self._change_gap)
        actor = self.current
        following = max(self._ready, key=_priority)
        if following is not actor:
            self._enter(following)
            following.fibre.switch()
            if not actor.process.alive:
                raise Crash
        else:
            self._enter(actor)
        return self.steps >= self.next_fault

    def _leave(self, actor: Actor) -> None:
        following = self._next()
        if following is None:
            self._hub.switch()
        elif following is not actor:
            self._enter(following)
            following.fibre.switch()
        if not actor.process.alive:
            self._wake = 0
            raise Crash

    def _enter(self, actor: Actor) -> None:
        self.current = actor
        self._wake = min(self._next_change, self.next_fault, self._limit) if actor.process.alive else 0

    def _next(self) -> Actor | None:
        while not self._ready:
            if not self._timers:
                return None
            self.now = max(self.now, self._timers[0][0])
            self._ring()
        return max(self._ready, key=_priority)

    def _ring(self) -> None:
        while self._timers and self._timers[0][0] <= self.now:
            heapq.heappop(self._timers)[2]()

    def _gap(self, mean: float) -> int:
        return 1 + int(-mean * math.log(1.0 - self.random.random()))


def _priority(actor: Actor) -> float:
    return actor.priority
