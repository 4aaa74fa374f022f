"""What must hold of every parser whatever bytes it gets: each target takes bytes and raises only when a rule is broken.

The same rules are tried with hypothesis (damaged real inputs), and with coverage-guided fuzzing (`guided`).
"""

import io
import json
from collections.abc import Callable
from typing import Any

from gpu_server import mp4
from gpu_server.containers import CONTAINERS, continuation_of, header_of
from shared.errors import BadEvent, BadManifest, BadMessage, RefusedKey
from shared.events import Upload, parse_letter, parse_upload, unwrap_events
from shared.jobs import Job, JobMessage, Reason, parse_job_message
from shared.keys import (
    MAX_CHUNKS,
    MAX_KEY_BYTES,
    ChunkKey,
    FileKey,
    IgnoredKey,
    ManifestKey,
    Session,
    is_audio,
    parse_audio_key,
    parse_chunk_key,
    parse_key,
    session_of,
)
from shared.manifest import parse_manifest
from shared.queues import Message
from shared.sessions import ChunkOutcome, combine_chunks, seconds_by_route
from shared.subtitles import render
from shared.transcript import ErrorRecord, Transcript, read_error_record, read_transcript

Target = Callable[[bytes], None]
GROWTH = 512  # bytes that a repaired chunk may have beyond its parts: a cluster's start, a box's refilled table


def events(data: bytes) -> None:
    """A router's invocation or a queue's letter: read, or one documented error; what is read makes a job."""
    document = _json(data)
    for event in unwrap_events(document):
        try:
            upload = parse_upload(event)
        except BadEvent:
            continue
        if isinstance(upload, Upload):
            _makes_a_job(upload)
    try:
        letters = parse_letter(_letter(data))
    except BadMessage:
        return
    assert isinstance(letters, list)
    for letter in letters:
        if isinstance(letter, JobMessage):
            _is_consistent(letter)


def messages(data: bytes) -> None:
    """A job: its derived fields follow from its key, and it survives the queue."""
    try:
        message = parse_job_message(_letter(data))
    except BadMessage:
        return
    _is_consistent(message)


def keys(data: bytes) -> None:
    """A key: understood or refused; results have keys of their own, that S3 takes and that are no input."""
    key = data.decode(errors="replace")
    try:
        parsed = parse_key(key)
    except RefusedKey as refused:
        assert not is_audio(key)
        assert parse_chunk_key(key) is None
        _is_result(refused.error_key)
        return
    assert is_audio(key) == isinstance(parsed, ChunkKey | FileKey)
    match parsed:
        case ChunkKey():
            assert parsed.key == key
            assert 1 <= parsed.index <= MAX_CHUNKS
            _are_results(parsed.output_key, parsed.error_key, *_of_session(parsed.session))
        case FileKey():
            assert parsed.key == key
            _are_results(parsed.output_key, parsed.error_key)
        case ManifestKey():
            assert parsed.session.manifest_key == key
            _are_results(*_of_session(parsed.session))
        case IgnoredKey():
            assert session_of(parsed) is None


def manifests(data: bytes) -> None:
    try:
        manifest = parse_manifest(data)
    except BadManifest as error:
        assert error.message
        return
    assert 1 <= manifest.chunk_count <= MAX_CHUNKS


def transcripts(data: bytes) -> None:
    """What can be read can be written and read again, and can be a part of its session's transcript."""
    transcript = read_transcript(data)
    if transcript is not None:
        again = read_transcript(transcript.to_json())
        assert again is not None, "what we write of it cannot be read"
        assert read_transcript(again.to_json()) == again
        _combines(transcript)


def error_records(data: bytes) -> None:
    record = read_error_record(data)
    if record is not None:
        again = read_error_record(record.to_json())
        assert again is not None, "what we write of it cannot be read"
        assert read_error_record(again.to_json()) == again
        _combines(record)


