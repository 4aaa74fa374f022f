"""What S3 holds of a session's chunks: before a stitched pass, and after it as one transcript."""

from collections.abc import Iterable
from datetime import UTC, datetime

from shared.jobs import Job
from shared.keys import ChunkKey, Session
from shared.outcomes import Outcome, Seen, read_failure, read_outcome, read_record
from shared.sessions import ChunkOutcome, combine_chunks
from shared.store import ABSENT, Store
from shared.transcript import ErrorRecord, ObjectRef, Transcript

MISSING = "chunk-missing"


class Outputs:
    """What lies at a session's output keys, by one listing: what is not there is not asked for, and the rest once.

    Safe to share between threads. It grows old: a write that rests on it is conditional, and looks again.
    """

    def __init__(self, store: Store, session: Session) -> None:
        self._store = store
        self._keys = {info.key for info in store.list(session.transcript_prefix)}
        self._seen: dict[str, Seen] = {}

    def of(self, job: Job) -> Seen:
        if job.output_key not in self._seen:
            record = read_record(self._store, job) if job.audio.error_key in self._keys else None
            outcome = read_outcome(self._store, job) if job.output_key in self._keys else Outcome(ABSENT)
            self._seen[job.output_key] = Seen(outcome, record)
        return self._seen[job.output_key]


def together(store: Store, session: Session, jobs: Iterable[Job]) -> Transcript:
    """These chunks' outcomes as one transcript; what is missing between them is a gap."""
    outcomes = {index_of(job): _outcome(store, job) for job in jobs}
    found = [outcomes.get(index) or _nothing(store, index) for index in range(1, max(outcomes) + 1)]
    return combine_chunks(session, bucket=store.bucket, manifest_etag="", chunks=found)


def _outcome(store: Store, job: Job) -> ChunkOutcome:
    outcome = read_outcome(store, job)
    result = outcome.transcript if outcome.is_for(job) else read_failure(store, job)
    if result is None:
        return _nothing(store, index_of(job))
    return ChunkOutcome(index_of(job), job.key, job.etag, job.output_key, outcome.etag, result)


def _nothing(store: Store, index: int) -> ChunkOutcome:
    source = ObjectRef(bucket=store.bucket, key="", etag="")
    record = ErrorRecord(
        type=MISSING,
        message="there is no result for this chunk",
        source=source,
        attempts=0,
        created_at=datetime.fromtimestamp(0, UTC),
    )
    return ChunkOutcome(index, "", "", "", "", record)


def index_of(job: Job) -> int:
    """The chunk's number in its session."""
    names = job.audio
    assert isinstance(names, ChunkKey)
    return names.index
