"""What S3 says about a job: the transcript object is the only truth, for this very input and no other."""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from shared.errors import Contended, PermanentError, RefusedKey
from shared.jobs import Job
from shared.store import ABSENT, PreconditionFailed, Store
from shared.transcript import ErrorRecord, ObjectRef, Transcript, read_error_record, read_transcript

ROUNDS = 6  # a write that loses this many races in a row has met something other than a race
JSON = "application/json"


@dataclass(frozen=True)
class Outcome:
    """What lies at a job's output key. `etag` is the output object's own, ABSENT when there is none."""

    etag: str
    transcript: Transcript | None = None

    def is_for(self, job: Job) -> bool:
        return self.transcript is not None and is_source(self.transcript.source, job)

    def rival_key(self, job: Job) -> str | None:
        """Another audio key with this job's output key (chunk-1.webm and chunk-1.mp3), if it was here first."""
        source = self.transcript.source if self.transcript else None
        return source.key if isinstance(source, ObjectRef) and source.key != job.key else None


def is_source(source: object, job: Job) -> bool:
    """True when `source` names the very input of `job`."""
    return isinstance(source, ObjectRef) and (source.key, source.etag) == (job.key, job.etag)


def read_outcome(store: Store, job: Job) -> Outcome:
    """The transcript at the job's output key. An unreadable one counts as none: the work is done again."""
    stored = store.get(job.output_key)
    return Outcome(stored.etag, read_transcript(stored.body)) if stored else Outcome(ABSENT)


def read_failure(store: Store, job: Job) -> ErrorRecord | None:
    """The recorded failure of this very input, if any."""
    stored = store.get(job.audio.error_key)
    record = read_error_record(stored.body) if stored else None
    return record if record and is_source(record.source, job) else None


class Standing(StrEnum):
    """How a job stands by what S3 holds. All but OPEN need no more work."""

    TRANSCRIBED = "transcribed"
    FAILED = "failed"
    SUPERSEDED = "superseded"  # the audio is another version by now; that one has its own event
    OPEN = "open"


def standing(store: Store, job: Job, *, check_source: bool = False) -> Standing:
    """Ask S3, and nobody else, whether a job is done.

    Args:
        check_source: also look whether the audio still is this version; before the work, its own protocol does.
    """
    if read_outcome(store, job).is_for(job):
        return Standing.TRANSCRIBED
    if read_failure(store, job):
        return Standing.FAILED
    if check_source and (source := store.head(job.key)) and source.etag != job.etag:
        return Standing.SUPERSEDED
    return Standing.OPEN


def record_failure(store: Store, job: Job, error: PermanentError, *, attempts: int = 1) -> None:
    """Record that this input has no transcript, unless it has one, or the failure is on record already.

    Raises:
        Contended: the record kept changing under our hands.
    """
    record = ErrorRecord(
        type=error.type,
        message=error.message,
        source=ObjectRef(bucket=job.bucket, key=job.key, etag=job.etag),
        attempts=attempts,
        created_at=datetime.now(UTC),
    )
    for _ in range(ROUNDS):
        if read_outcome(store, job).is_for(job):
            return
        stored = store.get(job.audio.error_key)
        current = read_error_record(stored.body) if stored else None
        if current and is_source(current.source, job):
            return
        if current and error.type == DUPLICATE_CHUNK and current.source.key != job.key:
            return  # the winner's own record stays
        if put_record(store, job.audio.error_key, record, if_match=stored.etag if stored else ABSENT):
            return
    raise Contended(f"could not record the failure of {job.key}")


def record_refusal(store: Store, key: str, etag: str, error: RefusedKey) -> None:
    """Record that the object `key` cannot enter the pipeline, unless that is on record for this version."""
    record = ErrorRecord(
        type=error.type,
        message=error.message,
        source=ObjectRef(bucket=store.bucket, key=key, etag=etag),
        attempts=1,
        created_at=datetime.now(UTC),
    )
    stored = store.get(error.error_key)
    current = read_error_record(stored.body) if stored else None
    if current is None or current.source != record.source:
        put_record(store, error.error_key, record, if_match=stored.etag if stored else ABSENT)


def put_record(store: Store, key: str, record: ErrorRecord, *, if_match: str) -> bool:
    """False when the record is no longer what `if_match` says."""
    try:
        store.put(key, record.to_json(), content_type=JSON, if_match=if_match)
    except PreconditionFailed:
        return False
    return True


DUPLICATE_CHUNK = "duplicate-chunk"


def duplicate_chunk(winner: str) -> PermanentError:
    return PermanentError(f"another object has the same chunk number and is newer: {winner}", type=DUPLICATE_CHUNK)
