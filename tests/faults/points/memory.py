"""The in-memory world of one run: a bucket, three queues, a bus; and ports to them that fail where the plan says."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TypeVar

from gpu_server.service import Service
from gpu_server.transcriber import Transcriber
from shared.combine import SessionTranscribed
from shared.errors import StoreUnavailable, TransientError
from shared.jobs import Job, Reason
from shared.queues import Backlog, Message, QueueUnavailable
from shared.store import ABSENT, ObjectInfo, Store, StoredObject
from tests.fakes import MemoryQueue, MemoryStore
from tests.faults.oracle import REPORTS, Found, Upload, regressions, wrong_outcome, wrong_session
from tests.faults.points.fleet import Clients, MemoryFleet
from tests.faults.points.house import Door, House, samples_saying, serve
from tests.faults.points.plan import Life, Plan
from tests.faults.points.stage import NUMBERS

T = TypeVar("T")
LEASE_SECONDS = 120


@dataclass
class Clock:
    """Seconds pass when a long poll finds nothing, and when the stage says so."""

    now: float = 0.0

    def __call__(self) -> float:
        return self.now


@dataclass
class MemoryWorld:
    """What no crash takes away."""

    plan: Plan
    transcriber: Transcriber
    workspace: Path
    store: MemoryStore = field(default_factory=MemoryStore)
    clock: Clock = field(default_factory=Clock)

    def __post_init__(self) -> None:
        self.bucket = self.store.bucket
        self.uploads: list[Upload] = []
        self.wrong: list[str] = []
        self.store.hook = self._watch
        self._written: dict[str, bytes] = {}
        self.house = House(self.plan, self._serve)
        self.fleet = MemoryFleet(self.wrong)
        self.group = "group"
        self.dead_letters = MemoryQueue("memory/dlq", clock=self.clock, at_once=-1)
        self.failures = MemoryQueue("memory/failures", clock=self.clock, at_once=-1)
        self.jobs = MemoryQueue(
            "memory/jobs", clock=self.clock, at_once=-1, dead_letters=self.dead_letters, most_receives=5
        )

    def put(self, key: str, body: bytes) -> str:
        return self.store.upload(key, body)

    def found(self) -> Found:
        objects = {key: StoredObject(body, info.etag) for key, (body, info) in self.store.objects.items()}
        queues = (self.jobs, self.failures, self.dead_letters)
        hidden = [message for queue in queues for message in (*queue.held.values(), *queue.delayed.values())]
        visible = [message for queue in queues for message in queue.visible]
        return Found(self.bucket, objects, [message.body for message in (*visible, *hidden)])

    def let_leases_end(self) -> None:
        self.clock.now += LEASE_SECONDS

    def audio_of(self, chunk: int) -> bytes:
        return samples_saying(NUMBERS[chunk])

    def instances(self) -> list[str]:
        return list(self.fleet.members)

    def finish(self, instance: str) -> None:
        self.fleet.end(instance)

    def clients_for(self, life: Life) -> Clients:
        return self.fleet.clients_for(life)

    def send(self, name: str, body: str) -> None:
        self._queue(name).send_raw(body)

    def server_for(self, life: Life) -> Door:
        return Door(self.house, life)

    def store_for(self, life: Life) -> "FaultyStore":
        return FaultyStore(self.store, life)

    def queue_for(self, life: Life, name: str) -> "FaultyQueue":
        return FaultyQueue(self._queue(name), self.clock, life)

    def publisher_for(self, life: Life) -> Callable[[SessionTranscribed], None]:
        def publish(event: SessionTranscribed) -> None:
            life.call("PutEvents", lambda: None, partial(TransientError, "the event bus did not take it"))

        return publish

    def _watch(self, call: str, key: str, moment: str) -> None:
        """What is written is right at any instant, and never older than what it replaces."""
        if (call, moment) != ("put", "after"):
            return
        body, before = self.store.objects[key][0], self._written.get(key)
        self._written[key] = body
        name = f"{key.rpartition('/')[2]} when it was written"
        if key.endswith(".json") and not key.startswith(REPORTS):
            look = wrong_outcome if "-chunk-" in key else wrong_session
            self.wrong += [f"{name}: {wrong}" for wrong in look(key, body, self.uploads)]
            if before is not None:
                self.wrong += [f"{name}: {wrong}" for wrong in regressions(key, before, body, self.uploads)]

    def _queue(self, name: str) -> MemoryQueue:
        return {"jobs": self.jobs, "failures": self.failures, "dlq": self.dead_letters}[name]

    def _serve(self, life: Life) -> Service:
        return serve(self.store_for(life), self.publisher_for(life), self.transcriber, self.workspace)


@dataclass
class FaultyStore(Store):
    """`Store`, one life's way to the bucket."""

    inner: MemoryStore
    life: Life

    @property
    def bucket(self) -> str:
        return self.inner.bucket

    def head(self, key: str) -> ObjectInfo | None:
        return self._call(f"HeadObject {key}", lambda: self.inner.head(key))

    def get(self, key: str) -> StoredObject | None:
        return self._call(f"GetObject {key}", lambda: self.inner.get(key))

    def download(self, key: str, target: Path, *, etag: str) -> bool:
        return self._call(f"GetObject {key}", lambda: self.inner.download(key, target, etag=etag))

    def put(
        self,
        key: str,
        body: bytes,
        *,
        content_type: str,
        if_match: str = ABSENT,
        metadata: dict[str, str] | None = None,
    ) -> str:
        put = partial(self.inner.put, key, body, content_type=content_type, if_match=if_match, metadata=metadata)
        return self._call(f"PutObject {key}", put)

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        yield from self._call(f"ListObjectsV2 {prefix}", lambda: self.inner.list(prefix, after=after))

    def _call(self, name: str, do: Callable[[], T]) -> T:
        return self.life.call(name, do, partial(StoreUnavailable, "S3: ConnectionClosedError"))


