"""In-memory ports for unit tests. They stand at the edge (S3, SQS, a server), never in place of our own code."""

import hashlib
import itertools
import math
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

from shared.chunk_writer import write_transcript
from shared.jobs import Job, JobMessage, Reason
from shared.keys import ChunkKey, parse_key
from shared.outcomes import standing
from shared.queues import MAX_BATCH, MAX_RECEIVE, Backlog, Message, QueueUnavailable
from shared.server import Answer, Health, Limits, Said, Work
from shared.store import ABSENT, Changed, ObjectInfo, PreconditionFailed, Store, StoredObject
from shared.transcript import ObjectRef, Segment, Transcript, Word

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class MemoryStore(Store):
    """`Store` with S3's semantics. `trace` counts calls; `hook(name, key, "before"|"after")` may raise or write."""

    def __init__(self, bucket: str = "audio-bucket") -> None:
        self.bucket = bucket
        self.objects: dict[str, tuple[bytes, ObjectInfo]] = {}
        self.trace: list[tuple[str, str]] = []
        self.hook: Callable[[str, str, str], None] = lambda *_: None
        self._clock = itertools.count()
        self._lock = threading.RLock()

    def upload(self, key: str, body: bytes = b"audio") -> str:
        """Write unconditionally, as a producer does; returns the ETag."""
        with self._lock:
            return self._write(key, body, {})

    def delete(self, key: str) -> None:
        self.objects.pop(key, None)

    def head(self, key: str) -> ObjectInfo | None:
        with self._call("head", key):
            return self.objects[key][1] if key in self.objects else None

    def get(self, key: str) -> StoredObject | None:
        with self._call("get", key):
            if key not in self.objects:
                return None
            body, info = self.objects[key]
            return StoredObject(body, info.etag)

    def download(self, key: str, target: Path, *, etag: str) -> bool:
        with self._call("download", key):
            if key not in self.objects:
                return False
            body, info = self.objects[key]
            if info.etag != etag:
                raise Changed(key)
            target.write_bytes(body)
            return True

    def put(
        self, key: str, body: bytes, *, content_type: str, if_match: str, metadata: dict[str, str] | None = None
    ) -> str:
        with self._call("put", key):
            current = self.objects[key][1].etag if key in self.objects else ABSENT
            if current != if_match:
                raise PreconditionFailed(key)
            return self._write(key, body, metadata or {})

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        with self._call("list", prefix):
            items = sorted(self.objects.items())
            found = [  # a listing tells no metadata
                replace(info, metadata={}) for key, (_, info) in items if key.startswith(prefix) and key > after
            ]
        return iter(found)

    def _write(self, key: str, body: bytes, metadata: dict[str, str]) -> str:
        etag = hashlib.md5(body, usedforsecurity=False).hexdigest()
        when = EPOCH + timedelta(seconds=next(self._clock))
        self.objects[key] = (body, ObjectInfo(key, etag, len(body), when, metadata))
        return etag

    def _call(self, name: str, key: str) -> "_Call":
        return _Call(self, name, key)


@dataclass
class _Call:
    store: MemoryStore
    name: str
    key: str

    def __enter__(self) -> None:
        self.store.trace.append((self.name, self.key))
        self.store.hook(self.name, self.key, "before")
        self.store._lock.acquire()

    def __exit__(self, type: object, *_: object) -> None:
        self.store._lock.release()
        if type is None:
            self.store.hook(self.name, self.key, "after")


@dataclass
class MemoryQueue:
    """`Queue` with SQS's semantics, as AWS documents them. `broken`: every call fails.

    By `clock` (seconds) it knows when what is held or delayed may be received again. By itself time stands still, and
    `at_once` seconds or less pass at once: nobody waits for a message that is given back.

    A message that was received `most_receives` times goes to `dead_letters` instead of being received once more.
    """

    url: str = "memory/jobs"
    sent: list[tuple[str, int]] = field(default_factory=list)
    attributes: list[dict[str, str]] = field(default_factory=list)
    visible: list[Message] = field(default_factory=list)  # each with the receipt of its last receive
    held: dict[str, Message] = field(default_factory=dict)  # by receipt
    delayed: dict[str, Message] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)
    broken: bool = False
    clock: Callable[[], float] = lambda: 0.0
    at_once: int = 60
    dead_letters: "MemoryQueue | None" = None
    most_receives: int = 1000
    _due: dict[str, float] = field(default_factory=dict, init=False)  # when a receipt's message is visible again
    _receipts: set[str] = field(default_factory=set, init=False)  # all that were ever given
    _lock: Any = field(default_factory=threading.RLock, init=False, repr=False)

    def send(self, job: Job, reason: Reason, *, delay: int = 0) -> None:
        self.send_raw(JobMessage.of(job, reason).to_json(), delay=delay)

    def send_raw(self, body: str, *, delay: int = 0, attributes: dict[str, str] | None = None) -> None:
        with self._call():
            self.sent.append((body, delay))
            self.attributes.append(attributes or {})
            name = f"m{len(self.sent)}"
            message = Message(name, name, body, 0, attributes or {}, EPOCH)
            if delay:
                self._hide(self.delayed, message, delay)
            else:
                self.visible.append(message)

    def send_all(self, jobs: Sequence[Job], reason: Reason) -> None:
        assert len(jobs) <= MAX_BATCH
        for job in jobs:
            self.send(job, reason)

    def receive(self, *, most: int, wait: int, visibility: int) -> list[Message]:
        with self._call():
            self._bury()
            most = min(most, MAX_RECEIVE)
            taken, self.visible = self.visible[:most], self.visible[most:]
            received = []
            for message in taken:
                count = message.receive_count + 1
                received.append(replace(message, receive_count=count, receipt=f"{message.id}, receive {count}"))
            for message in received:
                self._receipts.add(message.receipt)
                self._hide(self.held, message, visibility)
            return received

    def extend(self, message: Message, seconds: int) -> None:
        with self._call():
            if message.receipt not in self.held:
                raise QueueUnavailable(f"{message.id} is not in flight by this receipt")
            if seconds <= self.at_once:
                self.visible.append(self.held.pop(message.receipt))
            else:
                self._hide(self.held, message, seconds)

    def delete(self, message: Message) -> None:
        """A receipt from before the last receive deletes nothing, and SQS does not say so."""
        with self._call():
            if message.receipt not in self._receipts:
                raise QueueUnavailable(f"{message.receipt} is no receipt")
            left = [one for one in self.visible if one.receipt != message.receipt]  # its lease is over, it is not
            if self.held.pop(message.receipt, None) or len(left) < len(self.visible):
                self.visible = left
                self.deleted.append(message.id)

    def delete_all(self, messages: Sequence[Message]) -> None:
        refused: list[QueueUnavailable] = []
        for message in messages:
            try:
                self.delete(message)
            except QueueUnavailable as error:
                refused.append(error)
        if refused:
            raise refused[0]

    def backlog(self) -> Backlog:
        with self._call():
            return Backlog(len(self.visible), len(self.held), len(self.delayed))

    def reasons(self) -> list[Reason]:
        return [JobMessage.model_validate_json(body).reason for body, _ in self.sent]

    @contextmanager
    def _call(self) -> Iterator[None]:
        with self._lock:
            if self.broken:
                raise QueueUnavailable("SQS is down")
            for hidden in (self.held, self.delayed):
                for receipt in [receipt for receipt in hidden if self._due.get(receipt, math.inf) <= self.clock()]:
                    self.visible.append(hidden.pop(receipt))
            yield

    def _hide(self, among: dict[str, Message], message: Message, seconds: int) -> None:
        among[message.receipt] = message
        self._due[message.receipt] = self.clock() + seconds

    def _bury(self) -> None:
        if self.dead_letters is not None:
            dead = [message for message in self.visible if message.receive_count >= self.most_receives]
            self.visible = [message for message in self.visible if message.receive_count < self.most_receives]
            self.dead_letters.visible += dead


