"""Finds audio without an outcome for its current version, whatever became of its event, and completes sessions.

Events may be dropped by AWS itself; S3's listing is not. So the sweep needs nothing but the bucket.
"""

from collections import defaultdict
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from shared.combine import Combiner, Status
from shared.errors import PermanentError, RefusedKey
from shared.jobs import Job
from shared.keys import ChunkKey, FileKey, Session, parse_key
from shared.outcomes import Standing, record_failure, record_refusal, standing
from shared.store import ObjectInfo, Store

PARALLEL_READS = 16


@dataclass(frozen=True)
class Swept:
    """`open`: jobs nobody has finished; `live`: complete sessions that a stitched pass would better.

    `waiting`: for each session that is not complete, when its last upload was.
    """

    open: list[Job]
    live: list[Session]
    waiting: list[datetime]


def sweep(store: Store, combiner: Combiner) -> Swept:
    """Look at the whole bucket, and say what is left to do.

    A complete session costs a few requests, since its transcript names all it was made from; an open one costs two
    reads a chunk. `combiner` must be new: what another one remembers of open sessions may be out of date.
    """
    sessions: dict[Session, list[ObjectInfo]] = defaultdict(list)
    files: list[ObjectInfo] = []
    for info in store.list(""):
        try:
            parsed = parse_key(info.key)
        except RefusedKey as error:
            record_refusal(store, info.key, info.etag, error)
            continue
        if isinstance(parsed, ChunkKey):
            sessions[parsed.session].append(info)
        elif isinstance(parsed, FileKey):
            files.append(info)
    live: list[Session] = []
    waiting: list[datetime] = []
    for session, chunks in sessions.items():
        combined = combiner.combine(session)
        if combined.status is not Status.COMPLETE:
            files += chunks
            waiting.append(max(chunk.last_modified for chunk in chunks))
        elif combined.live:
            live.append(session)
    jobs = _open(store, files)
    for session in {parsed.session for job in jobs if isinstance(parsed := job.audio, ChunkKey) and job.size == 0}:
        combiner.combine(session)
    return Swept([job for job in jobs if job.size != 0], live, waiting)


def _open(store: Store, infos: Iterable[ObjectInfo]) -> list[Job]:
    """The jobs of these objects that have no outcome. Empty objects get theirs here."""

    def look(info: ObjectInfo) -> Job | None:
        job = Job(bucket=store.bucket, key=info.key, etag=info.etag, size=info.size)
        if standing(store, job) is not Standing.OPEN:
            return None
        if info.size == 0:
            record_failure(store, job, PermanentError("the object has no bytes", type="media-empty"))
        return job

    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        return [job for job in pool.map(look, infos) if job]
