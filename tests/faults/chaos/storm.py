"""Many sessions at once while everything fails: the great run, the run of duplicates alone, and AWS failing at 30 %."""

import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

from shared.keys import Session
from tests.faults.chaos.producer import event, forced
from tests.faults.chaos.rules import AWS, DOOR, DOOR_LATE, S3, S3_LATE, SQS, Rules, at_rate
from tests.faults.chaos.system import BUCKET, System
from tests.faults.oracle import Upload, transcribed
from tests.patience import POLL_SECONDS

UNDER_FIRE = 4  # batch runs that may try while the faults go on
OUTAGE = "S3 503 for a while"
# Settings with which no chunk is heard with others: messages are received one by one.
ALONE = {"SESSION_FINISH": "combine", "GROUP_MESSAGES": "1", "WORKER_CONCURRENCY": "1"}
LOST = ("SQS receive done, answer lost", "SQS send done, answer lost", "SQS delete done, answer lost")
USERS = 5
LATE = 0.1  # of the requests that do not fail
QUEUED = 0.3  # of the events ask for the batch: there is work for worker and queue all the time


@dataclass(frozen=True)
class Shape:
    """How much of what. `seconds`: in which the uploads come; `spread`: in which the deliveries of one event do."""

    first: int = 1  # number of a session: those of one system differ
    sessions: int = 20
    chunks: int = 15  # of one session
    deliveries: int = 3
    seconds: float = 100.0
    spread: float = 15.0
    overwritten: int = 10
    late: int = 5  # manifests that come when all else is there
    worker_kills: int = 10
    server_kills: int = 5
    function_kills: int = 5
    outage_seconds: float = 60.0
    slow_down: float = 0.05


SMALL = Shape(
    sessions=4,
    chunks=6,
    seconds=8.0,
    spread=3.0,
    overwritten=2,
    late=1,
    worker_kills=1,
    server_kills=1,
    function_kills=1,
    outage_seconds=2.0,
)


@dataclass
class Storm:
    """What came of one. `heard`: by the words of a chunk version, how often the recognizer heard it."""

    seconds: float = 0.0
    chunks: int = 0
    uploads: int = 0
    uploaded_audio: int = 0
    deliveries: int = 0
    written: int = 0  # outputs, each time
    batches: int = 0
    done_under_fire: int = 0
    done: int = 0
    share: float = 0.0  # of the requests to AWS that failed
    outage_seconds: float = 0.0  # in which S3 answered nothing but 503
    wrong: list[str] = field(default_factory=list)
    kinds: Counter[str] = field(default_factory=Counter)
    heard: Counter[str] = field(default_factory=Counter)

    @property
    def again(self) -> int:
        """Deliveries of events beyond the first."""
        return self.deliveries - self.uploads


@contextmanager
def _watched(system: System, storm: Storm) -> Iterator[None]:
    """Every output that was written is judged, and, now that all is at rest, what there is of them."""
    began, heard, before = time.monotonic(), system.heard(), len(system.producer.uploads)
    watch = system.watch()
    yield
    uploads = system.producer.uploads
    storm.wrong += [*watch.wrong(uploads), *system.verdict()]
    storm.written = watch.written()
    uploads = uploads[before:]
    storm.uploads = len(uploads)
    storm.uploaded_audio = sum(upload.says is not None for upload in uploads)
    storm.chunks = len({upload.key for upload in uploads if upload.says})
    storm.done = transcribed(system.found(), uploads)
    storm.heard = system.heard() - heard
    storm.seconds = time.monotonic() - began


def chaos(system: System, shape: Shape, *, seed: int) -> Storm:
    """Everything at once: kills, an outage, throttling, lost answers, duplicates, overwrites, late manifests."""
    choice, storm = random.Random(seed), Storm()
    with _watched(system, storm):
        rules = at_rate({kind: AWS[kind] for kind in ("S3 SlowDown on PUT", "S3 SlowDown on GET")}, shape.slow_down)
        rules |= at_rate({kind: SQS[kind] for kind in LOST}, 0.2)
        system.aws.set(rules)
        attack = threading.Thread(target=_attack, args=(system, shape, storm, random.Random(f"{seed} attack")))
        outage = threading.Thread(target=_outage, args=(system, shape, rules, storm))
        for thread in (attack, outage):
            thread.start()
        storm.deliveries = _upload_all(system, shape, choice)
        for thread in (attack, outage):
            thread.join()
        system.settle()
        storm.done_under_fire = transcribed(system.found(), system.producer.uploads)
        storm.kinds.update(system.aws.fired())
        system.heal()
        storm.batches = system.rest()
    storm.kinds["chunk overwritten"] = shape.overwritten
    storm.kinds["manifest late"] = shape.late
    return storm


