"""What S3 says about a job: the transcript object is the only truth, for this very input and no other."""

from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from shared.errors import Contended, PermanentError, RefusedKey
from shared.jobs import Job
from shared.keys import ChunkKey
from shared.store import ABSENT, ObjectInfo, PreconditionFailed, Store
from shared.transcript import ErrorRecord, ObjectRef, Transcript, read_error_record, read_transcript

ROUNDS = 6  # a write that loses this many races in a row has met something other than a race
JSON = "application/json"


HEADER_MISSING = "media-header-missing"  # a browser recording's chunk 2..n while its chunk 1 is not there
DUPLICATE_CHUNK = "duplicate-chunk"


@dataclass(frozen=True)
class Outcome:
    """What lies at a job's output key. `etag` is the output object's own, ABSENT when there is none."""

    etag: str
    transcript: Transcript | None = None

    def is_for(self, job: Job) -> bool:
        return self.transcript is not None and is_source(self.transcript.source, job)


@dataclass(frozen=True)
class Seen:
    """What was found beside a job's audio: its outcome, and the error record at its error key, of whatever input."""

    outcome: Outcome
    record: ErrorRecord | None


NOTHING = Seen(Outcome(ABSENT), None)


class Standing(StrEnum):
    """How a job stands by what S3 holds. All but NEW and OPEN need no more work."""

    TRANSCRIBED = "transcribed"
    FAILED = "failed"
    SUPERSEDED = "superseded"  # the audio is another version by now; that one has its own event
    DUPLICATE = "duplicate"  # another object with its chunk number is newer, and has the place
    OPEN = "open"
    NEW = "new"  # open, and nothing lies at its output keys

    @property
    def is_open(self) -> bool:
        return self in (Standing.OPEN, Standing.NEW)


@dataclass(frozen=True)
class Found:
    """How a job stands, with the transcript or the error record of this very input that says so, if one does."""

    standing: Standing
    outcome: Transcript | ErrorRecord | None = None


def source_of(job: Job) -> ObjectRef:
    """How the job's outcome names its input."""
    return ObjectRef(bucket=job.bucket, key=job.key, etag=job.etag, version_id=job.version_id)


def is_source(source: object, job: Job) -> bool:
    """True when `source` names the very input of `job`."""
    return isinstance(source, ObjectRef) and (source.key, source.etag) == (job.key, job.etag)


def read_outcome(store: Store, job: Job) -> Outcome:
    """The transcript at the job's output key. An unreadable one counts as none: the work is done again."""
    stored = store.get(job.output_key)
    return Outcome(stored.etag, read_transcript(stored.body)) if stored else Outcome(ABSENT)


def read_record(store: Store, job: Job) -> ErrorRecord | None:
    """The error record at the job's error key, whatever input it is of."""
    stored = store.get(job.audio.error_key)
    return read_error_record(stored.body) if stored else None


def look(store: Store, job: Job) -> Seen:
    """The outcome last: where there is one, it is what counts."""
    record = read_record(store, job)
    return Seen(read_outcome(store, job), record)


def record_stands(store: Store, job: Job, record: ErrorRecord) -> bool:
    """A record is of one input; one for want of a header falls when another chunk 1 is there."""
    if not is_source(record.source, job):
        return False
    return record.type != HEADER_MISSING or _header_etag(store, job) == record.header_etag


def read_failure(store: Store, job: Job) -> ErrorRecord | None:
    """The recorded failure of this very input, if any and if it still stands."""
    record = read_record(store, job)
    return record if record and record_stands(store, job, record) else None


def standing(store: Store, job: Job, *, check_source: bool = False) -> Standing:
    """As `find`, without what says so."""
    return find(store, job, check_source=check_source).standing


def find(store: Store, job: Job, *, check_source: bool = False) -> Found:
    """Ask S3, and nobody else, whether a job is done.

    Args:
        check_source: also look whether the audio still is this version; before the work, its own protocol does.
    """
    outcome = read_outcome(store, job)
    if outcome.is_for(job):
        return Found(Standing.TRANSCRIBED, outcome.transcript)
    record = read_record(store, job)
    if record and record_stands(store, job, record):
        return Found(Standing.FAILED, record)
    rivals = rival_keys(job, outcome.transcript, record)
    source = store.head(job.key) if check_source or rivals else None
    if source and source.etag != job.etag:
        return Found(Standing.SUPERSEDED)
    if source and newer_rival(store, source, rivals):
        return Found(Standing.DUPLICATE)
    return Found(Standing.OPEN if record or outcome.etag != ABSENT else Standing.NEW)


def rival_keys(job: Job, *documents: Transcript | ErrorRecord | None) -> set[str]:
    """Other audio keys with this job's output keys (chunk-1.webm and chunk-1.mp3), told by what lies there."""
    sources = (document.source for document in documents if document)
    return {source.key for source in sources if isinstance(source, ObjectRef)} - {job.key}


def newer_rival(store: Store, source: ObjectInfo, rivals: set[str]) -> str | None:
    """The key of a rival that exists and wins over `source`."""
    for key in sorted(rivals):
        rival = store.head(key)
        if rival and precedence(rival) > precedence(source):
            return key
    return None


def precedence(info: ObjectInfo) -> tuple[float, str]:
    """Which of two objects with one chunk number counts: the greater, everywhere, so never a flip-flop."""
    return info.last_modified.timestamp(), info.key


def record_failure(store: Store, job: Job, error: PermanentError, *, attempts: int = 1) -> None:
    """Record that this input has no transcript.

    Nothing is written when it has one, when that is on record already, when the audio is another version by now, or
    when a newer object with the same chunk number has its own record there. The record is read before the audio: what
    is newer than either makes the PUT fail.

    Raises:
        Contended: the record kept changing under our hands.
    """
    record = ErrorRecord(
        type=error.type,
        message=error.message,
        source=source_of(job),
        attempts=attempts,
        header_etag=_header_etag(store, job) if error.type == HEADER_MISSING else None,
        created_at=datetime.now(UTC),
    )
    for _ in range(ROUNDS):
        stored = store.get(job.audio.error_key)
        if read_outcome(store, job).is_for(job):
            return
        source = store.head(job.key)
        if source and source.etag != job.etag:
            return
        current = read_error_record(stored.body) if stored else None
        if current and is_source(current.source, job) and record_stands(store, job, current):
            return
        rivals = rival_keys(job, current)
        if rivals and (error.type == DUPLICATE_CHUNK or source is None or newer_rival(store, source, rivals)):
            return
        if put_record(store, job.audio.error_key, record, if_match=stored.etag if stored else ABSENT):
            return
    raise Contended(f"could not record the failure of {job.key}")


def _header_etag(store: Store, job: Job) -> str | None:
    """The ETag of the recording's chunk 1, None when there is none."""
    names = job.audio
    for key in names.sibling_keys(1) if isinstance(names, ChunkKey) else ():
        if info := store.head(key):
            return info.etag
    return None


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


def duplicate_chunk(winner: str) -> PermanentError:
    return PermanentError(f"another object has the same chunk number and is newer: {winner}", type=DUPLICATE_CHUNK)