def containers(data: bytes) -> None:
    """A recording's chunk: never an exception, never more than was there, and what is repaired is no continuation.

    The first half is chunk 1 or the chunk before, the second is the chunk that is repaired.
    """
    first, later = data[: len(data) // 2], data[len(data) // 2 :]
    continuation_of(data)
    assert 0 <= mp4.readable_bytes(io.BytesIO(data), len(data)) <= len(data)
    found = header_of(first)
    for container in CONTAINERS:
        container.is_continuation(later)
        container.is_cut(later)
        header = container.header_of(first)
        assert header is None or len(header) <= len(first)
        cut = container.cut_element(first)
        assert len(cut) <= len(first) + GROWTH
        assert found is None or isinstance(found[1], bytes)
        whole = container.graft(header or b"", cut, later)
        assert len(whole) <= len(header or b"") + len(cut) + len(later) + GROWTH


def picky(data: bytes) -> None:
    """Breaks by itself, for whoever does the trying to show that they find that."""
    for number, letter in enumerate(b"OggS"):
        if data[number : number + 1] != bytes([letter]):
            return
    raise AssertionError("OggS")


TARGETS: dict[str, Target] = {
    target.__name__: target for target in (events, messages, keys, manifests, transcripts, error_records, containers)
}


def _json(data: bytes) -> Any:
    """As Lambda's runtime gives it; what is no JSON never comes."""
    try:
        return json.loads(data)
    except (ValueError, RecursionError):
        return None


def _letter(data: bytes) -> Any:
    """As the worker reads a message's body."""
    return Message("id", "receipt", data.decode(errors="replace"), 1).document()


def _makes_a_job(upload: Upload) -> None:
    """What the router does with it."""
    if is_audio(upload.key):
        job = Job(
            bucket=upload.bucket,
            key=upload.key,
            etag=upload.etag or "etag-of-s3",
            size=upload.size,
            version_id=upload.version_id,
            options=upload.options,
        )
        _goes_through_the_queue(job)


def _goes_through_the_queue(job: Job) -> None:
    body = JobMessage.of(job, Reason.FAILED).to_json()
    assert body.isascii()
    (letter,) = parse_letter(json.loads(body))
    assert isinstance(letter, JobMessage)
    assert letter.job() == job


def _is_consistent(message: JobMessage) -> None:
    job = message.job()
    assert message.output_key == parse_audio_key(job.key).output_key
    assert message.job_id == job.job_id
    _goes_through_the_queue(job)


def _of_session(session: Session) -> list[str]:
    return [session.derived_key(extension) for extension in ("json", "srt", "vtt", "txt", "error.json")]


def _are_results(*results: str) -> None:
    assert len(set(results)) == len(results)
    for key in results:
        _is_result(key)


def _is_result(key: str) -> None:
    assert len(key.encode()) <= MAX_KEY_BYTES
    assert isinstance(parse_key(key), IgnoredKey)


def _combines(result: Transcript | ErrorRecord) -> None:
    """A session of this chunk and a plain one, in both orders: it can be written, read and shown."""
    session = Session("u", "s")
    plain = read_transcript(PLAIN)
    assert plain is not None
    for results in ([result], [result, plain], [plain, result]):
        chunks = []
        for number, one in enumerate(results, start=1):
            names = ChunkKey(session, str(number), "webm")
            chunks.append(ChunkOutcome(number, names.key, "e", names.output_key, "o", one))
        combined = combine_chunks(session, bucket="audio-bucket", manifest_etag="m", chunks=chunks)
        seconds_by_route(chunks)
        assert read_transcript(combined.to_json()) is not None, "its session cannot be read"
        for extension in ("srt", "vtt", "txt"):
            render(combined, extension)


PLAIN = (
    b'{"version":1,"text":"Hello there.","language":"en","duration":5.0,"segments":[{"id":0,"start":0.3,"end":1.1,'
    b'"text":"Hello there.","words":[{"word":"Hello","start":0.3,"end":0.7},{"word":"there.","start":0.7,"end":1.1}]}],'
    b'"model":"tiny.en","engine":"faster-whisper","pass":"stitched","created_at":"2026-01-01T00:00:00Z"}'
)
