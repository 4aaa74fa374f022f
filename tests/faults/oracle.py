"""The invariants, checked from outside: S3, the queues, and the list of what was uploaded. Nothing else is believed.

Pure functions. Each returns what is wrong, in words, and nothing when all is well.
"""

import html
import json
from collections import defaultdict
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass

from pydantic import ValidationError

from batch_worker.report import Day
from shared.errors import BadManifest, BadMessage
from shared.events import Upload as Event
from shared.events import parse_letter
from shared.jobs import JobMessage
from shared.keys import (
    DERIVED_FORMATS,
    ChunkKey,
    FileKey,
    ManifestKey,
    ParsedKey,
    Session,
    parse_chunk_key,
    parse_key,
    session_of,
)
from shared.manifest import parse_manifest
from shared.sessions import ChunkOutcome, combine_chunks
from shared.store import StoredObject
from shared.subtitles import render
from shared.transcript import ErrorRecord, ObjectRef, SessionRef, Transcript, read_error_record, read_transcript

REPORTS = "reports/batch/"
HEADER_MISSING = "media-header-missing"  # the type of a record
Result = Transcript | ErrorRecord
Version = tuple[str, str]  # an object's key and ETag
STRANGE = "nothing that was uploaded has its result there"


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
    """What accounts for this very version: its transcript; without one, its recorded failure while that stands.

    A record beside the transcript of its version says nothing: the audio was heard after all. One for want of a header
    falls when the recording has another chunk 1 than the one that was of no help, or has one at last.
    """
    lies = _lies(found, upload)
    return lies[1] if lies else None


def _lies(found: Found, upload: Upload) -> tuple[str, Result] | None:
    """`outcome`, and the key it lies at."""
    names = parse_key(upload.key)
    assert isinstance(names, ChunkKey | FileKey)
    for key, read in ((names.output_key, read_transcript), (names.error_key, read_error_record)):
        result = read(found.objects[key].body) if key in found.objects else None
        if result and _source(result) == (upload.key, upload.etag) and _stands(found, names, result):
            return key, result
    return None


def _source(result: Result | None) -> Version | None:
    """The version of audio that it is of."""
    source = result.source if result else None
    return (source.key, source.etag) if isinstance(source, ObjectRef) else None


def _stands(found: Found, names: ChunkKey | FileKey, result: Result) -> bool:
    if isinstance(result, Transcript) or result.type != HEADER_MISSING or isinstance(names, FileKey):
        return True
    recording = (names.session, 1, names.extension)
    headers = {
        stored.etag
        for key, stored in found.objects.items()
        if (other := parse_chunk_key(key)) and (other.session, other.index, other.extension) == recording
    }
    return result.header_etag in (headers or {None})


def _lost_or_twice(found: Found, uploads: Sequence[Upload]) -> Iterator[str]:
    """Exactly one of: transcript, recorded failure, message."""
    waiting = _waiting(found)
    for upload in latest(uploads).values():
        stored = found.objects.get(upload.key)
        if stored is None or stored.etag != upload.etag:
            yield f"{upload.key}: the upload itself is not what it was"
        if upload.says is None:
            continue
        lies = _lies(found, upload)
        places = [lies[0]] if lies else []
        if waiting.get(upload.key, set()) & {upload.etag, None}:
            places.append("a queue")
        if not places and not _gave_way(found, upload, uploads):
            yield f"{upload.key}: lost"
        elif len(places) > 1:
            yield f"{upload.key}: in {len(places)} places: {', '.join(places)}"


def _gave_way(found: Found, upload: Upload, uploads: Sequence[Upload]) -> bool:
    """Whether the place of its record is taken by that of the newer object with its number."""
    names = parse_key(upload.key)
    if not isinstance(names, ChunkKey) or names.error_key not in found.objects:
        return False
    winner = _counting(names.session, uploads)[names.index]
    taken = _source(read_error_record(found.objects[names.error_key].body))
    return winner.key != upload.key and taken == (winner.key, winner.etag)


