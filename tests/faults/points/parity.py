"""The in-memory ports beside the real ones on a real or local AWS: the same calls, the same answers, the same errors.

The pairs of faults rest on `tests.fakes` and `fleet`, the schedules on the simulation's own ports: none of them may be
kinder than S3, SQS and Auto Scaling are. What is not compared, since AWS promises less or something else than an
emulator does (the in-memory ports do as AWS documents):

- SQS promises no order, and a short poll may miss messages: whole queues are received, and compared as sets.
- Deleting with a receipt that a later receive has replaced: AWS says yes and may delete nothing, MiniStack refuses,
  moto deletes. In memory nothing is deleted; in the simulation sometimes it is.
- Deleting once more what is deleted: AWS and moto say yes, MiniStack refuses. In memory it is well.
- Changing the visibility of a message whose lease is over: AWS refuses (MessageNotInflight), both emulators hide it
  again. In memory it is refused.
- More instances than a group may have: AWS and MiniStack refuse, moto starts them. In memory it is refused.
- Ending an instance that has ended: AWS and MiniStack refuse, moto breaks. In memory it is refused.
- Groups are not made smaller than they are: the launcher never does, and which instances would go is nobody's promise.
- S3 gives times to the second. In `MemoryStore` no two writes are of the same second, unless a test says so.
- How long a job's audio is, for the launcher alone: in memory no message says it, so that jobs here have no size.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, partial
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any, ClassVar
from uuid import uuid4

import boto3
from botocore.exceptions import ClientError
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from batch_worker.group import Group, Standing
from batch_worker.instance import Instance, Member, membership
from infra.local import stack
from shared.jobs import Job, Reason
from shared.queues import Message, Queue, QueueUnavailable
from shared.store import ABSENT, CLIENT_CONFIG, Changed, ObjectInfo, PreconditionFailed, S3Store, Store
from tests.fakes import MemoryQueue, MemoryStore
from tests.faults.points.fleet import LARGEST, Clients, MemoryFleet, new_group, new_template
from tests.faults.points.plan import Life, Plan
from tests.faults.simulation.faults import Faults
from tests.faults.simulation.ports import SimQueue, SimStore
from tests.faults.simulation.scheduler import NEVER, Process, Scheduler
from tests.faults.simulation.threads import Task

KEYS = ("a", "a/b", "a/b c", "a/b+c", "a/é", "a/☕", "A", "b%20c", "a/b/metadata.json")
PREFIXES = ("", "a", "a/", "a/b", "b%", "none")
BODIES = (b"", b"1", b"2")
MOST_RECEIVES = 3
LONG = 600  # seconds: longer than any test
BUCKET = "parity-bucket"
REGION = "us-east-1"
MESSAGES = 8  # in a queue: fewer than one receive may bring


@dataclass(frozen=True)
class Cloud:
    """boto3's clients of an AWS, real or not. `is_moto`: see above."""

    s3: Any
    sqs: Any
    fleet: Clients
    is_moto: bool


def cloud_at(endpoint: str | None) -> Cloud:
    """With a bucket for `StoreMachine`. None: where AWS is, or what stands in its place."""
    session = boto3.Session(stack.ACCOUNT, stack.SECRET, region_name=REGION, botocore_session=None)
    services = ("s3", "sqs", *Clients._fields)
    s3, sqs, *others = (session.client(name, endpoint_url=endpoint, config=CLIENT_CONFIG) for name in services)  # type: ignore[call-overload]
    s3.create_bucket(Bucket=BUCKET)
    return Cloud(s3, sqs, Clients(*others), is_moto=endpoint is None)


def compare(machine: type["StoreMachine | QueueMachine | FleetMachine"], cloud: Cloud, how_long: settings) -> None:
    """Random sequences of calls; raises AssertionError with the shortest that is answered differently."""
    here = type(machine.__name__, (machine,), {"cloud": cloud})
    run_state_machine_as_test(here, settings=settings(how_long, deadline=None, database=None))


