"""Genuine inputs of every target, to begin with; and how they are damaged."""

import json
from functools import cache
from typing import Any

from hypothesis import strategies as st

from shared.jobs import Job, JobMessage, Options, Reason
from shared.keys import ChunkKey, Session
from shared.transcript import ErrorRecord
from tests.fakes import EPOCH, transcript_for
from tests.faults.fuzz.targets import PLAIN
from tests.gpu_server import media

NAMES = ChunkKey(Session("ann", "standup"), "1", "webm")
JOB = Job(bucket="audio-bucket", key=NAMES.key, etag="9b2c-3", size=81_920, options=Options(language="en"))
EXTREMES = [0, 1, -1, 0.0, -0.001, 1e308, -1e308, 10**30, 2**31, 2**63, "", "\x00", "\ud800", "a" * 3000, [], {}]
EXTREMES += ["2026-01-01T00:00:00", "0001-01-01T00:00:00+14:00", 1e13, 3e9]


def documents(target: str) -> list[Any]:
    """Genuine JSON documents of a target; none where it takes something else."""
    message = json.loads(JobMessage.of(JOB, Reason.FAILED, now=EPOCH).to_json())
    created = {"bucket": {"name": "audio-bucket"}, "object": {"key": NAMES.key, "etag": "9b2c", "size": 7}}
    bridge = {"source": "aws.s3", "detail-type": "Object Created", "time": "2026-01-01T00:00:00Z", "detail": created}
    s3 = {"bucket": {"name": "audio-bucket"}, "object": {"key": "a+b%2Bc.mp3", "eTag": '"e"', "size": 7}}
    record = {"eventName": "ObjectCreated:Put", "s3": s3}
    app = {"s3Location": {"bucket": "audio-bucket", "key": NAMES.key}, "force_batch": True, "language": "en-US"}
    uploaded = {"source": "custom.upload-service", "detail-type": "Audio Uploaded", "detail": app}
    failure = {"version": "1.0", "requestContext": {}, "requestPayload": {"Records": [record]}}
    source = transcript_for(JOB).source
    assert source is not None
    error = ErrorRecord(type="t", message="m", source=source, attempts=1, created_at=EPOCH, duration=1.5)  # type: ignore[arg-type]
    return {
        "events": [bridge, record, uploaded, app, failure, {"events": [bridge]}, {"source": "aws.scheduler"}, message],
        "messages": [message],
        "manifests": [{"chunkCount": 12, "recorder": "browser"}],
        "transcripts": [json.loads(PLAIN), json.loads(transcript_for(JOB, "hi there", stitched=True).to_json())],
        "error_records": [json.loads(error.to_json())],
    }.get(target, [])


@cache
def seeds(target: str) -> list[bytes]:
    """Genuine inputs of a target, small enough to be damaged thousands of times."""
    if target == "keys":
        others = ["calls/a b+c%20ü.mp3", NAMES.session.manifest_key, NAMES.output_key, "users/u/audio/sessions/s/"]
        return [key.encode() for key in [NAMES.key, *others]]
    if target == "containers":
        recordings = (
            media.recording(0.5),
            media.ogg_recording(0.5, page_ms=100),
            media.mp4_recording(0.7),
            media.mp4_recording(0.7, flags="frag_keyframe"),
            media.mp4_recording(0.7, codec="libopus", flags=media.FRAGMENTS + "+delay_moov"),
        )
        return [*recordings, *(recording[len(recording) // 3 :] for recording in recordings)]
    return [json.dumps(document).encode() for document in documents(target)]


@st.composite
def damaged_bytes(draw: st.DrawFn, target: str) -> bytes:
    """A genuine input, cut, with bytes flipped, lengths set to extremes, and pieces taken out, doubled or moved."""
    data = bytearray(draw(st.sampled_from(seeds(target))))
    for _ in range(draw(st.integers(0, 6))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        length = draw(st.integers(0, 64))
        match draw(st.sampled_from(["flip", "set", "cut", "remove", "double", "insert"])):
            case "flip" if data:
                data[place] ^= 1 << draw(st.integers(0, 7))
            case "set":
                number = draw(
                    st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\0\0\0\1", b"\x7f\xff\xff\xff", b"\1"])
                )
                data[place : place + len(number)] = number
            case "cut":
                del data[place:]
            case "remove":
                del data[place : place + length]
            case "double":
                data[place:place] = data[place : place + length]
            case "insert":
                data[place:place] = draw(st.binary(max_size=16))
    return bytes(data)


@st.composite
def damaged_documents(draw: st.DrawFn, target: str) -> bytes:
    """A genuine document in which some values are something else, or gone."""
    document = json.loads(json.dumps(draw(st.sampled_from(documents(target)))))
    for _ in range(draw(st.integers(1, 4))):
        document = _replaced(draw, document)
    return json.dumps(document).encode()


_ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(EXTREMES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def _replaced(draw: st.DrawFn, document: Any) -> Any:
    """`document` with one value, somewhere inside, replaced, removed or added."""
    if isinstance(document, dict) and document and draw(st.booleans() | st.just(True)):
        name = draw(st.sampled_from(sorted(document)))
        match draw(st.sampled_from(["deeper", "deeper", "remove", "add"])):
            case "deeper":
                return document | {name: _replaced(draw, document[name])}
            case "remove":
                return {other: value for other, value in document.items() if other != name}
            case "add":
                return document | {draw(st.text(max_size=5)): draw(_ANY)}
    if isinstance(document, list) and document and draw(st.booleans()):
        place = draw(st.integers(0, len(document) - 1))
        return [*document[:place], _replaced(draw, document[place]), *document[place + 1 :]]
    return draw(_ANY)
