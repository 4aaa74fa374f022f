"""The invariants, checked from outside: S3, the queues, and the list of what was uploaded. Nothing else is believed.

Pure functions. Each returns what is wrong, in words, and nothing when all is well.
"""

import json
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from batch_worker.report import Day
from shared.errors import BadManifest, BadMessage
from shared.events import Upload as Event
from shared.events import parse_letter
from shared.jobs import JobMessage
from shared.keys import DERIVED_FORMATS, ChunkKey, FileKey, ManifestKey, ParsedKey, Session, parse_key, session_of
from shared.manifest import parse_manifest
from shared.sessions import ChunkOutcome, combine_chunks
from shared.store import StoredObject
from shared.subtitles import render
from shared.transcript import ErrorRecord, ObjectRef, SessionRef, Transcript, read_error_record, read_transcript

REPORTS = "reports/batch/"
Result = Transcript | ErrorRecord


@dataclass(frozen=True)
class Upload:
    """One version of one object that a producer wrote.

    `says`: the words of audio, "" when nobody can hear it; None for a manifest.
    """

    key: str
    etag: str
    body: bytes
    says: str | None = None


@dataclass(frozen=True)
class Found:
    """What lies in the bucket, and the bodies of all messages in the queues, dead letters included."""

    bucket: str
    objects: Mapping[str, StoredObject]
    messages: Sequence[str]


def violations(found: Found, uploads: Sequence[Upload]) -> list[str]:
    """Every invariant, of a system that is at rest."""
    checks = (_lost_or_twice, _strange_keys, _foreign_words, _sessions)
    return [wrong for check in checks for wrong in check(found, uploads)]


def transcribed(found: Found, uploads: Sequence[Upload]) -> int:
    """How many audio objects have a transcript of their latest version."""
    return sum(isinstance(outcome(found, upload), Transcript) for upload in latest(uploads).values() if upload.says)


def latest(uploads: Sequence[Upload]) -> dict[str, Upload]:
    """By key, in the order of the first upload of each."""
    return {upload.key: upload for upload in uploads}


def outcome(found: Found, upload: Upload) -> Result | None:
    """The transcript of this very version, else its recorded failure."""
    return next(iter(_outcomes(found, upload).values()), None)


def _outcomes(found: Found, upload: Upload) -> dict[str, Result]:
    """What there is of this version, by the key it lies at: the transcript first."""
    names = parse_key(upload.key)
    assert isinstance(names, ChunkKey | FileKey)
    results: dict[str, Result] = {}
    for key, read in ((names.output_key, read_transcript), (names.error_key, read_error_record)):
        result = read(found.objects[key].body) if key in found.objects else None
        source = result and result.source
        if result and isinstance(source, ObjectRef) and (source.key, source.etag) == (upload.key, upload.etag):
            results[key] = result
    return results


def _lost_or_twice(found: Found, uploads: Sequence[Upload]) -> Iterator[str]:
    """Exactly one of: transcript, recorded failure, message."""
    waiting = _waiting(found)
    for upload in latest(uploads).values():
        stored = found.objects.get(upload.key)
        if stored is None or stored.etag != upload.etag:
            yield f"{upload.key}: the upload itself is not what it was"
        if upload.says is None:
            continue
        places = list(_outcomes(found, upload))
        if waiting.get(upload.key, set()) & {upload.etag, None}:
            places.append("a queue")
        if not places:
            yield f"{upload.key}: lost"
        elif len(places) > 1:
            yield f"{upload.key}: in {len(places)} places: {', '.join(places)}"


def _waiting(found: Found) -> dict[str, set[str | None]]:
    """The keys that messages ask for, each with its ETags; None where a message does not say."""
    waiting: defaultdict[str, set[str | None]] = defaultdict(set)
    for body in found.messages:
        try:
            letters = parse_letter(json.loads(body))
        except (BadMessage, ValueError):
            continue  # nobody will do anything for that one
        for letter in letters:
            if isinstance(letter, JobMessage | Event):
                waiting[letter.key].add(letter.etag)
    return waiting


