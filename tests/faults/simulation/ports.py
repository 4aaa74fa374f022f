"""S3 and SQS in memory, with their semantics and their faults. Every call is a step of the scheduler."""

import hashlib
import json
from collections.abc import Callable, Iterator, MutableMapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from shared.errors import StoreUnavailable
from shared.jobs import Job, JobMessage, Reason
from shared.queues import MAX_RECEIVE, Backlog, Message, QueueUnavailable
from shared.store import ABSENT, Changed, ObjectInfo, PreconditionFailed, Store, StoredObject
from tests.fakes import EPOCH
from tests.faults.simulation.faults import Faults
from tests.faults.simulation.scheduler import Actor, Scheduler

BUCKET = "audio-bucket"
POLL_SECONDS = 10.0  # at least, of an empty poll: a worker with long jobs in flight asks every second
ANYTHING = "*"  # as `if_match`: an unconditional write, which only a mutant asks for


@dataclass(frozen=True)
class Entry:
    """An object. `listed`: what a listing tells of it. `number`: of the write, from 1 upwards over the whole bucket."""

    body: bytes
    info: ObjectInfo
    listed: ObjectInfo
    number: int


Watch = Callable[[str, Entry | None, Entry], None]


class SimStore(Store):
    """`Store`. `watch` sees every write of the programs, with what it replaces."""

    bucket = BUCKET

    def __init__(self, scheduler: Scheduler, faults: Faults, files: MutableMapping[str, bytes]) -> None:
        self.entries: dict[str, Entry] = {}
        self.watch: Watch = lambda *_: None
        self._scheduler = scheduler
        self._faults = faults
        self._files = files
        self._writes = 0
        self._listed: dict[tuple[Actor, str], int] = {}

    def upload(self, key: str, body: bytes, metadata: dict[str, str] | None = None) -> Entry:
        """As a producer does: at once and whatever lies there."""
        self._writes += 1
        etag = hashlib.md5(body, usedforsecurity=False).hexdigest()
        info = ObjectInfo(key, etag, len(body), _when(self._scheduler.now), metadata or {})
        listed = replace(info, metadata={}) if metadata else info
        entry = self.entries[key] = Entry(body, info, listed, self._writes)
        return entry

    def delete(self, key: str) -> None:
        """As a person does, or a rule of the bucket."""
        self.entries.pop(key, None)

    def head(self, key: str) -> ObjectInfo | None:
        self._before("head")
        entry = self.entries.get(key)
        self._after()
        return entry.info if entry else None

    def get(self, key: str) -> StoredObject | None:
        self._before("get")
        entry = self.entries.get(key)
        self._after()
        return StoredObject(entry.body, entry.info.etag) if entry else None

    def download(self, key: str, target: str, *, etag: str) -> bool:
        self._before("download")
        entry = self.entries.get(key)
        self._after()
        if entry is None:
            return False
        if etag not in (entry.info.etag, ANYTHING):
            raise Changed(key)
        self._files[target] = entry.body
        return True

    def put(
        self, key: str, body: bytes, *, content_type: str, if_match: str, metadata: dict[str, str] | None = None
    ) -> str:
        self._before("put")
        entry = self.entries.get(key)
        if if_match not in (entry.info.etag if entry else ABSENT, ANYTHING):
            self._after()
            raise PreconditionFailed(key)
        written = self.upload(key, body, metadata)
        self.watch(key, entry, written)
        if self._faults.due == "412 after it was written":
            self._faults.settle()
            raise PreconditionFailed(key)
        self._after()
        return written.info.etag

    def last_listed(self, prefix: str) -> int:
        """The last write that the current actor can know of from a listing."""
        return self._listed.get((self._scheduler.current, prefix), 0)

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        self._before("list")
        self._listed[self._scheduler.current, prefix] = self._writes
        found = [entry.listed for key, entry in sorted(self.entries.items()) if key.startswith(prefix) and key > after]
        self._after()
        return iter(found)

    def _before(self, call: str) -> None:
        if self._scheduler.step() and self._faults.before(call):
            raise StoreUnavailable(f"no answer to {call}")

    def _after(self) -> None:
        if self._faults.due and self._faults.after():
            raise StoreUnavailable("the answer is lost")


@dataclass
class Letter:
    """A message in a queue. `about`: the audio versions that it asks for, by key and ETag."""

    id: str
    body: str
    sent: float
    visible_at: float
    about: tuple[tuple[str, str], ...]
    attributes: dict[str, str] = field(default_factory=dict)
    receives: int = 0
    receipt: str = ""


