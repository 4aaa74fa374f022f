"""What bad input gets, through the whole system: a clear record, a complete session, nothing tried for ever."""

import io
import json
import os
import socket
import subprocess
import sys
import wave
from pathlib import Path

import pytest

from infra.local import processes, stack
from shared.keys import Session
from shared.transcript import SessionRef
from tests.integration.conftest import DATA, System
from tests.patience import eventually

pytestmark = pytest.mark.integration


def silence(*, seconds: int) -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as output:
        output.setnchannels(1)
        output.setsampwidth(2)
        output.setframerate(16_000)
        output.writeframes(bytes(32_000 * seconds))
    return file.getvalue()


GOOD = DATA / "session-a/chunk-001.webm"
CHUNKS = {
    1: ("chunk-1.webm", b"just some text that is no audio " * 20, "media-not-recognised"),
    2: ("chunk-2.webm", b"", "media-empty"),
    3: ("chunk-3.webm", GOOD.read_bytes(), None),
    4: ("chunk-4.webm", GOOD.read_bytes()[:40], None),  # a header-only stub: a laptop that slept
    5: ("chunk-5.mp3", silence(seconds=1), None),  # with a wrong extension
    6: ("chunk-6.webm", GOOD.read_bytes()[:9000], None),  # cut off in the middle
}


def test_a_session_of_every_kind_of_bad_chunk_completes_and_says_what_is_missing(server: System) -> None:
    session = Session("u", "bad chunks")
    for name, body, _ in CHUNKS.values():
        server.put(session.audio_prefix + name, body)
    server.manifest(session, len(CHUNKS))
    transcript = eventually(lambda: server.transcript(session), "the session transcript")
    assert isinstance(transcript.source, SessionRef)
    statuses = {chunk.index: chunk.status for chunk in transcript.source.chunks}
    assert statuses == {n: "failed" if type else "transcribed" for n, (_, _, type) in CHUNKS.items()}
    for number, (_, _, type) in CHUNKS.items():
        if type:
            record = json.loads(server.get(f"{session.transcript_prefix}{number}.error.json") or b"{}")
            assert (record["type"], bool(record["message"])) == (type, True)
    assert "garden" in transcript.text
    reasons = " ".join(gap.reason for gap in transcript.gaps)
    for reason in ("media-not-recognised", "media-empty", "header-only", "no-speech"):
        assert reason in reasons


def test_a_manifest_with_a_wrong_count_is_recorded_and_can_be_corrected(server: System) -> None:
    session = Session("u", "bad manifest")
    server.upload(session, count=1)
    server.manifest(session, "1")
    record = eventually(lambda: server.get(session.error_key), "the record")
    assert "chunkCount" in json.loads(record)["message"]
    server.manifest(session, 1)
    eventually(lambda: server.transcript(session), "the session transcript")


def test_a_session_id_that_would_collide_is_refused_with_a_record(server: System) -> None:
    key = "users/u/audio/sessions/a-chunk-1/chunk-1.webm"
    server.put(key, GOOD.read_bytes())
    record = eventually(lambda: server.get(f"transcripts/{key}.error.json"), "the record")
    assert json.loads(record)["type"] == "refused-key"


def test_pictures_and_outputs_start_no_work(server: System) -> None:
    keys = ["users/u/photo.jpg", "users/u/transcripts/x.json", "users/u/transcripts/x.srt"]
    for key in keys:
        server.put(key, b"x")
    marker = "ordering/after.wav"
    server.put(marker, (DATA / "hello.wav").read_bytes())
    eventually(lambda: server.get(f"transcripts/{marker}.json"), "a later upload")
    assert [line for key in keys for line in server.decisions(key)] == []


@pytest.mark.parametrize(
    ("program", "changes", "named"),
    [
        ("gpu_server", {"FAST_API_HOST": "0.0.0.0"}, "API_KEY"),
        ("gpu_server", {"FAST_API_PORT": "many"}, "FAST_API_PORT"),
        ("gpu_server", {"AUDIO_BUCKET": "some-bucket"}, "AWS_REGION"),
        ("batch_worker", {"AWS_REGION": "us-east-2", "AUDIO_BUCKET": "some-bucket"}, "SQS_QUEUE_URL"),
    ],
)
def test_a_program_that_is_set_up_wrong_says_what_and_exits(
    tmp_path: Path, program: str, changes: dict[str, str], named: str
) -> None:
    done = run_program(program, changes)
    assert done.returncode == 2
    assert named in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_model_is_named_with_the_way_to_get_it() -> None:
    port = str(processes.free_port(0))
    done = run_program("gpu_server", {"WHISPER_MODEL": "large-v9", "ENGINE": "faster-whisper", "FAST_API_PORT": port})
    assert done.returncode == 3
    assert "large-v9" in done.stderr


def test_a_server_whose_port_is_taken_says_so_and_fails() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run_program("gpu_server", {"ENGINE": "faster-whisper", "FAST_API_PORT": str(port)})
    assert done.returncode == 3
    assert "address already in use" in done.stderr
    assert str(port) in done.stderr


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"SQS_QUEUE_URL": "http://127.0.0.1:1/000000000000/none"}, "SQS"),
        ({"FAST_API_SERVER_URL": "http://127.0.0.1:9", "SERVER_WAIT": "0"}, "127.0.0.1:9"),
        ({"AUDIO_BUCKET": "not-the-bucket"}, "S3"),
    ],
)
def test_a_worker_that_cannot_work_says_why_and_leaves_the_queue_alone(
    server: System, change: dict[str, str], named: str
) -> None:
    environment = server.local._program_environment() | {"POLL_SECONDS": "1"} | change
    done = run_program("batch_worker", environment, "--until-empty")
    assert done.returncode == 1
    assert named in done.stderr


def run_program(program: str, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", program, *arguments],
        cwd=stack.ROOT,
        env={**stack.without_aws(os.environ), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