def _strange_keys(found: Found, uploads: Sequence[Upload]) -> Iterator[str]:
    """Nothing lies outside the keys that follow from what was uploaded, but reports."""
    expected = {key for upload in uploads for key in (upload.key, *_outputs(parse_key(upload.key)))}
    for key, stored in found.objects.items():
        if key.startswith(REPORTS):
            try:
                Day.model_validate_json(stored.body)
            except ValidationError:
                yield f"{key}: is no report"
        elif key not in expected:
            yield f"{key}: nothing that was uploaded has its result there"


def _outputs(names: ParsedKey) -> tuple[str, ...]:
    own = (names.output_key, names.error_key) if isinstance(names, ChunkKey | FileKey) else ()
    session = session_of(names)
    if session is None:
        return own
    derived = (session.derived_key(extension) for extension in DERIVED_FORMATS)
    return (*own, session.output_key, session.error_key, *derived)


def _foreign_words(found: Found, uploads: Sequence[Upload]) -> Iterator[str]:
    """Every chunk's outcome is of an input that existed, and says what that one says."""
    for upload in latest(uploads).values():
        names = parse_key(upload.key)
        if isinstance(names, ChunkKey | FileKey):
            for key in (names.output_key, names.error_key):
                if key in found.objects:
                    yield from wrong_outcome(key, found.objects[key].body, uploads)


def wrong_outcome(key: str, body: bytes, uploads: Sequence[Upload]) -> Iterator[str]:
    """Of one chunk's or file's transcript or recorded failure, at any instant."""
    result = read_error_record(body) if key.endswith(".error.json") else read_transcript(body)
    source = result.source if result else None
    if result is None or not isinstance(source, ObjectRef):
        yield f"{key}: nobody can read it, or it names no source"
        return
    upload = next((one for one in uploads if (one.key, one.etag) == (source.key, source.etag)), None)
    if upload is None:
        yield f"{key}: made from {source.key} {source.etag}, which never existed"
    elif key not in _outputs(parse_key(upload.key))[:2]:
        yield f"{key}: made from {source.key}, whose place is another"
    elif isinstance(result, Transcript):
        yield from (f"{key}: says {said!r}, its audio {upload.says!r}" for said in _said(result) - {upload.says})


def _said(transcript: Transcript) -> set[str]:
    """Its words, wherever it has them: they must be the same everywhere."""
    segments = [segment.text.strip() for segment in transcript.segments]
    words = [word.word.strip() for segment in transcript.segments for word in segment.words]
    return {transcript.text, " ".join(filter(None, segments)), *([" ".join(words)] if words else [])}


def _sessions(found: Found, uploads: Sequence[Upload]) -> Iterator[str]:
    """A complete session has the transcript that follows from its chunks, and an open one has none of this state."""
    waiting = _waiting(found)
    newest = latest(uploads)
    sessions = {session: None for upload in newest.values() if (session := session_of(parse_key(upload.key)))}
    for session in sessions:
        for key, wrong in ((session.output_key, wrong_session), (session.error_key, wrong_manifest_record)):
            if key in found.objects:
                yield from wrong(key, found.objects[key].body, uploads)
        derived = {session.derived_key(extension) for extension in DERIVED_FORMATS} & set(found.objects)
        if session.output_key not in found.objects:
            yield from (f"{key}: there is no session transcript that it could be of" for key in derived)
        manifest = newest.get(session.manifest_key)
        if manifest is None or any(key.startswith(session.audio_prefix) for key in waiting):
            continue  # whoever has the message completes it
        count = _count(manifest)
        if count is None and session.error_key not in found.objects:
            yield f"{session.error_key}: nothing tells that the manifest is bad"
        chunks = _chunks(found, session, newest, count) if count else None
        if chunks is not None:
            yield from _not_combined(found, session, manifest.etag, chunks)


def _count(manifest: Upload) -> int | None:
    """How many chunks it says there are; None when it is bad."""
    try:
        return parse_manifest(manifest.body).chunk_count
    except BadManifest:
        return None


def wrong_manifest_record(key: str, body: bytes, uploads: Sequence[Upload]) -> Iterator[str]:
    """Of the record that a session's manifest is bad, at any instant: it was."""
    record = read_error_record(body)
    source = record and (record.source.key, record.source.etag)
    manifest = next((upload for upload in uploads if (upload.key, upload.etag) == source), None)
    names = parse_key(manifest.key) if manifest else None
    if manifest is None or not isinstance(names, ManifestKey) or names.session.error_key != key:
        yield f"{key}: nobody can read it, or its manifest {source} never existed, or is another's"
    elif _count(manifest) is not None:
        yield f"{key}: its manifest is well"


