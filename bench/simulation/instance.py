"""One GPU instance: boots, serves the router, drains the queue, and ends itself when nobody needs it.

Its server hears windows of all requests in common batches, so what comes directly shares the machine with the batch:
each gets at least a half.
"""

import math
import random
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, cast

from simpy import Interrupt

from batch_worker.stay import NEXT_BATCH_SECONDS
from batch_worker.surplus import Surplus
from bench.simulation.ledger import Outcome, Violation
from bench.simulation.sqs import Message
from bench.simulation.world import PIECE, Steps, World

if TYPE_CHECKING:
    from bench.simulation.fleet import Fleet

MAX_IN_FLIGHT = 32  # the server's: more get 429
START_SECONDS = 1200.0  # infra/instance/user-data.sh: a server that is not healthy by then will not be
# https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
NOTICE_SECONDS = 120.0
NOTICE_MARGIN = 10.0  # to hand back, and because the notice is polled for
DRAIN_TIMEOUT = 25.0
VISIBILITY_TIMEOUT = 120.0
HEARTBEAT_INTERVAL = 30.0
SUSPECT_RECEIVES = 3  # batch_worker/grouping.py
POLL_SECONDS = 20.0
LULL_SECONDS = 60.0  # after its batch an instance looks so often whether it is needed: every poll would change little
SWEEPS = 3  # batch_worker/batch.py
SHORT = 0.01  # seconds that nobody would notice


class Why(StrEnum):
    """Why an instance ended."""

    IDLE = "idle"
    SURPLUS = "surplus"
    UNHEALTHY = "never healthy"
    INTERRUPTED = "interrupted"
    OVERTIME = "up for too long"
    GAVE_UP = "given up"


@dataclass(frozen=True)
class End:
    """Why an instance ends. `shrinks`: nobody takes its place. `notice`: seconds until it is gone.

    `grace`: seconds in which a group of chunks may still be finished. `hands_back`: the worker is told, and can.
    """

    why: Why
    shrinks: bool
    notice: float = 0.0
    grace: float = 0.0
    hands_back: bool = True


IDLE = End(Why.IDLE, shrinks=True)
SURPLUS = End(Why.SURPLUS, shrinks=True)
UNHEALTHY = End(Why.UNHEALTHY, shrinks=False)
INTERRUPTED = End(Why.INTERRUPTED, shrinks=False, notice=NOTICE_SECONDS, grace=NOTICE_SECONDS - NOTICE_MARGIN)
UNNOTICED = End(Why.INTERRUPTED, shrinks=False, hands_back=False)
OVERTIME = End(Why.OVERTIME, shrinks=True, grace=DRAIN_TIMEOUT)
GAVE_UP = End(Why.GAVE_UP, shrinks=True)


