"""The router: every upload's event, late, lost or twice; to a healthy server, or to the queue."""

import math
import random
from collections.abc import Iterator
from functools import partial

import numpy as np

from bench.simulation.day import Lump
from bench.simulation.fleet import Fleet
from bench.simulation.instance import Instance
from bench.simulation.ledger import Outcome, Work
from bench.simulation.world import World

TRIES = 4  # router_lambda/decide.py: each at another server if there are several
AGAIN = 60.0  # mean seconds until a duplicate comes


class Router:
    """`concurrency` functions at once; what comes meanwhile waits in Lambda's own queue."""

    def __init__(self, world: World, fleet: Fleet) -> None:
        self._world = world
        self._fleet = fleet
        self._rng = random.Random(f"router {world.scenario.seed}")
        self._chance = np.random.default_rng(world.scenario.seed)
        self._free = 0.0  # when all events so far have had their function

    def upload(self, lump: Lump) -> None:
        cloud = self._world.scenario.cloud
        delay = self._delay(lump)
        for work, lost, twice in self._fates(lump):
            self._world.ledger.upload(work)
            if lost:
                self._world.unheard.append(work)
            else:
                late = delay + self._rng.expovariate(1 / cloud.event)
                self._world.after(late, partial(self._route, work, lump.span, twice))

    def _fates(self, lump: Lump) -> Iterator[tuple[Work, bool, bool]]:
        """The lump in parts: what nobody can read, whose event is lost, comes twice; and the rest."""
        scenario, cloud, left = self._world.scenario, self._world.scenario.cloud, lump.count
        alone = lump.sessions > scenario.group / 2  # fewer than two chunks of a session among what a worker holds
        for share, fate in ((scenario.bad, "bad"), (cloud.lost, "lost"), (cloud.duplicated, "twice"), (1.0, "")):
            count = int(self._chance.binomial(left, share)) if 0 < share < 1 else round(left * share)
            if count:
                left -= count
                audio = lump.audio * count / lump.count
                work = Work(count, audio, lump.at, session=lump.sessions > 0, alone=alone, bad=fate == "bad")
                yield work, fate == "lost", fate == "twice"

    def _delay(self, lump: Lump) -> float:
        """Seconds until a function has decided, of which some wait for a server's answer."""
        scenario = self._world.scenario
        answer = lump.audio / lump.count / scenario.speeds.single if self._healthy() else 0.0
        begin = max(self._free, self._world.now - lump.span)
        self._free = begin + lump.count * (scenario.cloud.decision + answer) / scenario.concurrency
        return max(0.0, self._free - self._world.now) + scenario.cloud.decision

    def _route(self, work: Work, span: float, twice: bool) -> None:
        healthy = self._healthy()
        if work.bad and healthy:
            self._world.ledger.settle(work, Outcome.FAILED, self._world.now)
            return
        servers = self._rng.sample(healthy, min(TRIES, len(healthy)))
        for number, server in enumerate(servers):
            share = math.ceil(work.count / (len(servers) - number))
            if share and (taken := server.offer(share, work.audio * share / work.count, span))[0]:
                part = work.split(taken[0])
                self._world.after(taken[1], partial(self._heard, part, server, twice))
        if work.count:
            self._queue(work, twice)

    def _heard(self, work: Work, server: Instance, twice: bool) -> None:
        """The server has answered, if it lived to do so."""
        if server.gone:
            self._queue(work, twice)
            return
        server.heard(work.audio)
        if work.session:
            self._world.heard_alone(work.audio)
        self._world.ledger.settle(work, Outcome.DIRECT, self._world.now)
        if twice:
            self._again(work)

    def _queue(self, work: Work, twice: bool) -> None:
        self._world.queue.send(work)
        if twice:
            self._again(work)

    def _again(self, work: Work) -> None:
        """The second event finds the transcript, or queues the job once more."""

        def come() -> None:
            if work.outcome is None:
                self._world.queue.send(work)
            else:
                self._world.ledger.repeated += work.count

        self._world.after(self._rng.expovariate(1 / AGAIN), come)

    def _healthy(self) -> list[Instance]:
        if not self._world.scenario.reachable:
            return []
        return [member for member in self._fleet.members if member.healthy]