class StoreMachine(RuleBasedStateMachine):
    """`MemoryStore` beside `S3Store`, each example under a prefix of its own."""

    cloud: ClassVar[Cloud]

    def __init__(self) -> None:
        super().__init__()
        self.memory, self.real = self.in_memory(), S3Store(self.cloud.s3, BUCKET)
        self.root = f"{uuid4().hex}/"
        self.etags: list[str] = ["0" * 32]

    @staticmethod
    def in_memory() -> Any:
        return MemoryStore(BUCKET)

    def both(self, call: Callable[[Store], Any]) -> Any:
        answers = [_answer(call, store) for store in (self.memory, self.real)]
        assert answers[0] == answers[1]
        return answers[0]

    @rule(key=st.sampled_from(KEYS), body=st.sampled_from(BODIES))
    def upload(self, key: str, body: bytes) -> None:
        self.memory.upload(self.root + key, body)
        self.cloud.s3.put_object(Bucket=BUCKET, Key=self.root + key, Body=body)
        info = self.both(lambda store: _told(store.head(self.root + key)))
        self.etags.append(info[1])

    @rule(key=st.sampled_from(KEYS))
    def delete(self, key: str) -> None:
        self.memory.delete(self.root + key)
        self.cloud.s3.delete_object(Bucket=BUCKET, Key=self.root + key)

    @rule(
        key=st.sampled_from(KEYS),
        body=st.sampled_from(BODIES),
        which=st.sampled_from(("absent", "current", "some")),
        metadata=st.sampled_from((None, {"view": "v 1", "live": "0"})),
        data=st.data(),
    )
    def put(self, key: str, body: bytes, which: str, metadata: dict[str, str] | None, data: st.DataObject) -> None:
        info = self.memory.head(self.root + key)
        if_match = ABSENT
        if which != "absent":
            if_match = info.etag if info and which == "current" else data.draw(st.sampled_from(self.etags))
        etag = self.both(
            lambda store: store.put(
                self.root + key, body, content_type="text/plain", if_match=if_match, metadata=metadata
            )
        )
        if isinstance(etag, str):
            self.etags.append(etag)
            self._list(self.root + key)  # which tells no metadata

    @rule(key=st.sampled_from(KEYS))
    def get(self, key: str) -> None:
        self.both(lambda store: store.get(self.root + key))

    @rule(key=st.sampled_from(KEYS))
    def head(self, key: str) -> None:
        self.both(lambda store: _told(store.head(self.root + key)))

    @rule(key=st.sampled_from(KEYS), which=st.sampled_from(("current", "some")), data=st.data())
    def download(self, key: str, which: str, data: st.DataObject) -> None:
        info = self.memory.head(self.root + key)
        etag = info.etag if info and which == "current" else data.draw(st.sampled_from(self.etags))

        def download(store: Store) -> tuple[bool, bytes]:
            with TemporaryDirectory() as folder:
                target = Path(folder, "audio")
                there = store.download(self.root + key, target, etag=etag)
                return there, target.read_bytes() if there else b""

        self.both(download)

    @rule(prefix=st.sampled_from(PREFIXES), after=st.one_of(st.just(""), st.sampled_from(KEYS)))
    def list(self, prefix: str, after: str) -> None:
        self._list(self.root + prefix, after=after and self.root + after)

    def _list(self, prefix: str, *, after: str = "") -> None:
        self.both(lambda store: [_told(info) for info in store.list(prefix, after=after)])


class SimStoreMachine(StoreMachine):
    """`SimStore` beside `S3Store`."""

    @staticmethod
    def in_memory() -> Any:
        return Calm().store()


def _answer(call: Callable[[Any], Any], port: Any) -> Any:
    """What it returns, or the error that its callers act on."""
    try:
        return call(port)
    except (PreconditionFailed, Changed, QueueUnavailable) as error:
        return type(error)
    except ClientError as error:
        return error.response["Error"]["Code"]


def _told(info: ObjectInfo | None) -> tuple[Any, ...] | None:
    """All but the time."""
    return (info.key, info.etag, info.size, info.metadata) if info else None


class Calm:
    """A schedule without faults, for the simulation's ports: each call is its only actor, until it is over."""

    def __init__(self) -> None:
        self.scheduler = Scheduler(Random(0), change_gap=1.0, limit=NEVER)
        self._faults = Faults(self.scheduler, Random(0))

    def store(self) -> Any:
        return _Alone(SimStore(self.scheduler, self._faults, _Disk()), self.scheduler)

    def queue(self, *, dead_letters: Any = None) -> Any:
        letters = dead_letters and dead_letters.port
        queue = SimQueue("q", self.scheduler, self._faults, dead_letters=letters, max_receives=MOST_RECEIVES)
        return _Alone(queue, self.scheduler)


@dataclass(frozen=True)
class _Alone:
    port: Any
    scheduler: Scheduler

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            task = Task(self.scheduler, Process("alone"), partial(getattr(self.port, name), *arguments, **named))
            self.scheduler.run()
            return task.result()

        return call


class _Disk(dict[Any, bytes]):
    """A folder on the simulation's stage that is one of this machine's."""

    def __setitem__(self, path: Path, body: bytes) -> None:
        path.write_bytes(body)


@dataclass(frozen=True)
class Twin:
    """One message, as the last receive gave it."""

    memory: Message
    real: Message