class Instance:
    """`id`: not in the order of the starts. `healthy`: the router may ask it, and scale-in may not end it."""

    def __init__(self, world: World, fleet: "Fleet", seed: str) -> None:
        self._world = world
        self._fleet = fleet
        self.id = f"i-{random.Random(f'id of {seed}').getrandbits(68):017x}"
        self._rng = random.Random(seed)
        self._held: list[Message] = []
        self._unit: list[Message] = []  # of what is held: what is being heard
        self._done_at = math.inf  # when what is being heard will be
        self._direct_free = 0.0  # when all that came directly will be done
        self._direct_seconds = 0.0
        self._answered = 0.0  # when all that came directly will be answered
        self._idle_since = 0.0
        self._busy = 0.0
        self._surplus = Surplus(self, world.scenario.idle)
        self._sweeps = 0
        self._swept = False  # there is nothing more to find
        self._swept_at = 0.0
        self.started = world.now
        self.healthy = False
        self.gone = False
        self._ending = False
        self._process = world.env.process(self._life())
        world.env.process(self._fate())

    def end(self, end: End) -> None:
        """Begin to end it, unless that has begun."""
        if not self._ending and self._process.is_alive:
            self._ending = True
            self._process.interrupt(end)

    def offer(self, count: int, audio: float, span: float) -> tuple[int, float]:
        """Of chunks that came in the last `span` seconds: how many it takes, and in how many seconds they are done."""
        now, speeds = self._world.now, self._world.scenario.speeds
        each = audio / count / speeds.lone * (2 if math.isfinite(self._done_at) else 1)
        begin = max(self._direct_free, now - span)
        taken = min(count, math.floor((now - begin) / each) + MAX_IN_FLIGHT)
        if taken <= 0:
            return 0, 0.0
        self._direct_free = begin + taken * each
        self._direct_seconds += taken * audio / count / speeds.lone
        seconds = max(each, self._direct_free - now) + max(0.0, audio / count / speeds.single - each)
        self._answered = max(self._answered, now + seconds)
        return taken, seconds

    def heard(self, audio: float) -> None:
        """What it took is done."""
        self._count(audio / self._world.scenario.speeds.lone)

    def working(self) -> frozenset[str]:
        """The fleet's instances that are at work and mean to stay, by id."""
        return self._fleet.working()

    def _life(self) -> Steps[None]:
        try:
            end = (yield from self._work_until_useless()) if (yield from self._boot()) else UNHEALTHY
        except Interrupt as interrupt:
            end = cast(End, interrupt.cause)
            yield from self._wind_up(end)
        if self._held:
            raise Violation(f"an instance ended with {len(self._held)} messages")
        self.healthy, self.gone, self._ending = False, True, True
        self._fleet.ended(self, end.why, shrink=end.shrinks)

    def _fate(self) -> Steps[None]:
        """Spot's."""
        cloud = self._world.scenario.cloud
        if cloud.interruptions > 0:
            yield self._world.env.timeout(self._rng.expovariate(cloud.interruptions / 3600))
            self.end(UNNOTICED if self._rng.random() < cloud.unnoticed else INTERRUPTED)

    def _boot(self) -> Steps[bool]:
        """False if no server ever became healthy."""
        env, cloud = self._world.env, self._world.scenario.cloud
        if self._world.now < cloud.broken_until or self._rng.random() < cloud.boots_fail:
            yield env.timeout(START_SECONDS)
            return False
        yield env.timeout(cloud.boot * self._rng.lognormvariate(0, cloud.boot_spread))
        self.healthy = True
        self._idle_since = self._direct_free = self._world.now
        return True

    def _work_until_useless(self) -> Steps[End]:
        env, queue, idle = self._world.env, self._world.queue, self._world.scenario.idle
        while True:
            if messages := queue.receive(self._world.scenario.group):
                yield from self._work(messages)
                continue
            if self._swept and self._world.now - self._swept_at >= NEXT_BATCH_SECONDS:
                self._swept, self._sweeps = False, 0
            if not self._swept and queue.in_flight == 0:
                yield from self._finish_batch()
            elif self._swept and self._world.second > 0:
                yield from self._hear_again()
            else:
                self._idle_since = max(self._idle_since, self._direct_free)
                rest = self._idle_since + idle - self._world.now
                is_surplus = self._is_surplus()
                if (rest <= 0 or is_surplus) and self._fleet.may_shrink():
                    return IDLE if rest <= 0 else SURPLUS
                lull = LULL_SECONDS if self._swept else POLL_SECONDS
                arrival = queue.arrival()
                try:
                    yield arrival | env.timeout(min(lull, rest) if rest > 0 else lull)
                finally:
                    queue.forget(arrival)

    def _is_surplus(self) -> bool:
        return self._surplus.is_due(self._world.now, self._busy) and self._answered <= self._world.now

    def _count(self, seconds: float) -> None:
        self._busy += seconds
        self._world.busy += seconds

    def _work(self, messages: list[Message]) -> Steps[None]:
        """Hear what nobody has heard, and settle all of it: together, but what came back several times alone."""
        self._held = messages
        together = [message for message in messages if message.receives < SUSPECT_RECEIVES]
        alone = [[message] for message in messages if message.receives >= SUSPECT_RECEIVES]
        speeds = self._world.scenario.speeds
        for unit in (together, *alone):
            self._unit = unit
            open = [message.work for message in unit if message.work.outcome is None and not message.work.bad]
            yield from self._run(sum(work.audio / (speeds.lone if work.alone else speeds.stitched) for work in open))
            self._settle()

    def _run(self, seconds: float) -> Steps[None]:
        """Use the machine for so long; twice as long at most if others use it too."""
        env, left = self._world.env, seconds
        before = self._direct_seconds - max(0.0, self._direct_free - self._world.now)
        while left > SHORT:
            self._done_at = self._world.now + left
            yield env.timeout(left)
            left = min(self._direct_seconds - before, left / 2)
            before = self._direct_seconds
        self._count(seconds)
        self._done_at = math.inf
        self._idle_since = self._world.now

    def _settle(self) -> None:
        world = self._world
        for message in self._unit:
            work = message.work
            if work.outcome is None and work.alone and not work.bad:
                world.heard_alone(work.audio)
            world.ledger.settle(work, Outcome.FAILED if work.bad else Outcome.QUEUE, world.now)
            world.queue.delete(message)
        self._held = [message for message in self._held if not message.deleted]
        self._unit = []

    def _finish_batch(self) -> Steps[None]:
        """The queue is empty: dead letters get their one try; the bucket is swept until there is nothing to find."""
        while letter := self._world.queue.letter():
            yield from self._work([letter])
        self._sweeps += 1
        self._swept = not self._world.sweep() or self._sweeps == SWEEPS
        self._swept_at = self._world.now

    def _hear_again(self) -> Steps[None]:
        """Complete sessions, whole; what is not finished is for the next one."""
        world = self._world
        piece = min(PIECE, world.second)
        world.second -= piece
        try:
            yield from self._run(piece / world.scenario.speeds.stitched)
        except Interrupt:
            world.second += piece
            raise
        world.reheard += piece

    def _wind_up(self, end: End) -> Steps[None]:
        """Finish what can be finished, hand back the rest. The server takes nothing new."""
        world, now = self._world, self._world.now
        self.healthy = False
        if self._unit and self._done_at - now <= end.grace:
            yield world.env.timeout(self._done_at - now)
            self._settle()
        self._hand_back(end)
        if (rest := now + end.notice - world.now) > 0:
            yield world.env.timeout(rest)

    def _hand_back(self, end: End) -> None:
        for message in self._held:
            if end.hands_back:
                self._world.queue.give_back(message)
            else:
                self._world.queue.expire(message, VISIBILITY_TIMEOUT - self._rng.uniform(0, HEARTBEAT_INTERVAL))
        self._held = []
