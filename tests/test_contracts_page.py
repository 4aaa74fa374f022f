"""docs/contracts.md is true: its examples are what the code reads and writes."""

import json
import re
from pathlib import Path
from typing import Any

from gpu_server.requests import SessionReceipt, TranscribeSession, split_s3_path
from shared.combine import SessionTranscribed
from shared.events import Upload, parse_upload
from shared.jobs import parse_job_message
from shared.keys import ChunkKey, parse_key
from shared.manifest import parse_manifest
from shared.transcript import Transcript, read_error_record, read_transcript

PAGE = (Path(__file__).parents[1] / "docs/contracts.md").read_text()


def example(name: str) -> Any:
    [text] = re.findall(rf"```json {name}\n(.*?)```", PAGE, re.DOTALL)
    return json.loads(text)


def test_the_manifest() -> None:
    assert parse_manifest(json.dumps(example("manifest")).encode()).chunk_count == 12


def test_the_event() -> None:
    upload = parse_upload(example("event"))
    assert isinstance(upload, Upload)
    assert (upload.force_batch, upload.options.language) == (True, "en")


def test_the_announcement() -> None:
    assert SessionTranscribed(**example("announcement")).failed == 1


def test_the_transcript_comes_out_as_it_stands_there() -> None:
    transcript = read_transcript(json.dumps(example("transcript")).encode())
    assert isinstance(transcript, Transcript)
    written = json.loads(transcript.to_json())
    assert written == example("transcript")


def test_the_error_record_comes_out_as_it_stands_there() -> None:
    record = read_error_record(json.dumps(example("error")).encode())
    assert record is not None
    assert json.loads(record.to_json()) == example("error")


def test_the_job_message() -> None:
    message = parse_job_message(example("job"))
    names = parse_key(message.key)
    assert isinstance(names, ChunkKey)
    assert (message.output_key, message.chunk_index) == (names.output_key, 1)


def test_the_sessions_request_and_receipt() -> None:
    request = TranscribeSession.model_validate(example("session-request"))
    assert [split_s3_path(chunk.s3_input_path)[0] for chunk in request.chunks] == ["my-audio", "my-audio"]
    receipt = SessionReceipt.model_validate_json(json.dumps(example("session-receipt")))
    assert json.loads(receipt.model_dump_json(exclude_none=True)) == example("session-receipt")