class QueueMachine(RuleBasedStateMachine):
    """`MemoryQueue` beside `Queue`, each example with a queue and a dead-letter queue of its own."""

    cloud: ClassVar[Cloud]
    held = Bundle("held")
    deleted = Bundle("deleted")

    def __init__(self) -> None:
        super().__init__()
        memory, dead = self.in_memory()
        self.dead = dead, new_queue(self.cloud)
        self.memory, self.real = memory, new_queue(self.cloud, dead_letters=self.dead[1])
        self.sent = 0

    @staticmethod
    def in_memory() -> tuple[Any, Any]:
        """The queue, and its dead letters."""
        dead = MemoryQueue("dead", at_once=0)
        return MemoryQueue(at_once=0, dead_letters=dead, most_receives=MOST_RECEIVES), dead

    def both(self, call: Callable[[Queue], Any]) -> Any:
        answers = [_answer(call, queue) for queue in (self.memory, self.real)]
        assert answers[0] == answers[1]
        return answers[0]

    @precondition(lambda self: self.sent < MESSAGES)
    @rule(delay=st.sampled_from((0, 0, 900)), attributes=st.sampled_from((None, {"reason": "ü"})))
    def send(self, delay: int, attributes: dict[str, str] | None) -> None:
        [job] = self._jobs(1)
        self.both(lambda queue: queue.send_raw(job.model_dump_json(), delay=delay, attributes=attributes))

    @precondition(lambda self: self.sent < MESSAGES)
    @rule(delay=st.sampled_from((0, 900)))
    def send_job(self, delay: int) -> None:
        [job] = self._jobs(1)
        self.both(lambda queue: queue.send(job, Reason.FORCED, delay=delay))

    @precondition(lambda self: self.sent < MESSAGES)
    @rule(data=st.data())
    def send_all(self, data: st.DataObject) -> None:
        jobs = self._jobs(data.draw(st.integers(1, MESSAGES - self.sent)))
        self.both(lambda queue: queue.send_all(jobs, Reason.SWEPT))

    @rule(target=held)
    def receive(self) -> Any:
        return multiple(*_receive(self.memory, self.real))

    @rule()
    def receive_dead(self) -> None:
        """And give them back; how often they were received before is not told the same everywhere."""
        for twin in _receive(*self.dead, counts=False):
            self.dead[0].extend(twin.memory, 0)
            self.dead[1].extend(twin.real, 0)

    @rule(target=held, twin=consumes(held))
    def keep(self, twin: Twin) -> Twin:
        self._both_with(twin, lambda queue, message: queue.extend(message, LONG))
        return twin

    @rule(twin=consumes(held))
    def give_back(self, twin: Twin) -> None:
        self._both_with(twin, lambda queue, message: queue.extend(message, 0))

    @rule(target=deleted, twin=consumes(held))
    def delete(self, twin: Twin) -> Twin:
        self._both_with(twin, lambda queue, message: queue.delete(message))
        return twin

    @rule(target=deleted, first=consumes(held), second=consumes(held), stranger=st.booleans())
    def delete_all(self, first: Twin, second: Twin, stranger: bool) -> Any:
        strangers = [Message("x", "no receipt", "", 1)] if stranger else []
        answers = [
            _answer(lambda queue: queue.delete_all([*strangers, first.memory, second.memory]), self.memory),
            _answer(lambda queue: queue.delete_all([*strangers, first.real, second.real]), self.real),
        ]
        assert answers == [QueueUnavailable if stranger else None] * 2
        return multiple(first, second)

    @rule(twin=deleted)
    def keep_what_is_gone(self, twin: Twin) -> None:
        self._both_with(twin, lambda queue, message: queue.extend(message, LONG))

    @rule()
    def count(self) -> None:
        self.both(lambda queue: queue.backlog())

    def _jobs(self, count: int) -> list[Job]:
        """New ones."""
        self.sent += count
        numbers = range(self.sent - count, self.sent)
        return [Job(bucket=BUCKET, key=f"users/ann/audio/{number}é.webm", etag="e") for number in numbers]

    def _both_with(self, twin: Twin, call: Callable[[Any, Message], Any]) -> None:
        answers = [
            _answer(lambda queue: call(queue, twin.memory), self.memory),
            _answer(lambda queue: call(queue, twin.real), self.real),
        ]
        assert answers[0] == answers[1]


class SimQueueMachine(QueueMachine):
    """`SimQueue` beside `Queue`."""

    @staticmethod
    def in_memory() -> tuple[Any, Any]:
        calm = Calm()
        dead = calm.queue()
        return calm.queue(dead_letters=dead), dead


