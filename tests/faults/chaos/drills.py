"""One session, one fault at one random moment, and then the oracle: many small runs on real processes."""

import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

from shared.keys import Session
from tests.faults.chaos.lambdas import Lambdas
from tests.faults.chaos.producer import event, forced
from tests.faults.chaos.system import BUCKET, System, a_system
from tests.faults.oracle import Upload

CHUNKS = 3
BY_QUEUE = 2  # this chunk's event asks for the batch, so that worker and queue have a part in every run
MOMENTS = 1.5  # seconds after the uploads, in which the fault comes
MEET_SECONDS = 60.0  # in which somebody must meet it
AT_ONCE = 3  # systems
TOGETHER = 10  # runs in one system: the oracle and the sweep look at all of its bucket, each time


@dataclass
class Drill:
    """One run: its session, and what a fault may do before, while and after it is uploaded."""

    system: System
    session: Session
    number: int
    choice: random.Random
    lambdas: Lambdas = field(init=False)
    again: int = 0  # deliveries of events beyond the first

    def __post_init__(self) -> None:
        self.lambdas = self.system.lambdas

    def upload(self, *, unannounced: Sequence[int] = (), manifest: int | None = CHUNKS, by_queue: bool = False) -> None:
        """The session's chunks and its manifest, in any order, each event once or twice."""
        indices = [*range(1, CHUNKS + 1), 0]
        self.choice.shuffle(indices)
        for index in indices:
            if index:
                chunk = self.chunk(index)
                if index not in unannounced:
                    self.announce(chunk, by_queue=by_queue or index == BY_QUEUE)
            elif manifest:
                self.announce(self.system.producer.manifest(self.session, manifest))

    def chunk(self, index: int, version: int = 1) -> Upload:
        return self.system.producer.chunk(self.session, (self.number % 999 + 1, index, version))

    def file(self, index: int) -> Upload:
        """A recording of no session."""
        return self.system.producer.file(f"calls/{self.session.id} {index}.wav", (self.number % 999 + 1, index, 999))

    def announce(self, upload: Upload, *, by_queue: bool = False) -> None:
        made = forced(BUCKET, upload) if by_queue else event(BUCKET, upload)
        times = self.choice.choice((1, 1, 2))
        self.again += times - 1
        for _ in range(times):
            self.lambdas.invoke(made, after=self.choice.uniform(0, 0.5))

    def moment(self, within: float = MOMENTS) -> None:
        """The moment itself, at random, in so many seconds."""
        time.sleep(self.choice.uniform(0, within))


Fault = Callable[[Drill], int]  # uploads, does its worst, and says how often that happened


@dataclass(frozen=True)
class Ended:
    """How one run ended.

    `fired`: how often its fault happened; `batches`: that it took to come to rest; `again`: deliveries of events beyond
    the first.
    """

    kind: str
    fired: int
    batches: int
    wrong: tuple[str, ...]
    seconds: float
    again: int = 0


def run(system: System, kind: str, fault: Fault, *, number: int, choice: random.Random) -> Ended:
    """One fault, healed; the system comes to rest; what is wrong then, or was for an instant."""
    began = time.monotonic()
    drill = Drill(system, Session(f"user {number % 3}", f"{number} {kind}"), number, choice)
    fired, batches, stuck = 0, 0, []
    watch = system.watch()
    try:
        try:
            fired = fault(drill)
        finally:
            system.heal()
        system.settle()
        batches = system.rest()
    except AssertionError as error:  # not to come to rest is a violation as well
        stuck.append(str(error))
    wrong = (*watch.wrong(system.producer.uploads), *stuck, *system.verdict())
    return Ended(kind, fired, batches, wrong, time.monotonic() - began, drill.again)


@dataclass(frozen=True)
class Group:
    """Runs in one system, one after the other. Each has a seed of its own, which its number gives."""

    faults: tuple[tuple[str, Fault], ...]
    seed: int
    small_disk: bool = False
    settings: Mapping[str, str] = field(default_factory=dict)

    def run(self, tell: Callable[[Ended], None]) -> None:
        with a_system(small_disk=self.small_disk, **self.settings) as system:
            for number, (kind, fault) in enumerate(self.faults):
                tell(run(system, kind, fault, number=number, choice=random.Random(f"{self.seed} {number} {kind}")))


def groups(faults: Mapping[str, Fault], *, seed: int, small_disk: bool = False, **settings: str) -> list[Group]:
    named = list(faults.items())
    parts = [tuple(named[start : start + TOGETHER]) for start in range(0, len(named), TOGETHER)]
    return [Group(part, seed, small_disk, settings) for part in parts]


def run_all(groups: Sequence[Group], tell: Callable[[Ended], None]) -> None:
    """Several systems at a time: a run waits more than it works."""
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        for future in [pool.submit(group.run, tell) for group in groups]:
            future.result()
    finally:  # interrupted: those that run take their processes with them, and no others begin
        pool.shutdown(cancel_futures=True)
