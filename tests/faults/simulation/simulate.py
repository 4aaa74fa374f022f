"""Runs schedules by their seeds: one, or very many in several processes."""

import gc
import time
from collections import Counter
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace

from tests.faults.simulation.faults import KINDS
from tests.faults.simulation.patches import set_up
from tests.faults.simulation.plan import draw
from tests.faults.simulation.world import World
from tests.faults.table import Part, Row

LONG_SEED = 10_000_000  # CI has those below
BLOCK = 1000


@dataclass
class Result:
    """What came of some schedules. `violations`: by seed."""

    schedules: int = 0
    steps: int = 0
    fired: Counter[str] = field(default_factory=Counter)
    violations: dict[int, list[str]] = field(default_factory=dict)

    def add(self, other: "Result") -> None:
        self.schedules += other.schedules
        self.steps += other.steps
        self.fired += other.fired
        self.violations |= other.violations


def simulate(
    seeds: Iterable[int], *, stop_at: int | None = None, failure_destination: bool = True, sweeps: bool = True
) -> Result:
    """Run the schedules of these seeds.

    Args:
        stop_at: as many that violate something are enough.
        failure_destination: whether Lambda keeps the events that it gave up.
        sweeps: False: no batch run sweeps, not even where events are lost.
    """
    result = Result()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        with set_up():
            for seed in seeds:
                plan = draw(seed)
                plan = plan if sweeps else replace(plan, sweeps=False)
                world = World(plan, failure_destination=failure_destination)
                if violations := world.run():
                    result.violations[seed] = violations
                result.schedules += 1
                result.steps += world.scheduler.steps
                result.fired += world.faults.fired
                for part in (world.oracle, world):
                    vars(part).clear()  # they hold each other: without this, half a tenth of the time is garbage's
                if result.schedules % 500 == 0:
                    gc.collect()
                if stop_at and len(result.violations) >= stop_at:
                    break
    finally:
        gc.enable()
        gc.unfreeze()
    return result


def run(
    schedules: int = 1_000_000,
    seed: int = LONG_SEED,
    processes: int = 1,
    say: Callable[[str], None] = lambda _: None,
) -> Part:
    """The long version: `schedules` of them, from `seed` on, and whether all that could go wrong did."""
    began = time.monotonic()
    blocks = [range(first, min(first + BLOCK, seed + schedules)) for first in range(seed, seed + schedules, BLOCK)]
    total = Result()
    with ProcessPoolExecutor(processes) as pool:
        for result in pool.map(simulate, blocks):
            total.add(result)
            for one, words in result.violations.items():
                say(f"seed {one}: {'; '.join(words)}")
    rate = total.schedules / (time.monotonic() - began)
    say(f"{total.schedules:,} schedules, {total.steps:,} steps, {rate:.0f} a second")
    kinds = Counter({name: total.fired[name] for name in KINDS})
    return Part(
        [
            Row(
                "simulated schedules with a violation",
                f"0 of {schedules:,}",
                f"{len(total.violations):,} of {total.schedules:,} ({total.steps:,} steps)",
                not total.violations and total.schedules == schedules,
            ),
            Row(
                "kinds of fault that fired in the simulation",
                f"{len(kinds)}",
                f"{sum(count > 0 for count in kinds.values())}",
                all(kinds.values()),
            ),
        ],
        kinds,
    )