@dataclass
class FaultyQueue:
    """`Queue`, one life's way to it."""

    inner: MemoryQueue
    clock: Clock
    life: Life

    @property
    def url(self) -> str:
        return self.inner.url

    def send(self, job: Job, reason: Reason, *, delay: int = 0) -> None:
        self._call("SendMessage", lambda: self.inner.send(job, reason, delay=delay))

    def send_raw(self, body: str, *, delay: int = 0, attributes: dict[str, str] | None = None) -> None:
        self._call("SendMessage", lambda: self.inner.send_raw(body, delay=delay, attributes=attributes))

    def send_all(self, jobs: Sequence[Job], reason: Reason) -> None:
        self._call("SendMessageBatch", lambda: self.inner.send_all(jobs, reason))

    def receive(self, *, most: int, wait: int, visibility: int) -> list[Message]:
        def receive() -> list[Message]:
            messages = self.inner.receive(most=most, wait=wait, visibility=visibility)
            if not messages:
                self.clock.now += wait
            return messages

        return self._call("ReceiveMessage", receive)

    def extend(self, message: Message, seconds: int) -> None:
        self._call("ChangeMessageVisibility", lambda: self.inner.extend(message, seconds))

    def delete(self, message: Message) -> None:
        self._call("DeleteMessage", lambda: self.inner.delete(message))

    def delete_all(self, messages: Sequence[Message]) -> None:
        if messages:
            self._call("DeleteMessageBatch", lambda: self.inner.delete_all(messages))

    def backlog(self) -> Backlog:
        return self._call("GetQueueAttributes", self.inner.backlog)

    def _call(self, action: str, do: Callable[[], T]) -> T:
        name = f"{action} {self.url.rpartition('/')[2]}"
        return self.life.call(name, do, partial(QueueUnavailable, "SQS: ConnectionClosedError"))