@dataclass
class ScriptedServer:
    """A server at the client's door that gives `answers` in turn (the last one for ever).

    A DONE it gives is true: it writes the transcript first, unless `lies`. A stitched pass leaves out the keys in
    `deaf_to`.
    """

    store: MemoryStore
    answers: list[Answer] = field(default_factory=lambda: [Answer(Said.DONE, 200)])
    ready: Health = Health(ready=True, alive=True)
    lies: bool = False
    url: str = "http://server"
    calls: list[tuple[Job, bool]] = field(default_factory=list)
    called_new: list[bool] = field(default_factory=list)
    called_alone: list[bool] = field(default_factory=list)
    session_answers: list[Answer] = field(default_factory=lambda: [Answer(Said.DONE, 200)])
    session_calls: list[tuple[Sequence[Job] | str, bool]] = field(default_factory=list)
    deaf_to: set[str] = field(default_factory=set)
    of_others: Work = Work(ended=0, in_flight=0)

    def work(self, limits: Limits) -> Work | None:
        own = len(self.calls) + len(self.session_calls)
        return replace(self.of_others, ended=self.of_others.ended + own)

    def health(self, limits: Limits) -> Health:
        return self.ready

    def transcribe(
        self, job: Job, limits: Limits, *, route: str, wait: bool = True, new: bool = False, alone: bool = False
    ) -> Answer:
        self.calls.append((job, wait))
        self.called_new.append(new)
        self.called_alone.append(alone)
        answer = self.answers[min(len(self.calls), len(self.answers)) - 1]
        if answer.said is Said.DONE and not self.lies and standing(self.store, job).is_open:
            self.store.upload(job.output_key, transcript_for(job).to_json())
        return answer

    def transcribe_session(self, what: Sequence[Job] | str, limits: Limits, *, route: str, wait: bool = True) -> Answer:
        self.session_calls.append((what, wait))
        answer = self.session_answers[min(len(self.session_calls), len(self.session_answers)) - 1]
        if answer.said is Said.DONE and not self.lies:
            for job in self._chunks_under(what) if isinstance(what, str) else what:
                if job.key not in self.deaf_to:
                    write_transcript(self.store, job, partial(transcript_for, job, stitched=True), stitched=True)
        return answer

    def _chunks_under(self, path: str) -> list[Job]:
        prefix = path.removeprefix(f"s3://{self.store.bucket}/")
        infos = [info for key, (_, info) in self.store.objects.items() if key.startswith(prefix)]
        jobs = [Job(bucket=self.store.bucket, key=info.key, etag=info.etag) for info in infos]
        return [job for job in jobs if isinstance(parse_key(job.key), ChunkKey)]


def transcript_for(job: Job, text: str = "hello", duration: float = 5.0, *, stitched: bool = False) -> Transcript:
    """A plausible transcript of `job`."""
    words = tuple(
        Word(word=word, start=float(number), end=number + 0.5, score=0.9) for number, word in enumerate(text.split())
    )
    segments = (Segment(id=0, start=0.0, end=max(len(words) - 0.5, 0.5), text=text, words=words),) if text else ()
    return Transcript(
        text=text,
        language="en",
        duration=duration,
        segments=segments,
        source=ObjectRef(bucket=job.bucket, key=job.key, etag=job.etag),
        model="tiny.en",
        engine="faster-whisper",
        alignment="attention",
        route="direct",
        pass_="stitched" if stitched else None,
        created_at=EPOCH,
    )
