"""All fault points: which runs there are, and what came of them."""

import logging
import multiprocessing
import tempfile
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue

from gpu_server.decode_pool import DecodePool
from gpu_server.decoding import Limits
from gpu_server.metrics import ServerMetrics
from gpu_server.transcriber import Transcriber
from tests.faults.points.aws import AwsWorld, Lane, no_backoff, start_server
from tests.faults.points.house import reading
from tests.faults.points.memory import MemoryWorld
from tests.faults.points.plan import Fault, Plan, all_kinds, kinds_apart, missed
from tests.faults.points.stage import SCENES, Run, play
from tests.faults.table import Say
from tests.gpu_server.ears import Reader, held_engine

TELL_EVERY = 200
TRIES = 10
MEMORY = Path("/dev/shm")
# Whose a call is, by a word of its name.
SERVICES = {
    "GET": "HTTP",
    "POST": "HTTP",
    "Object": "S3",
    "Message": "SQS",
    "Queue": "SQS",
    "PutEvents": "EventBridge",
    "DescribeInstances": "EC2",
    "Metadata": "instance metadata",
    "GetParameter": "SSM",
    "GetMetricData": "CloudWatch",
    "AutoScaling": "Auto Scaling",
    "ScalingActivities": "Auto Scaling",
    "DesiredCapacity": "Auto Scaling",
    "InstanceProtection": "Auto Scaling",
}


@dataclass(frozen=True)
class Case:
    """One run that is to be made."""

    scene: str
    faults: tuple[Fault, ...]


@dataclass
class Results:
    """`kinds`: how often each kind of fault struck."""

    runs: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    broken: list[str] = field(default_factory=list)

    def add(self, run: Run) -> None:
        self.runs += 1
        self.kinds.update(map(kind_of, run.plan.fired))
        if run.found:
            self.broken.append(str(run))

    def merge(self, other: "Results") -> None:
        self.runs += other.runs
        self.kinds += other.kinds
        self.broken += other.broken


def kind_of(fault: Fault) -> str:
    operation = fault.point.call.partition(" ")[0]
    service = next(service for word, service in SERVICES.items() if word in operation)
    return f"{service} {fault.kind}"


def in_memory(case: Case, workspace: Path) -> Run:
    plan = Plan(*case.faults)
    return play(case.scene, MemoryWorld(plan, reading(), workspace), plan)


def until_they_strike(case: Case, workspace: Path) -> Run:
    """Whether a call is made may hang on which of two threads was first: a run without it is made again."""
    for _ in range(TRIES):
        run = in_memory(case, workspace)
        slept = missed(run.plan)
        if not slept or len(run.found) > len(slept):
            break
    return run


def workspace() -> tempfile.TemporaryDirectory[str]:
    """In memory where there is such a folder: each run writes some files, and there are hundreds of thousands."""
    return tempfile.TemporaryDirectory(dir=MEMORY if MEMORY.is_dir() else None)


def singles() -> list[Case]:
    """Every call of every scene with every fault."""
    with workspace() as folder:
        calm = {scene: in_memory(Case(scene, ()), Path(folder)) for scene in SCENES}
    assert not any(run.found for run in calm.values()), calm
    return [Case(scene, (fault,)) for scene, run in calm.items() for fault in run.plan.later_faults(all_kinds)]


def apart(cases: Iterable[Case]) -> list[Case]:
    """Those of single faults that differ in what they leave behind."""
    return [case for case in cases for fault in case.faults if fault.kind in kinds_apart(fault.point)]


def spread(cases: Iterable[Case], each: int) -> list[Case]:
    """`each` of every kind of (first) fault, from everywhere in the scenes."""
    by_kind: defaultdict[str, list[Case]] = defaultdict(list)
    for case in cases:
        by_kind[kind_of(case.faults[0])].append(case)
    return [some[len(some) * (2 * part + 1) // (2 * each)] for some in by_kind.values() for part in range(each)]


@contextmanager
def listening() -> Iterator[Transcriber]:
    """The server's ears, with its real decoders."""
    transcriber = Transcriber(
        held_engine(Reader()),
        DecodePool(workers=1, limits=Limits(max_seconds=60)),
        ServerMetrics(),
        detectors=1,
        on_fault=lambda: None,
    )
    try:
        yield transcriber
    finally:
        transcriber.close()


def on_emulator(cases: Iterable[Case], endpoint: str, *, lanes: int = 1) -> Iterator[Run]:
    """Run the cases there, in no order."""
    with workspace() as folder, listening() as transcriber, no_backoff():
        free: SimpleQueue[Lane] = SimpleQueue()
        template = start_server(endpoint)
        for _ in range(lanes):
            free.put(Lane(endpoint, template, transcriber, Path(folder)))

        def run(case: Case) -> Run:
            lane = free.get()
            try:
                plan = Plan(*case.faults)
                return play(case.scene, AwsWorld(plan, lane), plan)
            finally:
                free.put(lane)

        with ThreadPoolExecutor(lanes) as pool:
            yield from pool.map(run, cases)


def pairs_after(first: Case, *, each: int = 1, offset: int = 0) -> Results:
    """The first fault with every other that can follow it, or with one in `each` of them."""
    results = Results()
    with workspace() as folder:
        run = in_memory(first, Path(folder))
        results.add(run)
        for second in run.plan.later_faults(kinds_apart)[offset % each :: each]:
            results.add(until_they_strike(Case(first.scene, (*first.faults, second)), Path(folder)))
    return results


def pairs(firsts: Sequence[Case], *, processes: int, say: Say = lambda line: None) -> Results:
    """All pairs that begin with these faults."""
    results = Results()
    fresh = multiprocessing.get_context("spawn")  # a fork would lack the threads that serve here
    with ProcessPoolExecutor(processes, mp_context=fresh, initializer=hush) as pool:
        for number, some in enumerate(pool.map(pairs_after, firsts), 1):
            results.merge(some)
            if number % TELL_EVERY == 0:
                say(f"pairs: {results.runs:,} runs, of {number:,} first faults in {len(firsts):,}")
    return results


def hush() -> None:
    """The programs log each fault that they meet."""
    logging.disable(logging.CRITICAL)


@contextmanager
def hushed() -> Iterator[None]:
    hush()
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)
