"""What is simulated: the uploads, the deployment's settings, what the cloud does to it. Seconds, dollars, shares."""

import json
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from batch_worker.capacity import HOUR, Mode, Policy
from shared.prices import prices

ROOT = Path(__file__).resolve().parents[2]
BENCH = ROOT / "bench/results/bench.json"
DAY = 24 * HOUR
MINUTE = 60.0


@dataclass(frozen=True)
class Speeds:
    """Audio seconds that one instance hears in a second.

    `stitched`: a session's chunks together. `lone`: chunks by themselves, many at once. `single`: one at a time.
    """

    stitched: float
    lone: float
    single: float

    def scaled(self, stitched: float) -> "Speeds":
        """A machine of another speed, with these proportions."""
        factor = stitched / self.stitched
        return Speeds(stitched, self.lone * factor, self.single * factor)


@cache
def measured() -> Speeds:
    """What `make bench` measured last, on the machine that bench.md names."""
    rows = {row["id"]: row["speed"] for row in json.loads(BENCH.read_text())["rows"]}
    return Speeds(stitched=rows["session-4"], lone=rows["s3-16"], single=rows["upload-1"])


@dataclass(frozen=True, kw_only=True)
class Cloud:
    """What AWS does, good and bad. None of it was measured by this project: documentation, and guesses that say so.

    `boot`, `boot_spread`: seconds from launch to a healthy server, median and sigma of a log-normal. `boots_fail`: the
    share that never becomes healthy; `broken_until`: before that moment none does. `interruptions`: spot ends, an
    instance-hour; `unnoticed`: the share of them without a notice. `droughts`: from, to: no instance is to be had.
    `lost`, `duplicated`: shares of the events. `event`: mean seconds from upload to router. `decision`: seconds that
    the router takes to queue a chunk.
    """

    boot: float = 240.0
    boot_spread: float = 0.25
    boots_fail: float = 0.0
    broken_until: float = 0.0
    interruptions: float = 0.0
    unnoticed: float = 0.1
    droughts: tuple[tuple[float, float], ...] = ()
    lost: float = 0.0
    duplicated: float = 0.0
    event: float = 0.5
    decision: float = 0.3


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One run. The defaults of settings are those of .env.example.

    `chunks`: a day; `days`: so often. `bad`: the share that no server can read. `grain`: chunks that share one event of
    the simulation at most; 1 simulates each. `replay`: a CSV of uploads instead of a synthetic day. `windows`: seconds
    after midnight. `concurrency`: of the router's function. `group`: messages that a worker holds. `reachable`: the
    router reaches the instances. `second_hearing`: SESSION_FINISH=restitch.
    """

    chunks: int = 10_000
    days: int = 1
    chunk_seconds: float = 5.0
    session_seconds: float = 1200.0
    bad: float = 0.0
    replay: Path | None = None
    grain: int = 1
    seed: int = 1

    mode: Mode = Mode.SCHEDULED
    windows: tuple[float, ...] = (0.0,)
    smallest: int = 0
    largest: int = 1000
    target: float = 60 * MINUTE
    believed_boot: float = 300.0
    idle: float = 10 * MINUTE
    least_jobs: int = 1
    latest_age: float = 24 * HOUR
    on_demand_age: float = 15 * MINUTE
    boots_allowed: int = 2
    budget: float = float("inf")
    longest: float = 12 * HOUR
    group: int = 100
    concurrency: int = 8
    reachable: bool = True
    second_hearing: bool = True

    instance_type: str = "g4dn.xlarge"
    market: str = "spot"
    speeds: Speeds
    cloud: Cloud = Cloud()

    @property
    def price(self) -> float:
        """Dollars for an instance's hour. Raises ValueError for what the table does not have."""
        found = prices().an_hour(self.instance_type, self.market)
        if found is None:
            raise ValueError(f"shared/prices.json has no price for {self.instance_type}, {self.market}")
        return found

    @property
    def floor(self) -> int:
        """The group's smallest size."""
        return max(self.smallest, 1 if self.mode is Mode.ALWAYS else 0)

    def policy(self) -> Policy:
        """What the launcher is told."""
        return Policy(
            mode=self.mode,
            smallest=self.smallest,
            largest=self.largest,
            speed=self.speeds.stitched,
            target=self.target,
            boot=self.believed_boot,
            idle=self.idle,
            least_jobs=self.least_jobs,
            latest_age=self.latest_age,
            on_demand_age=self.on_demand_age,
            price=self.price,
            budget=self.budget,
            boots_allowed=self.boots_allowed,
        )

    def coarse(self, events: int = 100_000) -> "Scenario":
        """So coarse that a day has about that many events; never coarser than what a worker holds at once."""
        return replace(self, grain=min(self.group, max(1, -(-self.chunks // events))))
