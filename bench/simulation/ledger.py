"""What became of every chunk, and how long it took."""

import math
from array import array
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace
from enum import StrEnum


class Violation(AssertionError):
    """The simulated system broke a promise."""


class Outcome(StrEnum):
    DIRECT = "direct"  # heard by a server as it came
    QUEUE = "queue"  # heard in a batch
    FAILED = "failed"  # nobody can read it, and that is recorded


@dataclass(slots=True, eq=False)
class Work:
    """Chunks that share their fate.

    `uploaded`: when the last of them was. `session`: they are parts of recordings. `alone`: a worker would not find two
    of a recording among its messages. `bad`: nobody can read them.
    """

    count: int
    audio: float
    uploaded: float
    session: bool = True
    alone: bool = False
    bad: bool = False
    outcome: Outcome | None = None

    def split(self, count: int) -> "Work":
        """That many of them, which have a fate of their own from now on."""
        part = replace(self, count=count, audio=self.audio * count / self.count)
        self.count -= part.count
        self.audio -= part.audio
        return part


class Histogram:
    """Seconds, in bins that grow by 2 %: any number of values in the same memory."""

    SMALLEST = 0.01
    GROWTH = math.log(1.02)
    BINS = 1200

    def __init__(self) -> None:
        self.counts = array("q", bytes(8 * self.BINS))
        self.total = 0

    def add(self, seconds: float, count: int) -> None:
        place = int(math.log(max(seconds, self.SMALLEST) / self.SMALLEST) / self.GROWTH)
        self.counts[min(place, self.BINS - 1)] += count
        self.total += count

    def quantile(self, share: float) -> float:
        """The middle of the bin that holds it; NaN if there is nothing."""
        passed = 0
        for place, count in enumerate(self.counts):
            passed += count
            if count and passed >= share * self.total:
                return self.middle(place)
        return math.nan

    @classmethod
    def middle(cls, place: int) -> float:
        return cls.SMALLEST * math.exp((place + 0.5) * cls.GROWTH)

    @classmethod
    def joined(cls, parts: Iterable["Histogram"]) -> "Histogram":
        whole = cls()
        for part in parts:
            whole.total += part.total
            whole.counts = array("q", map(sum, zip(whole.counts, part.counts, strict=True)))
        return whole


class Ledger:
    """Each chunk is uploaded once, and settled once."""

    def __init__(self) -> None:
        self.uploaded = 0
        self.audio = 0.0
        self.outcomes: Counter[Outcome] = Counter()
        self.latency = {outcome: Histogram() for outcome in Outcome}
        self.repeated = 0

    def upload(self, work: Work) -> None:
        self.uploaded += work.count
        self.audio += work.audio

    def settle(self, work: Work, outcome: Outcome, now: float) -> None:
        """The first one counts: the transcript is written by a conditional PUT."""
        if work.outcome is not None:
            self.repeated += work.count
            return
        work.outcome = outcome
        self.outcomes[outcome] += work.count
        self.latency[outcome].add(now - work.uploaded, work.count)

    @property
    def open(self) -> int:
        return self.uploaded - self.outcomes.total()
