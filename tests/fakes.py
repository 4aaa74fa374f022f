"""In-memory ports for unit tests. They stand at the edge (S3, SQS, a server), never in place of our own code."""

import hashlib
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from shared.chunk_writer import write_transcript
from shared.jobs import Job, JobMessage, Reason
from shared.keys import ChunkKey, parse_key
from shared.outcomes import standing
from shared.queues import MAX_BATCH, MAX_RECEIVE, Backlog, Message, QueueUnavailable
from shared.server import Answer, Health, Limits, Said, Work
from shared.store import ABSENT, Changed, ObjectInfo, PreconditionFailed, StoredObject
from shared.transcript import ObjectRef, Segment, Transcript, Word

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)


class MemoryStore:
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
            found = [info for key, (_, info) in items if key.startswith(prefix) and key > after]
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
    """The sending half, and enough of the receiving one for a drain. `broken`: every call fails."""

    url: str = "memory/jobs"
    sent: list[tuple[str, int]] = field(default_factory=list)
    attributes: list[dict[str, str]] = field(default_factory=list)
    visible: list[Message] = field(default_factory=list)
    held: dict[str, Message] = field(default_factory=dict)
    deleted: list[str] = field(default_factory=list)
    broken: bool = False

    def send(self, job: Job, reason: Reason, *, delay: int = 0) -> None:
        self.send_raw(JobMessage.of(job, reason).to_json(), delay=delay)

    def send_raw(self, body: str, *, delay: int = 0, attributes: dict[str, str] | None = None) -> None:
        self._check()
        self.sent.append((body, delay))
        self.attributes.append(attributes or {})
        if not delay:
            name = f"m{len(self.sent)}"
            self.visible.append(Message(name, name, body, 0, attributes or {}, EPOCH))

    def send_all(self, jobs: Sequence[Job], reason: Reason) -> None:
        assert len(jobs) <= MAX_BATCH
        for job in jobs:
            self.send(job, reason)

    def receive(self, *, most: int, wait: int, visibility: int) -> list[Message]:
        self._check()
        most = min(most, MAX_RECEIVE)
        taken, self.visible = self.visible[:most], self.visible[most:]
        taken = [replace(message, receive_count=message.receive_count + 1) for message in taken]
        self.held |= {message.receipt: message for message in taken}
        return taken

    def extend(self, message: Message, seconds: int) -> None:
        self._check()
        if message.receipt in self.held and seconds <= 60:  # given back, sooner or later
            self.visible.append(self.held.pop(message.receipt))

    def delete(self, message: Message) -> None:
        self._check()
        self.held.pop(message.receipt, None)
        self.deleted.append(message.id)

    def delete_all(self, messages: Sequence[Message]) -> None:
        for message in messages:
            self.delete(message)

    def backlog(self) -> Backlog:
        return Backlog(len(self.visible), len(self.held), 0)

    def reasons(self) -> list[Reason]:
        return [JobMessage.model_validate_json(body).reason for body, _ in self.sent]

    def _check(self) -> None:
        if self.broken:
            raise QueueUnavailable("SQS is down")


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
    session_answers: list[Answer] = field(default_factory=lambda: [Answer(Said.DONE, 200)])
    session_calls: list[tuple[Sequence[Job] | str, bool]] = field(default_factory=list)
    deaf_to: set[str] = field(default_factory=set)
    of_others: Work = Work(ended=0, in_flight=0)

    def work(self, limits: Limits) -> Work | None:
        own = len(self.calls) + len(self.session_calls)
        return replace(self.of_others, ended=self.of_others.ended + own)

    def health(self, limits: Limits) -> Health:
        return self.ready

    def transcribe(self, job: Job, limits: Limits, *, route: str, wait: bool = True, new: bool = False) -> Answer:
        self.calls.append((job, wait))
        self.called_new.append(new)
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