def _receive(memory: Any, real: Queue, *, counts: bool = True) -> Iterator[Twin]:
    """Everything that is visible, from both."""
    sides = [
        {_timeless(message.body): message for message in queue.receive(most=10, wait=0, visibility=LONG)}
        for queue in (memory, real)
    ]
    told = [
        {body: (message.receive_count if counts else 0, dict(message.attributes)) for body, message in side.items()}
        for side in sides
    ]
    assert told[0] == told[1]
    for body in sorted(sides[0]):
        yield Twin(sides[0][body], sides[1][body])


def _timeless(body: str) -> str:
    """A job's message says when it was sent."""
    return json.dumps({name: value for name, value in json.loads(body).items() if name != "queued_at"})


class FleetMachine(RuleBasedStateMachine):
    """`MemoryFleet` beside a real group, each example with one of its own, through what our programs ask of them.

    `twins`: the ids of an instance there and here; those that have ended stay.
    """

    cloud: ClassVar[Cloud]

    def __init__(self) -> None:
        super().__init__()
        memory = MemoryFleet().clients_for(Life(Plan(), "parity"))
        real = self.cloud.fleet
        name = new_group(real.autoscaling, _template(real.ec2))
        self.groups = Group(memory.autoscaling, memory.ec2, "group"), Group(real.autoscaling, real.ec2, name)
        self.twins: list[tuple[str, str]] = []

    @rule(more=st.integers(0, LARGEST))
    def grow(self, more: int) -> None:
        capacity = len(self._standing(0).instances) + more
        if capacity > LARGEST and self.cloud.is_moto:
            return
        answers = [_answer(lambda group: group.set_desired(capacity), group) for group in self.groups]
        assert answers[0] == answers[1]
        fresh = [
            sorted({one.id for one in self._standing(side).instances} - {twin[side] for twin in self.twins})
            for side in (0, 1)
        ]
        self.twins += zip(*fresh, strict=True)

    @rule()
    def look(self) -> None:
        there, here = (self._standing(side) for side in (0, 1))
        assert (there.desired, there.smallest, there.largest) == (here.desired, here.smallest, here.largest)
        assert self._numbered(0, there) == self._numbered(1, here)

    @precondition(lambda self: self._known())
    @rule(data=st.data())
    def end(self, data: st.DataObject) -> None:
        self._both(data, lambda member: member.end())

    @precondition(lambda self: self._known())
    @rule(data=st.data(), protected=st.booleans())
    def protect(self, data: st.DataObject, protected: bool) -> None:
        self._both(data, lambda member: member.protect(protected))

    @precondition(lambda self: self._known())
    @rule(data=st.data())
    def membership(self, data: st.DataObject) -> None:
        self._both(data, lambda member: bool(membership(member.client, Instance(member.id, "", ""))))

    @precondition(lambda self: self._known())
    @rule()
    def working(self) -> None:
        there, here = (self._member(side, self.twins[0]).working() for side in (0, 1))
        assert [a in there for a, _ in self.twins] == [b in here for _, b in self.twins]

    def _both(self, data: st.DataObject, call: Callable[[Member], Any]) -> None:
        twin = data.draw(st.sampled_from(self._known()))
        answers = [call(self._member(side, twin)) for side in (0, 1)]
        assert answers[0] == answers[1]

    def _known(self) -> list[tuple[str, str]]:
        """The twins that both sides can be asked about."""
        alive = {one.id for one in self._standing(0).instances}
        return [twin for twin in self.twins if twin[0] in alive or not self.cloud.is_moto]

    def _member(self, side: int, twin: tuple[str, str]) -> Member:
        group = self.groups[side]
        return Member(group.autoscaling, twin[side], group.name)

    def _standing(self, side: int) -> Standing:
        return self.groups[side].look(datetime.now(UTC))

    def _numbered(self, side: int, standing: Standing) -> dict[int, bool]:
        """Which of the twins are there, and whether they are protected."""
        numbers = {twin[side]: number for number, twin in enumerate(self.twins)}
        return {numbers[one.id]: one.protected for one in standing.instances}


@cache
def _template(ec2: Any) -> str:
    """One for all groups of a cloud."""
    return new_template(ec2)


def new_queue(cloud: Cloud, *, dead_letters: Queue | None = None) -> Queue:
    attributes = {}
    if dead_letters:
        answer = cloud.sqs.get_queue_attributes(QueueUrl=dead_letters.url, AttributeNames=["QueueArn"])
        arn = answer["Attributes"]["QueueArn"]
        attributes = {"RedrivePolicy": f'{{"deadLetterTargetArn": "{arn}", "maxReceiveCount": {MOST_RECEIVES}}}'}
    made = cloud.sqs.create_queue(QueueName=uuid4().hex, Attributes=attributes)
    return Queue(cloud.sqs, made["QueueUrl"])


MACHINES = (StoreMachine, SimStoreMachine, QueueMachine, SimQueueMachine, FleetMachine)