def _counting(session: Session, uploads: Sequence[Upload]) -> dict[int, Upload]:
    """A session's audio that counts, by number: of two objects with one number the newer."""
    return {
        names.index: upload
        for upload in uploads
        if (names := parse_chunk_key(upload.key)) is not None and names.session == session
    }


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
            yield from _wrong_report(key, stored.body)
        elif key not in expected:
            yield f"{key}: {STRANGE}"


def _wrong_report(key: str, body: bytes) -> Iterator[str]:
    try:
        Day.model_validate_json(body)
    except ValidationError:
        yield f"{key}: is no report"


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
    source = _source(result)
    if result is None or source is None:
        yield f"{key}: nobody can read it, or it names no source"
        return
    upload = next((one for one in uploads if (one.key, one.etag) == source), None)
    if upload is None:
        yield f"{key}: made from {' '.join(source)}, which never existed"
    elif key not in _outputs(parse_key(upload.key))[:2]:
        yield f"{key}: made from {source[0]}, whose place is another"
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
        chunks = _chunks(found, session, uploads, count) if count else None
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


def _chunks(found: Found, session: Session, uploads: Sequence[Upload], count: int) -> list[ChunkOutcome] | None:
    """The outcomes of chunks 1 to `count`; None as long as one is missing."""
    counting = _counting(session, uploads)
    chunks = []
    for index in range(1, count + 1):
        upload = counting.get(index)
        lies = _lies(found, upload) if upload else None
        if upload is None or lies is None:
            return None
        key, result = lies
        chunks.append(ChunkOutcome(index, upload.key, upload.etag, key, found.objects[key].etag, result))
    return chunks


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
        audio = parse_chunk_key(chunk.key)
        if upload is None or audio is None or audio.session != names.session:
            yield f"{key}: made from {chunk.key} {chunk.etag}, which never existed, or is another's"
            continue
        if audio.index != chunk.index:
            yield f"{key}: has {chunk.key} as chunk {chunk.index}"
        if chunk.outcome_key != (audio.output_key if chunk.status == "transcribed" else audio.error_key):
            yield f"{key}: chunk {chunk.index} is {chunk.status} by {chunk.outcome_key}"
        if chunk.status == "transcribed":
            said.append(upload.says or "")
    words = " ".join(filter(None, said))
    yield from (f"{key}: says {other!r}, its chunks {words!r}" for other in _said(transcript) - {words})


def wrong_write(
    key: str, body: bytes, uploads: Sequence[Upload], before: Mapping[Version, bytes], *, replaced: str = ""
) -> Iterator[str]:
    """Of whatever our programs write, at any instant.

    `before`: all that they wrote before it, in its order; `replaced`: the ETag of what lay there, which is taken before
    anything is read that a session is made of.
    """
    names = next((names for upload in uploads if key in _outputs(names := parse_key(upload.key))), None)
    session = session_of(names) if names else None
    if key.startswith(REPORTS):
        yield from _wrong_report(key, body)
    elif names is None:
        yield f"{key}: {STRANGE}"
    elif session is None or key.startswith(session.transcript_prefix):
        yield from wrong_outcome(key, body, uploads)
    elif key == session.error_key:
        yield from wrong_manifest_record(key, body, uploads)
    elif key == session.output_key:
        yield from wrong_session(key, body, uploads)
        yield from _wrong_entries(key, body, before, replaced)
    else:
        yield from _wrong_subtitles(key, body, session, uploads, {key for key, _ in before})


