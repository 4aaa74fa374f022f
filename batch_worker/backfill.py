"""Queues an archive: whatever audio has no outcome yet, however much there is, going on where it stopped.

It needs nothing but the bucket, or an inventory of it, and holds one page of keys at a time. To queue a job twice is
harmless, since its name follows from its audio; a run that was killed does it with one batch at most.
"""

import hashlib
import os
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pydantic import BaseModel, ConfigDict

from batch_worker.inventory import Inventory
from batch_worker.unfinished import PARALLEL_READS, pages, unfinished
from shared.jobs import Job
from shared.keys import Session, is_audio, parse_chunk_key
from shared.queues import MAX_BATCH
from shared.store import ObjectInfo, Store


@dataclass(frozen=True)
class Entry:
    """One line of a listing or an inventory. A later run goes on after `place`. `info`: absent if that is old."""

    place: str
    key: str
    info: ObjectInfo | None = None


class Source(Protocol):
    """Where keys come from. `name` tells one source from another."""

    @property
    def name(self) -> str: ...

    def entries(self, after: str) -> Iterator[Entry]:
        """All of it, or what comes after that place."""
        ...


@dataclass(frozen=True)
class Listing:
    """The bucket itself, as it is."""

    store: Store
    prefix: str = ""

    @property
    def name(self) -> str:
        return f"s3://{self.store.bucket}/{self.prefix}"

    def entries(self, after: str) -> Iterator[Entry]:
        return (Entry(info.key, info.key, info) for info in self.store.list(self.prefix, after=after))


@dataclass(frozen=True)
class Inventoried:
    """The keys that an inventory has."""

    inventory: Inventory
    prefix: str = ""

    @property
    def name(self) -> str:
        return f"inventory {self.inventory.etag} of {self.prefix or 'all'}"

    def entries(self, after: str) -> Iterator[Entry]:
        return (Entry(place, key) for place, key in self.inventory.keys(after) if key.startswith(self.prefix))


class Progress(BaseModel):
    """How far a backfill of `source` is: `looked_at` entries, `queued` jobs; it goes on `after` that place."""

    model_config = ConfigDict(frozen=True)

    source: str
    after: str = ""
    looked_at: int = 0
    queued: int = 0

    def on(self, after: str, looked_at: int, queued: int) -> "Progress":
        """So many entries and jobs further."""
        return Progress(
            source=self.source, after=after, looked_at=self.looked_at + looked_at, queued=self.queued + queued
        )


class Bookmark:
    """Keeps the progress through one source in a file of its own in `folder`."""

    def __init__(self, folder: Path, source: Source) -> None:
        self._source = source.name
        self.path = folder / f"backfill-{hashlib.sha256(source.name.encode()).hexdigest()[:12]}.json"

    def load(self) -> Progress:
        """Where the last run stopped; the beginning if it came to its end, or there was none."""
        if not self.path.exists():
            return Progress(source=self._source)
        return Progress.model_validate_json(self.path.read_bytes())

    def save(self, progress: Progress) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_suffix(".new")
        new.write_text(progress.model_dump_json())
        os.replace(new, self.path)  # a kill leaves the one or the other

    def remove(self) -> None:
        self.path.unlink(missing_ok=True)


def backfill(
    store: Store,
    source: Source,
    start: Progress,
    *,
    send: Callable[[Sequence[Job]], None],
    save: Callable[[Progress], None],
    most: int | None = None,
) -> bool:
    """Send what nobody has finished, in batches of MAX_BATCH; True at the source's end, False after `most` jobs.

    `save` is told of every batch and every page, after it. Raises whatever `send` and S3 do, and BadInventory.
    """
    done, room = start, most
    for page in pages(source.entries(start.after), lambda entry: entry.key):
        begin = done
        numbers = {entry.key: number for number, entry in enumerate(page)}
        jobs = unfinished(store, _as_they_are(store, page))
        while jobs and room != 0:
            batch = jobs[: MAX_BATCH if room is None else min(MAX_BATCH, room)]
            jobs = jobs[len(batch) :]
            send(batch)
            number = numbers[batch[-1].key]
            done = begin.on(page[number].place, number + 1, done.queued - begin.queued + len(batch))
            save(done)
            room = None if room is None else room - len(batch)
        if room == 0:
            return False
        done = begin.on(page[-1].place, len(page), done.queued - begin.queued)
        save(done)
    return True


class Pace:
    """Lets through so many a second. `sleep` and `clock` in seconds."""

    def __init__(
        self, rate: float, *, clock: Callable[[], float] = time.monotonic, sleep: Callable[[float], None] = time.sleep
    ) -> None:
        self._rate = rate
        self._clock = clock
        self._sleep = sleep
        self._next = clock()

    def wait_for(self, count: int) -> None:
        """Return when `count` more may pass."""
        now = self._clock()
        if self._next > now:
            self._sleep(self._next - now)
        self._next = max(self._next, now) + count / self._rate


def _as_they_are(store: Store, page: Iterable[Entry]) -> list[ObjectInfo]:
    """The audio of these entries that is there now, in their order."""
    entries = {entry.key: entry for entry in page if is_audio(entry.key)}
    unknown = [entry.key for entry in entries.values() if entry.info is None]
    chunks = {key: names.session for key in unknown if (names := parse_chunk_key(key))}

    def chunks_of(session: Session) -> list[ObjectInfo]:
        return [info for info in store.list(session.audio_prefix) if info.key in chunks]

    known = {entry.key: entry.info for entry in entries.values()}
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        for infos in pool.map(chunks_of, dict.fromkeys(chunks.values())):
            known |= {info.key: info for info in infos}
        files = [key for key in unknown if key not in chunks]
        known |= {info.key: info for info in pool.map(store.head, files) if info}
    return [info for info in known.values() if info]
