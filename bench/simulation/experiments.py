"""What is asked of the simulation: each experiment changes one thing and names its runs."""

from collections.abc import Callable, Iterator
from dataclasses import replace

from batch_worker.capacity import HOUR, Mode
from bench.simulation.model import Result, simulate
from bench.simulation.scenario import DAY, MINUTE, Scenario

Run = tuple[str, Result]

LOADS = (1_000, 30_000, 300_000)
SCALE = (1_000, 10_000, 100_000, 1_000_000, 10_000_000)
MIDDLE = 300_000  # chunks: 417 hours of audio
PEAK = 2.2  # the day's busiest hour over its mean
ROUTER_SECONDS = 0.7  # of a function, for one chunk at most


def loaded(base: Scenario, chunks: int, **changes: object) -> Scenario:
    """That many chunks a day, and a router that takes them; as coarse as that needs."""
    needed = int(chunks / DAY * PEAK * ROUTER_SECONDS * 1.5)
    # mypy cannot match **changes to fields.
    scenario = replace(base, chunks=chunks, concurrency=max(base.concurrency, needed), **changes)  # type: ignore[arg-type]
    return scenario.coarse()


def modes(base: Scenario) -> Iterator[Run]:
    """MODE, for three loads: two days in a row."""
    for chunks in LOADS:
        for mode in Mode:
            yield f"{chunks:,} {mode}", simulate(loaded(base, chunks, days=2, mode=mode))


def scale(base: Scenario) -> Iterator[Run]:
    """From a thousand to ten million chunks a day, two days in a row."""
    for chunks in SCALE:
        yield f"{chunks:,}", simulate(loaded(base, chunks, days=2))


def night(base: Scenario) -> Iterator[Run]:
    """The same with TARGET_MINUTES=480, the whole night."""
    for chunks in SCALE:
        yield f"{chunks:,}, 8 h", simulate(loaded(base, chunks, days=2, target=8 * HOUR))


def groups(base: Scenario) -> Iterator[Run]:
    """GROUP_MESSAGES, for a million chunks of about 60 recordings at a time, at the busiest 130."""
    for group in (100, 300, 1000, 3000):
        yield f"{group} messages", simulate(loaded(base, 1_000_000, group=group))


def patience(base: Scenario) -> Iterator[Run]:
    """TARGET_MINUTES where instances start on demand, for a million chunks a day."""
    for minutes in (15, 30, 60):
        scenario = loaded(base, 1_000_000, mode=Mode.ON_DEMAND, target=minutes * MINUTE)
        yield f"on-demand, {minutes} min", simulate(scenario)


def targets(base: Scenario) -> Iterator[Run]:
    """TARGET_MINUTES of the nightly batch."""
    for minutes in (15, 30, 60, 120, 240, 480):
        yield f"{minutes} min", simulate(loaded(base, MIDDLE, target=minutes * MINUTE))


def spot(base: Scenario) -> Iterator[Run]:
    """Interruptions an instance-hour, and no instance to be had for three hours of the night."""
    for rate in (0.0, 0.05, 0.2, 1.0):
        cloud = replace(base.cloud, interruptions=rate)
        yield f"{rate:g} interruptions an hour", simulate(loaded(base, MIDDLE, cloud=cloud))
    drought = replace(base.cloud, droughts=((DAY, DAY + 3 * HOUR),))
    yield "drought from 0:00 to 3:00", simulate(loaded(base, MIDDLE, cloud=drought))


def gate(base: Scenario) -> Iterator[Run]:
    """LEAST_JOBS, for two weeks of 200 chunks a day."""
    for least, age in ((1, 24 * HOUR), (500, 48 * HOUR), (1000, 96 * HOUR), (2000, 7 * DAY)):
        label = f"{least} jobs, or {age / HOUR:.0f} h"
        yield label, simulate(loaded(base, 200, days=14, least_jobs=least, latest_age=age))


def boots(base: Scenario) -> Iterator[Run]:
    """Instances that never become healthy: some of them; all of them in the first night, or in the morning."""
    for share in (0.0, 0.1, 0.3):
        yield f"{share:.0%} of boots fail", simulate(loaded(base, MIDDLE, cloud=replace(base.cloud, boots_fail=share)))
    broken = replace(base.cloud, broken_until=DAY + 6 * HOUR)
    yield "all fail, the first night", simulate(loaded(base, MIDDLE, cloud=broken))
    broken = replace(base.cloud, broken_until=12 * HOUR)
    yield "all fail until noon, on demand", simulate(loaded(base, MIDDLE, cloud=broken, mode=Mode.ON_DEMAND))


def faults(base: Scenario) -> Iterator[Run]:
    """Everything at once: what must not happen is checked in every run."""
    cloud = replace(base.cloud, interruptions=0.5, unnoticed=0.3, boots_fail=0.05, lost=0.001, duplicated=0.02)
    for mode in (Mode.SCHEDULED, Mode.ON_DEMAND):
        yield f"faults, {mode}", simulate(loaded(base, MIDDLE, mode=mode, cloud=cloud, bad=0.001))


EXPERIMENTS: dict[str, Callable[[Scenario], Iterator[Run]]] = {
    "modes": modes,
    "scale": scale,
    "night": night,
    "groups": groups,
    "patience": patience,
    "targets": targets,
    "spot": spot,
    "gate": gate,
    "boots": boots,
    "faults": faults,
}
