"""The router acting on its decisions, with S3, the queue and the server at its doors."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import time
from typing import Any

import pytest

from router_lambda.breaker import COOL_DOWN_SECONDS, THRESHOLD
from router_lambda.decide import JITTER, Decision, Policy
from router_lambda.route import Decided, Router
from shared.combine import Combiner, SessionTranscribed
from shared.errors import BadEvent, SourceMissing, StoreUnavailable, TransientError
from shared.jobs import Job, Reason
from shared.outcomes import Standing, read_failure, standing
from shared.server import Answer, Health, Said
from tests.fakes import MemoryQueue, MemoryStore, ScriptedServer
from tests.shared.test_events import s3_event

KEY = "users/u/audio/sessions/s/chunk-1.webm"


@dataclass
class World:
    """A router and everything around it."""

    store: MemoryStore
    policy: Policy = field(default_factory=Policy)
    urls: tuple[str, ...] = ("http://server",)
    remaining: Callable[[], float] = lambda: 120.0

    def __post_init__(self) -> None:
        self.queue = MemoryQueue()
        self.server = ScriptedServer(self.store)
        self.events: list[SessionTranscribed] = []
        self.slept: list[float] = []
        self.time = 0.0
        self.router = Router(
            store=self.store,
            queue=self.queue,  # type: ignore[arg-type]
            combiner=Combiner(self.store, self.events.append),
            discover=lambda: self.urls,
            connect=lambda url: self.server,  # type: ignore[arg-type,return-value]
            policy=self.policy,
            clock=lambda: self.time,
            sleep=self.slept.append,
        )

    def upload(self, key: str = KEY, body: bytes = b"audio", **changes: Any) -> Decided:
        etag = self.store.upload(key, body)
        return self.deliver(s3_event(key, **{"etag": etag, "size": len(body)} | changes))

    def deliver(self, event: Any) -> Decided:
        return self.router.handle(event, remaining=self.remaining)

    def job(self, key: str = KEY) -> Job:
        return Job(bucket=self.store.bucket, key=key, etag=self.store.objects[key][1].etag)


@pytest.fixture
def world(store: MemoryStore) -> World:
    return World(store)


def test_a_healthy_server_gets_the_job(world: World) -> None:
    decided = world.upload()
    assert (decided.decision, decided.attempts) == (Decision.DIRECT, 1)
    assert standing(world.store, world.job()) is Standing.TRANSCRIBED
    assert world.queue.sent == []


def test_the_queue_takes_what_the_server_cannot(world: World) -> None:
    world.server.ready = Health(ready=False, alive=False, reason="no answer")
    assert world.upload().decision is Decision.QUEUED
    assert world.queue.reasons() == [Reason.UNHEALTHY]
    assert world.server.calls == []


def test_a_saturated_server_is_not_dead_and_not_bothered(world: World) -> None:
    world.server.ready = Health(ready=False, alive=True, reason="saturated")
    decided = world.upload()
    assert decided.decision is Decision.QUEUED
    assert "saturated" in decided.reason
    for _ in range(THRESHOLD):
        world.upload(body=b"again")
    world.server.ready = Health(ready=True, alive=True)
    assert world.upload(body=b"later").decision is Decision.DIRECT


def test_a_dead_server_does_not_hide_a_healthy_one(store: MemoryStore) -> None:
    world = World(store, urls=("http://dead", "http://alive"))
    dead = ScriptedServer(store, ready=Health(ready=False, alive=False, reason="no answer"))
    world.router.connect = lambda url: dead if "dead" in url else world.server  # type: ignore[assignment,return-value]
    for number in range(4):
        assert world.upload(body=f"{number}".encode()).decision is Decision.DIRECT
    assert dead.calls == []


def test_without_a_known_server_jobs_are_queued(store: MemoryStore) -> None:
    world = World(store, urls=())
    assert world.upload().reason == "no server known"


def test_a_failing_server_is_tried_four_times_and_then_the_queue_has_it(world: World) -> None:
    world.server.answers = [Answer(Said.FAILED, 500)]
    decided = world.upload()
    assert (decided.decision, decided.attempts) == (Decision.QUEUED, 4)
    assert world.slept == [pytest.approx(1, rel=JITTER), pytest.approx(2, rel=JITTER), pytest.approx(4, rel=JITTER)]
    assert world.queue.reasons() == [Reason.FAILED]


def test_the_server_need_not_look_again_where_nothing_lay_but_it_must_after_a_try(world: World) -> None:
    world.server.answers = [Answer(Said.FAILED), Answer(Said.DONE, 200)]
    world.upload()
    world.upload(body=b"recorded again")
    assert world.server.called_new == [True, False, False]


def test_a_server_that_recovers_in_time_is_enough(world: World) -> None:
    world.server.answers = [Answer(Said.FAILED), Answer(Said.BUSY, 503), Answer(Said.DONE, 200)]
    assert world.upload().decision is Decision.DIRECT
    assert world.queue.sent == []


def test_a_200_without_a_transcript_in_s3_is_a_failed_try(world: World) -> None:
    world.server.lies = True
    decided = world.upload()
    assert (decided.decision, decided.attempts) == (Decision.QUEUED, 4)
    assert "S3 has no transcript" in decided.reason


def test_bad_input_is_recorded_and_its_session_goes_on(world: World) -> None:
    world.server.answers = [Answer(Said.REFUSED, 415, "media-not-recognised", "not audio")]
    world.store.upload(KEY.replace("chunk-1.webm", "metadata.json"), b'{"chunkCount": 1}')
    assert world.upload().decision is Decision.FAILED
    failure = read_failure(world.store, world.job())
    assert failure is not None
    assert (failure.type, failure.attempts) == ("media-not-recognised", 1)
    assert [event.failed for event in world.events] == [1]
    assert world.upload().decision is Decision.SKIPPED


def test_zero_bytes_are_a_recorded_failure_without_asking_anyone(world: World) -> None:
    assert world.upload(body=b"").decision is Decision.FAILED
    assert world.server.calls == []


def test_a_refused_key_is_fed_to_nobody_and_recorded(world: World) -> None:
    key = "users/u/audio/sessions/a-chunk-1/chunk-1.webm"
    assert world.upload(key).decision is Decision.FAILED
    assert f"transcripts/{key}.error.json" in world.store.objects


def test_our_wrong_key_is_queued_with_an_alarm(world: World) -> None:
    world.server.answers = [Answer(Said.UNAUTHORIZED, 401)]
    decided = world.upload()
    assert (decided.decision, decided.unauthorized) == (Decision.QUEUED, True)
    assert read_failure(world.store, world.job()) is None


def test_a_duplicate_event_is_skipped_and_still_completes_the_session(world: World) -> None:
    """The first delivery died between the transcript and the session."""
    world.upload()
    world.store.upload(KEY.replace("chunk-1.webm", "metadata.json"), b'{"chunkCount": 1}')
    assert world.upload().decision is Decision.SKIPPED
    assert len(world.events) == 1
    assert len(world.server.calls) == 1


def test_long_audio_has_a_safety_net_before_it_is_posted(store: MemoryStore) -> None:
    world = World(store, policy=Policy(long_above=3))
    world.server.answers = [Answer(Said.ACCEPTED, 202)]
    assert world.upload().decision is Decision.ACCEPTED
    assert world.server.calls[0][1] is False
    assert (world.queue.reasons(), world.queue.sent[0][1]) == ([Reason.SAFETY_NET], 900)


def test_when_the_queue_is_down_too_the_event_goes_back_to_lambda(world: World) -> None:
    world.server.ready = Health(ready=False, alive=False)
    world.queue.broken = True
    with pytest.raises(TransientError):
        world.upload()


def test_when_s3_fails_the_queue_keeps_the_job(world: World) -> None:
    def fail(name: str, key: str, when: str) -> None:
        if key.endswith(".json"):
            raise StoreUnavailable("down")

    etag = world.store.upload(KEY)
    world.store.hook = fail
    assert world.deliver(s3_event(KEY, etag=etag)).decision is Decision.QUEUED


def test_without_time_for_a_try_the_job_is_queued(store: MemoryStore) -> None:
    world = World(store, remaining=lambda: 25.0)
    assert world.upload().decision is Decision.QUEUED
    assert world.server.calls == []


def test_an_application_event_needs_no_etag(world: World) -> None:
    world.store.upload(KEY)
    event = {"s3Location": {"bucket": world.store.bucket, "key": KEY}, "userId": "somebody else"}
    decided = world.deliver({"source": "audio.upload", "detail-type": "Audio Uploaded", "detail": event})
    assert decided.decision is Decision.DIRECT
    assert decided.job_id == world.job().job_id


def test_an_event_without_its_object_is_not_swallowed(world: World) -> None:
    with pytest.raises(SourceMissing):
        world.deliver({"s3_bucket": world.store.bucket, "s3_key": KEY})


def test_an_event_of_another_bucket_is_not_ours(world: World) -> None:
    with pytest.raises(BadEvent):
        world.deliver({"s3_bucket": "other-bucket", "s3_key": KEY})


@pytest.mark.parametrize("key", ["users/u/transcripts/s-chunk-1.json", "users/u/transcripts/s.srt", "folder/"])
def test_outputs_never_come_round_again(world: World, key: str) -> None:
    assert world.upload(key).decision is Decision.IGNORED
    assert world.server.calls == []


def test_after_five_failures_the_server_gets_a_pause_and_then_one_probe(world: World) -> None:
    world.server.answers = [Answer(Said.FAILED, 500)]
    for number in range(10):
        world.upload(body=f"{number}".encode())
    assert len(world.server.calls) < 4 * 3
    assert len(world.queue.sent) == 10
    world.server.answers = [Answer(Said.DONE, 200)]
    assert world.upload(body=b"too early").decision is Decision.QUEUED
    world.time += COOL_DOWN_SECONDS
    assert world.upload(body=b"probe").decision is Decision.DIRECT
    assert world.upload(body=b"well again").decision is Decision.DIRECT


def test_a_server_that_was_down_is_used_as_soon_as_it_is_back(world: World) -> None:
    world.server.answers = [Answer(Said.FAILED, 500)]
    for number in range(5):
        world.upload(body=f"{number}".encode())
    world.server.ready = Health(ready=False, alive=False)
    world.upload(body=b"down")
    world.server.ready = Health(ready=True, alive=True)
    world.server.answers = [Answer(Said.DONE, 200)]
    assert world.upload(body=b"back").decision is Decision.DIRECT


def test_a_message_in_the_queue_names_all_a_worker_needs(world: World) -> None:
    world.server.ready = Health(ready=False, alive=False)
    world.upload()
    message = json.loads(world.queue.sent[0][0])
    assert message["output_key"] == "users/u/transcripts/s-chunk-1.json"
    assert (message["user_id"], message["session_id"], message["chunk_index"]) == ("u", "s", 1)
    assert message["job_id"] == world.job().job_id


MANIFEST = KEY.replace("chunk-1.webm", "metadata.json")


def live_session(world: World) -> None:
    """Every chunk was heard alone; the manifest is still to come."""
    for number in (1, 2):
        world.upload(KEY.replace("chunk-1", f"chunk-{number}"), f"audio {number}".encode())


def finish(world: World) -> Decided:
    return world.upload(MANIFEST, b'{"chunkCount": 2}')


def test_a_session_that_its_manifest_completes_is_heard_once_more(world: World) -> None:
    live_session(world)
    world.server.session_answers = [Answer(Said.ACCEPTED, 202)]
    decided = finish(world)
    assert (decided.decision, decided.reason, decided.restitch) == (Decision.CHECKED, "complete", "accepted")
    assert world.server.session_calls == [("s3://audio-bucket/users/u/audio/sessions/s/", False)]
    assert (len(world.events), world.queue.sent) == (1, [])


@pytest.mark.parametrize(
    "policy",
    [
        Policy(restitch=False),
        Policy(batch_only=True),
        Policy(live_window=(time(3), time(3))),
    ],
)
def test_a_session_is_left_to_the_batch_when_that_is_the_policy(store: MemoryStore, policy: Policy) -> None:
    world = World(store)
    live_session(world)
    world.router.policy = policy
    assert finish(world).restitch == ""
    assert world.server.session_calls == []


def test_a_session_that_is_open_or_stitched_is_not_heard_again(world: World) -> None:
    live_session(world)
    assert world.upload(MANIFEST, b'{"chunkCount": 3}').reason == "open"
    assert world.server.session_calls == []
    finish(world)
    assert len(world.server.session_calls) == 1
    assert finish(world).restitch == ""
    assert len(world.server.session_calls) == 1


def refuse_to_connect(url: str) -> Any:
    raise OSError("the key cannot be read")


@pytest.mark.parametrize(
    ("change", "restitch"),
    [
        (lambda world: setattr(world, "urls", ()), "no server known"),
        (
            lambda world: setattr(world.server, "ready", Health(ready=False, alive=True, reason="saturated")),
            "saturated",
        ),
        (lambda world: setattr(world.server, "session_answers", [Answer(Said.FAILED, message="reset")]), "reset"),
        (lambda world: setattr(world.server, "session_answers", [Answer(Said.UNAUTHORIZED, 401)]), "unauthorized"),
        (lambda world: setattr(world, "remaining", lambda: 16.0), "no time left"),
        (lambda world: setattr(world.router, "connect", refuse_to_connect), "OSError"),
    ],
)
def test_a_stitched_pass_that_cannot_be_had_is_no_error_and_no_message(
    world: World, change: Callable[[World], None], restitch: str
) -> None:
    live_session(world)
    change(world)
    decided = finish(world)
    assert (decided.decision, decided.reason) == (Decision.CHECKED, "complete")
    assert restitch in decided.restitch
    assert world.queue.sent == []
    assert len(world.events) == 1