def _wrong_entries(key: str, body: bytes, before: Mapping[Version, bytes], replaced: str) -> Iterator[str]:
    """Of the outcomes that a session transcript names: they were written, and it passed over none that was better."""
    transcript = read_transcript(body)
    chunks = transcript.source.chunks if transcript and isinstance(transcript.source, SessionRef) else ()
    # Its maker looked after the last of what it names was written, and that is what lay there then.
    named = {(key, replaced), *((chunk.outcome_key, chunk.outcome_etag) for chunk in chunks)}
    looked = max((place for place, version in enumerate(before, 1) if version in named), default=0)
    there = dict(list(before)[:looked])
    for chunk in chunks:
        audio = parse_chunk_key(chunk.key)
        read = read_transcript if chunk.status == "transcribed" else read_error_record
        if _source(read(before.get((chunk.outcome_key, chunk.outcome_etag), b""))) != (chunk.key, chunk.etag):
            yield f"{key}: names an outcome of chunk {chunk.index} that was never written, or is of other audio"
        elif audio and chunk.status == "failed" and audio.output_key in there:
            heard = read_transcript(before[audio.output_key, there[audio.output_key]])
            if _source(heard) == (chunk.key, chunk.etag):
                yield f"{key}: says that chunk {chunk.index} failed, which had its transcript"


def _wrong_subtitles(
    key: str, body: bytes, session: Session, uploads: Sequence[Upload], written: Container[str]
) -> Iterator[str]:
    """Of a file derived from a session transcript: it says what one version of each chunk says, in their order.

    Nothing of a chunk whose failure was ever recorded is right as well. That it goes back for an instant, when a
    combiner that was late is mended by the next, is no violation: `shared.combine`.
    """
    versions: defaultdict[int, set[tuple[str, ...]]] = defaultdict(set)
    for upload in uploads:
        names = parse_chunk_key(upload.key)
        if names and names.session == session:
            versions[names.index] |= {tuple((upload.says or "").split())} | (
                {()} if names.error_key in written else set()
            )
    said = _shown(body, key.rpartition(".")[2])
    counts = {_count(upload) or 0 for upload in uploads if upload.key == session.manifest_key}
    ends = {0}  # where the words of the chunks so far may end
    for index in range(1, max(counts, default=0) + 1):
        ends = {end + len(words) for end in ends for words in versions[index] if said[end : end + len(words)] == words}
        if index in counts and len(said) in ends:
            return
    yield f"{key}: says {' '.join(said)!r}, which its chunks never did"


def _shown(body: bytes, extension: str) -> tuple[str, ...]:
    """The words on the screen, without numbers and times."""
    if extension == "txt":
        return tuple(body.decode().split())
    lines: list[str] = []
    for block in body.decode().split("\n\n"):
        _, timing, text = block.partition(" --> ")
        lines += text.splitlines()[1:] if timing else []
    words = " ".join(lines).split()
    return tuple(map(html.unescape, words)) if extension == "vtt" else tuple(words)


def regressions(key: str, before: bytes, after: bytes, uploads: Sequence[Upload]) -> Iterator[str]:
    """What was replaced by something older: a version of the audio, of the manifest, or a live text over a stitched."""
    ages = {(upload.key, upload.etag): age for age, upload in enumerate(uploads)}
    old, new = (_inputs(key, body) for body in (before, after))
    for input, version in new.items():
        was = old.get(input)
        if was and ages.get(version, -1) < ages.get(was, -1):
            yield f"{key}: went back to an older version of {input}"
    first, second = read_transcript(before), read_transcript(after)
    if first and second and first.is_stitched and not second.is_stitched and old == new:
        yield f"{key}: a stitched transcript was replaced by a live one"


def _inputs(key: str, body: bytes) -> dict[str, Version]:
    """Every input of an outcome, by its part in it: two objects with one chunk number have the same."""
    result: Result | None = read_error_record(body) if key.endswith(".error.json") else read_transcript(body)
    source = result.source if result else None
    if isinstance(source, SessionRef):
        chunks = {f"chunk {chunk.index}": (chunk.key, chunk.etag) for chunk in source.chunks}
        return {"its manifest": (source.manifest_key, source.manifest_etag)} | chunks
    return {"its input": (source.key, source.etag)} if isinstance(source, ObjectRef) else {}
