"""The session write protocol: when every chunk of a session has its outcome, write the session transcript, once, right.

The rules that keep it right when combiners race, crash and read stale things:

- The current transcript's ETag is taken before anything that it summarises is read, and the write is conditional on
  it: an older view can never replace a newer one. (The manifest is read first of all, since most sessions have none
  yet; the listing tells whether it still is the same.)
- Indices are compared, never counted, and each outcome must be for the chunk's *current* audio.
- The derived files come first and `{session}.json` last. Each carries the digest of the view it was made from; a
  combiner stops only after a round in which it found nothing left to write, so a stale loser repairs what it spoilt.
"""

import hashlib
import json
import threading
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from shared.errors import BadManifest, Contended
from shared.jobs import Job
from shared.keys import DERIVED_FORMATS, ChunkKey, Session, parse_chunk_key
from shared.manifest import Manifest, parse_manifest
from shared.outcomes import JSON, ROUNDS, duplicate_chunk, precedence, put_record, record_failure
from shared.sessions import ChunkOutcome, combine_chunks, seconds_by_route
from shared.store import ABSENT, Changed, ObjectInfo, PreconditionFailed, Store
from shared.subtitles import render
from shared.transcript import ErrorRecord, ObjectRef, Transcript, read_error_record, read_transcript

FORMAT_VERSION = "1"  # part of every digest: a new way of combining rebuilds what the old one wrote
PARALLEL_READS = 16
VIEW = "view"  # metadata key of the digest
# Metadata key of `Combined.live`. Sessions written before it was lack it and count as 0, so that a new version of this
# program does not transcribe a whole archive again by itself.
LIVE = "live"
WITNESSES = 1024  # open sessions remembered per process


class Status(StrEnum):
    RECORDING = "recording"  # no manifest yet
    BAD_MANIFEST = "bad_manifest"
    OPEN = "open"  # chunks without an outcome
    COMPLETE = "complete"


@dataclass(frozen=True)
class Combined:
    """How a session stands. `missing` counts chunks without an outcome; `written` is True if this call changed it.

    `live`, of a complete session of several chunks: transcripts that a stitched pass would better, since their chunk
    was heard alone and its audio is still there.
    """

    status: Status
    missing: int = 0
    written: bool = False
    live: int = 0


@dataclass(frozen=True)
class SessionTranscribed:
    """Detail of the event that says that a session transcript was written or changed."""

    bucket: str
    key: str
    user: str
    session: str
    chunks: int
    failed: int
    duration: float
    audio_seconds: dict[str, float]


@dataclass(frozen=True)
class _Chunk:
    """One index of a session, from the two listings: its current audio and what lies at its output keys."""

    index: int
    names: ChunkKey
    audio: ObjectInfo | None
    transcript_etag: str | None
    error_etag: str | None


@dataclass(frozen=True)
class _View:
    """Everything a session transcript is made from, by ETag."""

    manifest_etag: str
    chunks: tuple[_Chunk, ...]
    digest: str


