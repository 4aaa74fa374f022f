"""The eight faults of the system this one replaces, by name. None may come back."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto import mock_aws

from router_lambda import handler as edge
from router_lambda.decide import ANSWER_SECONDS, QUEUE_RESERVE_SECONDS, Decision
from shared.chunk_writer import write_chunk
from shared.combine import Combiner, Status
from shared.errors import TransientError
from shared.jobs import Job, Reason
from shared.keys import Session
from shared.server import Answer, Health, Limits, Said
from shared.store import CLIENT_CONFIG, S3Store
from shared.transcript import read_transcript
from tests.batch_worker.test_worker import Night
from tests.fakes import MemoryStore, transcript_for
from tests.router_lambda.test_handler import Context
from tests.router_lambda.test_route import World
from tests.shared.test_combine import Recording
from tests.shared.test_events import s3_event

SESSION = Session("u", "s")
MANIFEST = SESSION.manifest_key
CHUNK = f"{SESSION.audio_prefix}chunk-1.webm"


@pytest.fixture
def s3(monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Store]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with mock_aws():
        client = boto3.client("s3", region_name="us-east-1", config=CLIENT_CONFIG)
        client.create_bucket(Bucket="audio-bucket")
        yield S3Store(client, "audio-bucket")


def test_session_combination_that_never_fires(s3: S3Store, tmp_path: Path) -> None:
    """HEAD of a missing object is a ClientError 404, not NoSuchKey; taken for an error, it stopped every session."""
    recording = Recording(s3)
    recording.chunk(1, "hello", tmp_path)
    recording.manifest(1)
    assert recording.combine().status is Status.COMPLETE
    assert recording.transcript() is not None


def test_fallback_unreachable_because_the_lambda_times_out_first(store: MemoryStore) -> None:
    """Every try hangs for as long as it may, and every wait is waited: the queue still gets the job in time."""
    clock = 0.0
    world = World(store, remaining=lambda: 120.0 - clock)

    def hang(job: Job, limits: Limits, **_: object) -> Answer:
        nonlocal clock
        clock += limits.total
        return Answer(Said.FAILED, message="timeout")

    def pass_time(seconds: float) -> None:
        nonlocal clock
        clock += seconds

    world.server.transcribe = hang  # type: ignore[assignment,method-assign]
    world.router.sleep = pass_time
    assert world.upload().decision is Decision.QUEUED
    assert len(world.queue.sent) == 1
    assert clock > 3 * ANSWER_SECONDS
    assert 120.0 - clock >= QUEUE_RESERVE_SECONDS


def test_errors_returned_instead_of_raised(store: MemoryStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """An asynchronous Lambda that returns has succeeded: `{"statusCode": 500}` loses the event."""
    world = World(store)
    world.server.ready = Health(ready=False, alive=False)
    world.queue.broken = True
    monkeypatch.setattr(edge, "_router", lambda: world.router)
    etag = store.upload(CHUNK)
    with pytest.raises(TransientError):
        edge.handler(s3_event(CHUNK, etag=etag), Context())


def test_a_busy_server_that_looks_dead(world_and_night: tuple[World, Night]) -> None:
    """A saturated server was retried and timed out like a dead one. Now the router leaves it be, the worker waits."""
    world, night = world_and_night
    world.server.ready = Health(ready=False, alive=True, reason="saturated")
    assert world.upload().decision is Decision.QUEUED
    assert world.server.calls == []
    night.server.ready = world.server.ready
    night.server.answers = [Answer(Said.BUSY, 429, retry_after=0.01), Answer(Said.DONE, 200)]
    night.queue.send(world.job(), Reason.UNHEALTHY)
    assert night.run().transcribed == 1


@pytest.fixture
def world_and_night(store: MemoryStore) -> tuple[World, Night]:
    return World(store), Night(store)


def test_sessions_over_1000_chunks_never_complete(s3: S3Store) -> None:
    """A listing is a page of 1,000 keys; the rest was never seen."""
    count = 1001
    for number in range(1, count + 1):
        key = f"{SESSION.audio_prefix}chunk-{number:04}.webm"
        etag = s3.put(key, str(number).encode(), content_type="audio/webm", if_match="")
        job = Job(bucket=s3.bucket, key=key, etag=etag)
        body = transcript_for(job, f"t{number}").to_json()
        s3.put(job.output_key, body, content_type="application/json", if_match="")
    s3.put(MANIFEST, json.dumps({"chunkCount": count}).encode(), content_type="application/json", if_match="")
    assert Combiner(s3, lambda event: None).combine(SESSION).status is Status.COMPLETE
    stored = s3.get(SESSION.output_key)
    transcript = read_transcript(stored.body) if stored else None
    assert transcript is not None
    assert transcript.text.split()[-1] == f"t{count}"


def test_drifting_offsets_and_invented_word_times(store: MemoryStore, tmp_path: Path) -> None:
    """A chunk began where the last word before it ended, so silence made everything after it early."""
    recording = Recording(store)
    for number, text in enumerate(["one two", "", "three"], 1):
        recording.chunk(number, text, tmp_path)  # each decodes to 5 seconds
    recording.manifest(3)
    recording.combine()
    transcript = recording.transcript()
    assert transcript is not None
    words = [(word.word, word.start, word.end) for segment in transcript.segments for word in segment.words]
    assert words == [("one", 0.0, 0.5), ("two", 1.0, 1.5), ("three", 10.0, 10.5)]
    assert transcript.duration == 15.0


def test_completion_not_checked_after_the_batch_path(night: Night) -> None:
    night.queue.send(night.upload("chunk-1.webm"), Reason.UNHEALTHY)
    night.upload("metadata.json", b'{"chunkCount": 1}')
    night.run()
    assert len(night.events) == 1


def test_completion_not_checked_when_the_manifest_comes_last(store: MemoryStore) -> None:
    world = World(store)
    world.upload(CHUNK)
    assert world.events == []
    assert world.upload(MANIFEST, b'{"chunkCount": 1}').decision is Decision.CHECKED
    assert len(world.events) == 1


@pytest.fixture
def night(store: MemoryStore) -> Night:
    return Night(store)


def test_a_step_that_deletes_a_live_job_from_the_queue() -> None:
    """No script may take messages at all; `tests/infra` shows the same on a queue with a job in it."""
    scripts = Path(__file__).parents[2] / "infra/scripts"
    taking = re.compile(r"receive-message|delete-message|purge-queue|change-message-visibility")
    for script in scripts.rglob("*.sh"):
        assert not taking.search(script.read_text()), script.name


def test_a_chunk_whose_transcript_is_there_is_still_checked_for_its_session(store: MemoryStore, tmp_path: Path) -> None:
    """The skip path returned early: a crash between transcript and session left the session open for ever."""
    world = World(store)
    etag = store.upload(CHUNK)
    job = Job(bucket=store.bucket, key=CHUNK, etag=etag)
    write_chunk(store, job, lambda audio: transcript_for(job), workspace=tmp_path)
    store.upload(MANIFEST, b'{"chunkCount": 1}')
    assert world.deliver(s3_event(CHUNK, etag=etag)).decision is Decision.SKIPPED
    assert len(world.events) == 1
