"""One run: uploads, router, queue and fleet together, until all is done; its promises kept, its result."""

import math
from collections import Counter
from dataclasses import dataclass

from batch_worker import capacity
from batch_worker.capacity import HOUR, Reason
from bench.simulation.day import Lump, uploads
from bench.simulation.fleet import Fleet
from bench.simulation.instance import Why
from bench.simulation.launcher import Decide, Launcher
from bench.simulation.ledger import Histogram, Outcome, Violation
from bench.simulation.router import Router
from bench.simulation.scenario import DAY, MINUTE, Scenario
from bench.simulation.world import Steps, World

SETTLE_DAYS = 7  # after the last upload; SQS keeps a message no longer
QUIET_MINUTES = 15  # several looks of the launcher: instances that come and go for nothing are no peace
NEXT_UPLOAD = 12 * HOUR  # of each later day, while lost events wait for a run: somebody records something again


@dataclass(frozen=True, slots=True)
class Sample:
    """One minute: seconds since midnight, jobs in the queue, instances that are wanted, there, and healthy."""

    at: float
    jobs: int
    desired: int
    alive: int
    healthy: int


@dataclass(frozen=True)
class Result:
    """`repeated`: chunks that came again when they were done. `reheard`: audio seconds. `busy`: instance-seconds."""

    scenario: Scenario
    chunks: int
    audio: float
    outcomes: Counter[Outcome]
    latency: dict[Outcome, Histogram]
    repeated: int
    reheard: float
    instance_seconds: float
    busy: float
    most: int
    starts: int
    ends: Counter[Why]
    reasons: Counter[Reason]
    series: list[Sample]

    @property
    def dollars(self) -> float:
        return self.instance_seconds / HOUR * self.scenario.price

    @property
    def dollars_an_audio_hour(self) -> float:
        return self.dollars / (self.audio / HOUR)

    @property
    def busy_share(self) -> float:
        return self.busy / self.instance_seconds if self.instance_seconds else 0.0

    @property
    def emptied(self) -> float:
        """Seconds from the last day's midnight until the queue was empty."""
        midnight = self.scenario.days * DAY
        return next((each.at - midnight for each in self.series if each.at >= midnight and not each.jobs), math.nan)

    def seconds(self, share: float) -> float:
        """From upload to outcome, for that share of all chunks."""
        return Histogram.joined(self.latency.values()).quantile(share)


def simulate(scenario: Scenario, decide: Decide = capacity.decide) -> Result:
    """`decide`: the launcher's; another may be tried. Raises Violation as soon as a promise is broken."""
    world = World(scenario)
    fleet = Fleet(world)
    router = Router(world, fleet)
    launcher = Launcher(world, fleet, decide)
    series: list[Sample] = []
    over = world.env.event()
    uploaded = quiet = 0

    def come(lump: Lump) -> None:
        nonlocal uploaded
        uploaded += lump.count
        router.upload(lump)

    def upload() -> Steps[None]:
        nonlocal quiet
        for lump in uploads(scenario):
            if lump.at > world.now:
                yield world.env.timeout(lump.at - world.now)
            come(lump)
        end = MINUTE * math.ceil(max(world.now, scenario.days * DAY) / MINUTE)
        yield world.env.timeout(end - world.now)
        while quiet < QUIET_MINUTES and world.now < end + SETTLE_DAYS * DAY:
            quiet = quiet + 1 if _settled(world, fleet) else 0
            if world.unheard and not world.queue.jobs and world.now % DAY == NEXT_UPLOAD:
                come(Lump(world.now, 1, scenario.chunk_seconds, 0.0, 1))
            yield world.env.timeout(MINUTE)
        over.succeed()

    def sample() -> Steps[None]:
        while True:
            launcher.measure()
            healthy = sum(member.healthy for member in fleet.members)
            series.append(Sample(world.now, world.queue.jobs, fleet.desired, len(fleet.members), healthy))
            yield world.env.timeout(MINUTE)

    for process in (upload(), launcher.watch(), launcher.windows(), sample()):
        world.env.process(process)
    world.env.run(until=over)
    check(world, uploaded, at_rest=quiet == QUIET_MINUTES)
    return Result(
        scenario=scenario,
        chunks=uploaded,
        audio=world.ledger.audio,
        outcomes=world.ledger.outcomes,
        latency=world.ledger.latency,
        repeated=world.ledger.repeated,
        reheard=world.reheard,
        instance_seconds=fleet.instance_seconds(),
        busy=world.busy,
        most=fleet.most,
        starts=fleet.starts,
        ends=fleet.ends,
        reasons=launcher.reasons,
        series=series,
    )


def _settled(world: World, fleet: Fleet) -> bool:
    """Nothing is open, and nothing runs that may end."""
    return not (world.ledger.open or world.queue.jobs or len(fleet.members) > world.scenario.floor)


def check(world: World, uploaded: int, *, at_rest: bool) -> None:
    """The promises at the end of a run; Violation names the one that is broken."""
    settled = world.ledger.outcomes.total()
    if settled != uploaded:
        raise Violation(f"{uploaded} chunks were uploaded, {settled} have an outcome; {world.queue.jobs} jobs wait")
    if world.queue.jobs or world.queue.in_flight:
        raise Violation(f"all is done, but the queue has {world.queue.jobs} jobs, {world.queue.in_flight} in flight")
    if not at_rest:
        raise Violation("all is done, and instances are still there, or come again")