class SimQueue:
    """`Queue`. `dead_letters` takes what was received `max_receives` times; `on_delete` sees what is forgotten,
    `on_bury` what goes to the dead letters."""

    def __init__(
        self,
        url: str,
        scheduler: Scheduler,
        faults: Faults,
        *,
        dead_letters: "SimQueue | None" = None,
        max_receives: int = 5,
    ) -> None:
        self.url = url
        self.letters: dict[str, Letter] = {}
        self.buried = 0  # letters that came here because they were received too often
        self.on_delete: Callable[[Letter], None] = lambda _: None
        self.on_bury: Callable[[Letter], None] = lambda _: None
        self._scheduler = scheduler
        self._faults = faults
        self._dead_letters = dead_letters
        self._max_receives = max_receives
        self._receipts: set[str] = set()  # all that were ever given

    def add(self, body: str, *, delay: int = 0, attributes: dict[str, str] | None = None) -> None:
        """Without any fault, as AWS's own services send."""
        id = str(next(self._scheduler.numbers))
        now = self._scheduler.now
        self.letters[id] = Letter(id, body, now, now + delay, about(json.loads(body)), attributes or {})

    def send(self, job: Job, reason: Reason, *, delay: int = 0) -> None:
        self.send_raw(JobMessage.of(job, reason).to_json(), delay=delay)

    def send_all(self, jobs: Sequence[Job], reason: Reason) -> None:
        self._before("send batch")
        for job in jobs:
            self.add(JobMessage.of(job, reason).to_json())
            if self._faults.due == "some are not sent":
                self._faults.settle()
                raise QueueUnavailable("SQS refused some jobs")
        self._after()

    def send_raw(self, body: str, *, delay: int = 0, attributes: dict[str, str] | None = None) -> None:
        self._before("send")
        self.add(body, delay=delay, attributes=attributes)
        if self._faults.due == "sent twice":
            self._faults.settle()
            self.add(body, delay=delay, attributes=attributes)
        self._after()

    def receive(self, *, most: int, wait: int, visibility: int) -> list[Message]:
        self._before("receive")
        visible = self._visible()
        if not visible and wait:
            due, self._faults.due = self._faults.due, ""  # while others go on
            self._scheduler.sleep(max(wait, POLL_SECONDS))
            self._faults.due = due
            visible = self._visible()
        taken = self._faults.random.sample(visible, min(most, MAX_RECEIVE, len(visible)))
        messages = []
        for letter in taken:
            if letter.receives >= self._max_receives and self._dead_letters:
                self._dead_letters.letters[letter.id] = self.letters.pop(letter.id)
                self._dead_letters.buried += 1
                self.on_bury(letter)
                letter.receives = 0
                continue
            letter.receives += 1
            letter.receipt = f"{letter.id}/{letter.receives}"
            self._receipts.add(letter.receipt)
            letter.visible_at = self._scheduler.now + visibility
            sent = EPOCH + timedelta(seconds=letter.sent)
            messages.append(Message(letter.id, letter.receipt, letter.body, letter.receives, letter.attributes, sent))
        if messages and self._faults.due == "delivered twice":
            self._faults.settle()
            for letter in taken:
                letter.visible_at = self._scheduler.now
        self._after()
        return messages

    def extend(self, message: Message, seconds: int) -> None:
        self._before("extend")
        letter, now = self.letters.get(message.id), self._scheduler.now
        in_flight = letter is not None and letter.receipt == message.receipt and letter.visible_at > now
        if letter and in_flight:
            letter.visible_at = now + seconds
        self._after()
        if not in_flight:
            raise QueueUnavailable("not in flight by this receipt")

    def delete(self, message: Message) -> None:
        self._before("delete")
        self._forget(message)
        self._after()
        self._refuse_strangers([message])

    def delete_all(self, messages: Sequence[Message]) -> None:
        if not messages:
            return
        self._before("delete")
        for message in messages:
            self._forget(message)
            if self._faults.due == "some are not deleted":
                self._faults.settle()
                raise QueueUnavailable("SQS did not delete some messages")
        self._after()
        self._refuse_strangers(messages)

    def backlog(self) -> Backlog:
        self._before("count")
        now = self._scheduler.now
        visible = len(self._visible())
        delayed = sum(letter.visible_at > now and not letter.receives for letter in self.letters.values())
        self._after()
        return Backlog(visible, len(self.letters) - visible - delayed, delayed)

    def _visible(self) -> list[Letter]:
        now = self._scheduler.now
        return [letter for letter in self.letters.values() if letter.visible_at <= now]

    def _forget(self, message: Message) -> None:
        """A handle of an earlier receive: SQS says yes, and may or may not delete."""
        letter = self.letters.get(message.id)
        if letter is None or (letter.receipt != message.receipt and self._faults.random.random() < 0.5):
            return
        if self._faults.due == "comes back though it was deleted":
            self._faults.settle()
            letter.visible_at = self._scheduler.now
            return
        del self.letters[message.id]
        self.on_delete(letter)

    def _refuse_strangers(self, messages: Sequence[Message]) -> None:
        if not self._receipts.issuperset(message.receipt for message in messages):
            raise QueueUnavailable("a receipt that was never given")

    def _before(self, call: str) -> None:
        if self._scheduler.step() and self._faults.before(call):
            raise QueueUnavailable(f"no answer to {call}")

    def _after(self) -> None:
        if self._faults.due and self._faults.after():
            raise QueueUnavailable("the answer is lost")


def about(document: Any) -> tuple[tuple[str, str], ...]:
    """The audio versions that a message asks for."""
    if "requestPayload" in document:
        document = document["requestPayload"]
    if "detail" in document:
        named = document["detail"]["object"]
        return ((named["key"], named["etag"]),)
    return ((document["key"], document["etag"]),) if "etag" in document else ()


def _when(now: float) -> datetime:
    """S3's listings know whole seconds."""
    return EPOCH + timedelta(seconds=int(now))