class Combiner:
    """Completes sessions. Keep one per process and bucket: it remembers what open sessions wait for.

    Safe to share between threads.
    """

    def __init__(self, store: Store, publish: Callable[[SessionTranscribed], None]) -> None:
        self._store = store
        self._publish = publish
        self._witnesses: dict[Session, _Chunk] = {}
        self._lock = threading.Lock()

    def combine(self, session: Session) -> Combined:
        """Write the session's transcript if it is complete and not written yet, from these very inputs.

        Costs one read while the recording runs, and three more while the remembered witness (a chunk seen without an
        outcome) still has none: listings are rare, and the work per chunk does not grow with the session.

        Raises:
            TransientError: S3 would not answer, or kept changing (Contended).
        """
        written = False
        for _ in range(ROUNDS):
            stored = self._store.get(session.manifest_key)
            if stored is None:
                return Combined(Status.RECORDING)
            try:
                manifest = parse_manifest(stored.body)
            except BadManifest as error:
                self._record_bad_manifest(session, stored.etag, error)
                return Combined(Status.BAD_MANIFEST)
            if self._witness_still_missing(session):
                return Combined(Status.OPEN, missing=1)
            current = self._store.head(session.output_key)
            try:
                view = self._look(session, manifest, stored.etag)
            except Changed:
                continue
            if isinstance(view, int):
                return Combined(Status.OPEN, missing=view)
            derived = {extension: self._store.head(session.derived_key(extension)) for extension in DERIVED_FORMATS}
            stale = [extension for extension, info in derived.items() if not _made_from(info, view)]
            if current and _made_from(current, view) and not stale:
                return Combined(Status.COMPLETE, written=written, live=int(current.metadata.get(LIVE, "0")))
            try:
                chunks = self._read_chunks(session, view)
                if isinstance(chunks, int):
                    return Combined(Status.OPEN, missing=chunks)
                transcript = combine_chunks(
                    session, bucket=self._store.bucket, manifest_etag=view.manifest_etag, chunks=chunks
                )
                metadata = {VIEW: view.digest, LIVE: str(_live(view, chunks))}
                for extension in stale:
                    body, content_type = render(transcript, extension)
                    self._put(session.derived_key(extension), body, content_type, derived[extension], metadata)
                if not _made_from(current, view):
                    self._put(session.output_key, transcript.to_json(), JSON, current, metadata)
                    written = True
                    self._announce(session, transcript, chunks)
            except (Changed, PreconditionFailed):
                continue
        raise Contended(f"session {session.id} kept changing while it was combined")

    def _put(
        self, key: str, body: bytes, content_type: str, current: ObjectInfo | None, metadata: dict[str, str]
    ) -> None:
        if_match = current.etag if current else ABSENT
        try:
            self._store.put(key, body, content_type=content_type, if_match=if_match, metadata=metadata)
        except PreconditionFailed:
            # It may have been this very write that won, and only its answer that was lost.
            info = self._store.head(key)
            if info is None or info.metadata.get(VIEW) != metadata[VIEW]:
                raise

    def _announce(self, session: Session, transcript: Transcript, chunks: list[ChunkOutcome]) -> None:
        self._publish(
            SessionTranscribed(
                bucket=self._store.bucket,
                key=session.output_key,
                user=session.user,
                session=session.id,
                chunks=len(chunks),
                failed=sum(isinstance(chunk.result, ErrorRecord) for chunk in chunks),
                duration=transcript.duration,
                audio_seconds=seconds_by_route(chunks),
            )
        )

    def _look(self, session: Session, manifest: Manifest, manifest_etag: str) -> _View | int:
        """The session's view, or how many of its chunks have no outcome.

        Raises Changed when there is another manifest by now: this one was read before the transcript's ETag was taken.
        """
        audio: dict[int, list[ObjectInfo]] = defaultdict(list)
        for info in self._store.list(session.audio_prefix):
            if info.key == session.manifest_key and info.etag != manifest_etag:
                raise Changed(info.key)
            names = parse_chunk_key(info.key)
            if names and names.session == session:
                audio[names.index].append(info)
        outputs = {info.key: info.etag for info in self._store.list(session.transcript_prefix)}
        orphans = _outputs_by_index(session, outputs)
        chunks, missing = [], []
        for index in range(1, manifest.chunk_count + 1):
            winner = max(audio[index], key=precedence) if index in audio else None
            names = parse_chunk_key(winner.key) if winner else orphans.get(index)
            chunk = names and _Chunk(index, names, winner, outputs.get(names.output_key), outputs.get(names.error_key))
            if chunk and (chunk.transcript_etag or chunk.error_etag):
                chunks.append(chunk)
            else:
                missing.append(chunk)
            if winner:
                self._settle_losers(audio[index], winner, outputs)
        if missing:
            self._remember_witness(session, [chunk for chunk in missing if chunk])
            return len(missing)
        return _View(manifest_etag, tuple(chunks), _digest(manifest_etag, chunks))

    def _settle_losers(self, rivals: list[ObjectInfo], winner: ObjectInfo, outputs: dict[str, str]) -> None:
        """Two audio objects with one chunk number: the loser gets an error record, where its own has a place."""
        for loser in rivals:
            names = parse_chunk_key(loser.key)
            if loser is not winner and names and names.error_key not in outputs:
                job = Job(bucket=self._store.bucket, key=loser.key, etag=loser.etag)
                record_failure(self._store, job, duplicate_chunk(winner.key))

    def _read_chunks(self, session: Session, view: _View) -> list[ChunkOutcome] | int:
        """Every chunk's outcome, or how many turn out to be for other audio than the current one.

        Raises Changed when one is not what the listing showed any more.
        """
        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            outcomes = list(pool.map(self._read_chunk, view.chunks))
        outdated = [chunk for chunk, outcome in zip(view.chunks, outcomes, strict=True) if outcome is None]
        if outdated:
            self._remember_witness(session, outdated)
            return len(outdated)
        return [outcome for outcome in outcomes if outcome]

    def _read_chunk(self, chunk: _Chunk) -> ChunkOutcome | None:
        if chunk.transcript_etag:
            transcript = read_transcript(self._store.get_version(chunk.names.output_key, chunk.transcript_etag))
            if transcript and _is_current(transcript.source, chunk):
                return _outcome(chunk, chunk.names.output_key, chunk.transcript_etag, transcript)
        if chunk.error_etag:
            record = read_error_record(self._store.get_version(chunk.names.error_key, chunk.error_etag))
            if record and _is_current(record.source, chunk):
                return _outcome(chunk, chunk.names.error_key, chunk.error_etag, record)
        return None

    def _witness_still_missing(self, session: Session) -> bool:
        """True while nothing about the remembered chunk has changed: then the session cannot be complete."""
        chunk = self._witnesses.get(session)
        return chunk is not None and (
            self._etag(chunk.names.output_key) == chunk.transcript_etag
            and self._etag(chunk.names.error_key) == chunk.error_etag
            and (chunk.audio is None or self._etag(chunk.audio.key) == chunk.audio.etag)
        )

    def _etag(self, key: str) -> str | None:
        info = self._store.head(key)
        return info.etag if info else None

    def _remember_witness(self, session: Session, missing: list[_Chunk]) -> None:
        """Remember the middle one: whether chunks finish in order or not, it lasts for half of those that are left."""
        with self._lock:
            self._witnesses.pop(session, None)
            if missing:
                self._witnesses[session] = missing[len(missing) // 2]
            if len(self._witnesses) > WITNESSES:
                del self._witnesses[next(iter(self._witnesses))]

    def _record_bad_manifest(self, session: Session, etag: str, error: BadManifest) -> None:
        stored = self._store.get(session.error_key)
        record = read_error_record(stored.body) if stored else None
        source = ObjectRef(bucket=self._store.bucket, key=session.manifest_key, etag=etag)
        if (record and record.source == source) or self._etag(session.manifest_key) != etag:
            return
        record = ErrorRecord(
            type=error.type, message=error.message, source=source, attempts=1, created_at=datetime.now(UTC)
        )
        put_record(self._store, session.error_key, record, if_match=stored.etag if stored else ABSENT)


def _outputs_by_index(session: Session, outputs: dict[str, str]) -> dict[int, ChunkKey]:
    """Chunks that have outputs, for those whose audio is gone; `extension` is unknown and not needed."""
    found = {}
    for key in outputs:
        number = key.removeprefix(session.transcript_prefix).partition(".")[0]
        if number.isascii() and number.isdigit():
            found[int(number)] = ChunkKey(session, number, "")
    return found


def _made_from(info: ObjectInfo | None, view: _View) -> bool:
    return info is not None and info.metadata.get(VIEW) == view.digest


def _live(view: _View, chunks: list[ChunkOutcome]) -> int:
    """`Combined.live`. A single chunk has no neighbours to be heard with."""
    if len(chunks) == 1:
        return 0
    return sum(
        chunk.audio is not None and isinstance(outcome.result, Transcript) and not outcome.result.is_stitched
        for chunk, outcome in zip(view.chunks, chunks, strict=True)
    )


def _is_current(source: object, chunk: _Chunk) -> bool:
    """True when the outcome is for the chunk's current audio. Audio that expired leaves its outcome standing."""
    if not isinstance(source, ObjectRef):
        return False
    return chunk.audio is None or (source.key, source.etag) == (chunk.audio.key, chunk.audio.etag)


def _outcome(chunk: _Chunk, key: str, etag: str, result: Transcript | ErrorRecord) -> ChunkOutcome:
    source = result.source
    assert isinstance(source, ObjectRef)  # _is_current saw it
    return ChunkOutcome(
        index=chunk.index, key=source.key, etag=source.etag, outcome_key=key, outcome_etag=etag, result=result
    )


def _digest(manifest_etag: str, chunks: list[_Chunk]) -> str:
    inputs = [
        (chunk.index, chunk.audio and (chunk.audio.key, chunk.audio.etag), chunk.transcript_etag, chunk.error_etag)
        for chunk in chunks
    ]
    return hashlib.sha256(json.dumps([FORMAT_VERSION, manifest_etag, inputs]).encode()).hexdigest()