def _chunks(found: Found, session: Session, newest: Mapping[str, Upload], count: int) -> list[ChunkOutcome] | None:
    """The outcomes of chunks 1 to `count`; None as long as one is missing."""
    by_index: dict[int, ChunkOutcome] = {}
    for upload in newest.values():
        names = parse_key(upload.key)
        if not isinstance(names, ChunkKey) or names.session != session:
            continue
        for key, result in _outcomes(found, upload).items():
            by_index.setdefault(
                names.index,
                ChunkOutcome(names.index, upload.key, upload.etag, key, found.objects[key].etag, result),
            )
    wanted = range(1, count + 1)
    return [by_index[index] for index in wanted] if all(index in by_index for index in wanted) else None


def _not_combined(found: Found, session: Session, manifest_etag: str, chunks: list[ChunkOutcome]) -> Iterator[str]:
    made = combine_chunks(session, bucket=found.bucket, manifest_etag=manifest_etag, chunks=chunks)
    expected = {session.output_key: made.to_json()}
    expected |= {session.derived_key(extension): render(made, extension)[0] for extension in DERIVED_FORMATS}
    for key, body in expected.items():
        if key not in found.objects:
            yield f"{key}: the session is complete, and this is missing"
        elif found.objects[key].body != body:
            yield f"{key}: is not what its chunks make"


def wrong_session(key: str, body: bytes, uploads: Sequence[Upload]) -> Iterator[str]:
    """Of one session transcript, at any instant: perhaps not of the newest inputs, but right for those it names."""
    transcript = read_transcript(body)
    source = transcript.source if transcript else None
    if transcript is None or not isinstance(source, SessionRef):
        yield f"{key}: nobody can read it, or it names no session"
        return
    by_version = {(upload.key, upload.etag): upload for upload in uploads}
    manifest = by_version.get((source.manifest_key, source.manifest_etag))
    names = parse_key(source.manifest_key)
    if manifest is None or not isinstance(names, ManifestKey) or names.session.output_key != key:
        yield f"{key}: its manifest {source.manifest_key} {source.manifest_etag} never existed, or is another's"
        return
    if [chunk.index for chunk in source.chunks] != list(range(1, (_count(manifest) or 0) + 1)):
        yield f"{key}: has the chunks {[chunk.index for chunk in source.chunks]}"
    said = []
    for chunk in source.chunks:
        upload = by_version.get((chunk.key, chunk.etag))
        if upload is None or not chunk.key.startswith(names.session.audio_prefix):
            yield f"{key}: made from {chunk.key} {chunk.etag}, which never existed, or is another's"
        elif chunk.status == "transcribed":
            said.append(upload.says or "")
    words = " ".join(filter(None, said))
    yield from (f"{key}: says {other!r}, its chunks {words!r}" for other in _said(transcript) - {words})


def regressions(key: str, before: bytes, after: bytes, uploads: Sequence[Upload]) -> Iterator[str]:
    """What was replaced by something older: a version of the audio, of the manifest, or a live text over a stitched."""
    ages = {(upload.key, upload.etag): age for age, upload in enumerate(uploads)}
    old, new = (_inputs(key, body) for body in (before, after))
    for input, version in new.items():
        was = old.get(input)
        if was and ages.get((input, version), -1) < ages.get((input, was), -1):
            yield f"{key}: went back to an older version of {input}"
    first, second = read_transcript(before), read_transcript(after)
    if first and second and first.is_stitched and not second.is_stitched and old == new:
        yield f"{key}: a stitched transcript was replaced by a live one"


def _inputs(key: str, body: bytes) -> dict[str, str]:
    """The ETag of every input of an outcome, by its key."""
    result: Result | None = read_error_record(body) if key.endswith(".error.json") else read_transcript(body)
    source = result.source if result else None
    if isinstance(source, SessionRef):
        return {source.manifest_key: source.manifest_etag} | {chunk.key: chunk.etag for chunk in source.chunks}
    return {source.key: source.etag} if isinstance(source, ObjectRef) else {}