def duplicates(system: System, shape: Shape, *, seed: int) -> Storm:
    """The same uploads, each event several times in any order, and nothing else: no version is heard twice.

    So it is where chunks are heard `ALONE`: a pass over several is other work.
    """
    choice, storm = random.Random(seed), Storm()
    with _watched(system, storm):
        storm.deliveries = _upload_all(system, shape, choice)
        system.settle()
        storm.batches = system.rest()
    return storm


def aws(system: System, shape: Shape, *, seed: int, rate: float = 0.3) -> Storm:
    """AWS and the way to the server fail at `rate`; batch runs try meanwhile, and then one without faults."""
    choice, storm = random.Random(seed), Storm()
    with _watched(system, storm):
        system.aws.set(at_rate(AWS, rate) | at_rate(S3_LATE, LATE))
        system.door.set(at_rate(DOOR, rate) | at_rate(DOOR_LATE, LATE))
        storm.deliveries = _upload_all(system, shape, choice)
        system.settle()
        for _ in range(UNDER_FIRE):
            storm.done_under_fire = transcribed(system.found(), system.producer.uploads)
            if storm.done_under_fire == len({upload.key for upload in system.producer.uploads if upload.says}):
                break
            system.batch()
        storm.kinds.update(system.aws.fired())
        storm.kinds.update(system.door.fired())
        storm.share = system.aws.share(S3_LATE)
        system.heal()
        storm.batches = system.rest()
    return storm


def _upload_all(system: System, shape: Shape, choice: random.Random) -> int:
    """All sessions at the same time, chunks in any order, some again; how many deliveries that makes."""
    producer = system.producer
    sessions = {
        number: Session(f"user {number % USERS}", f"session {number // USERS}")  # of the same names
        for number in range(shape.first, shape.first + shape.sessions)
    }
    places = [(number, index) for number in sessions for index in range(1, shape.chunks + 1)]
    again = choice.sample(places, shape.overwritten)
    late = set(choice.sample(sorted(sessions), shape.late))
    steps = [(choice.uniform(0, 1), place, 1) for place in places]
    steps += [(choice.uniform(0, 1), (number, 0), 1) for number in sessions if number not in late]
    steps += [(1.0, place, 2) for place in again] + [(1.1, (number, 0), 1) for number in sorted(late)]
    # A chunk is recorded again at any time after it was.
    first = {place: at for at, place, _ in steps}
    steps = [(choice.uniform(first[place], 1) if version == 2 else at, place, version) for at, place, version in steps]
    began, deliveries = time.monotonic(), 0
    for at, (number, index), version in sorted(steps):
        time.sleep(max(0.0, began + at * shape.seconds - time.monotonic()))  # when the recorder is done with it
        session = sessions[number]
        if index:
            upload = producer.chunk(session, (number, index, version))
        else:
            upload = producer.manifest(session, shape.chunks)
        _announce(system, upload, shape, choice, QUEUED if index else 0.0)
        deliveries += shape.deliveries
    return deliveries


def _announce(system: System, upload: Upload, shape: Shape, choice: random.Random, queued: float) -> None:
    made = (forced if choice.random() < queued else event)(BUCKET, upload)
    for _ in range(shape.deliveries):
        system.lambdas.invoke(made, after=choice.uniform(0, shape.spread))


def _outage(system: System, shape: Shape, rules: Rules, storm: Storm) -> None:
    """In the midst of the uploads; afterwards the other `rules` hold again."""
    time.sleep(0.3 * shape.seconds)  # the moment itself
    system.aws.set({OUTAGE: {"service": "s3", "error": S3["S3 503 on HEAD"]["error"]}})
    began = time.monotonic()
    time.sleep(shape.outage_seconds)  # how long it lasts
    storm.outage_seconds = time.monotonic() - began
    system.aws.set(rules)


def _attack(system: System, shape: Shape, storm: Storm, choice: random.Random) -> None:
    """Kills at random moments while the uploads come."""
    kills = {"kill -9 of the worker": shape.worker_kills, "kill -9 of the server": shape.server_kills}
    kills |= {"kill -9 of a function": shape.function_kills}
    steps = [(choice.uniform(0.05, 1.0), kind) for kind, times in kills.items() for _ in range(times)]
    began = time.monotonic()
    for at, kind in sorted(steps):
        time.sleep(max(0.0, began + at * shape.seconds - time.monotonic()))  # the moment itself
        match kind:
            case "kill -9 of the worker":
                storm.kinds[kind] += _struck(system.worker.kill, shape.spread)
            case "kill -9 of the server":
                storm.kinds[kind] += _struck(system.server.kill, shape.spread)
            case "kill -9 of a function":
                storm.kinds[kind] += _struck(partial(system.lambdas.kill, choice), shape.spread)


def _struck(kill: Callable[[], bool], seconds: float) -> bool:
    """The next one that runs, or is at work; False if there is none in so many seconds."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if kill():
            return True
        time.sleep(POLL_SECONDS)
    return False
