"""Finds audio without an outcome for its current version, whatever became of its event, and completes sessions.

Events may be dropped by AWS itself; S3's listing is not. So the sweep needs nothing but the bucket.
"""

from collections import defaultdict
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import datetime

from batch_worker.unfinished import PARALLEL_READS, pages, unfinished
from shared.combine import Combiner, Status
from shared.errors import PermanentError, RefusedKey
from shared.jobs import Job
from shared.keys import ChunkKey, Session, parse_key, session_of
from shared.outcomes import record_failure, record_refusal
from shared.store import ObjectInfo, Store


@dataclass(frozen=True)
class Swept:
    """`open`: jobs nobody has finished; `live`: complete sessions that a stitched pass would better.

    `waiting`: for each session that is not complete, when its last upload was.
    """

    open: list[Job]
    live: list[Session]
    waiting: list[datetime]


def sweep(store: Store, combiner: Combiner) -> Swept:
    """Look at the whole bucket, page by page, and say what is left to do.

    A session costs a few requests, complete or not, and one more for each chunk whose transcript no complete session
    has. `combiner` must be new: what another one remembers of open sessions may be out of date.
    """
    found = Swept([], [], [])
    for page in pages(store.list(""), lambda info: info.key):
        _sweep(store, combiner, page, found)
    return found


def _sweep(store: Store, combiner: Combiner, page: list[ObjectInfo], found: Swept) -> None:
    sessions: dict[Session, list[ObjectInfo]] = defaultdict(list)
    left: list[ObjectInfo] = []
    for info in page:
        try:
            parsed = parse_key(info.key)
        except RefusedKey as error:
            record_refusal(store, info.key, info.etag, error)
            continue
        if isinstance(parsed, ChunkKey):
            sessions[parsed.session].append(info)
        else:
            left.append(info)
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        looks = pool.map(combiner.combine, sessions)
    for (session, chunks), combined in zip(sessions.items(), looks, strict=True):
        if combined.status is not Status.COMPLETE:
            left += chunks
            found.waiting.append(max(chunk.last_modified for chunk in chunks))
        elif combined.live:
            found.live.append(session)
    for job in unfinished(store, left):
        if job.size == 0:
            _record_emptiness(store, combiner, job)
        else:
            found.open.append(job)


def _record_emptiness(store: Store, combiner: Combiner, job: Job) -> None:
    record_failure(store, job, PermanentError("the object has no bytes", type="media-empty"))
    if session := session_of(job.audio):
        combiner.combine(session)
