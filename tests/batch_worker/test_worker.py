"""The batch worker: what it deletes, what it leaves, what it records."""

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest

from batch_worker.batch import Batch, Summary
from batch_worker.drain import Drain, ServerGone
from batch_worker.lease import Leases
from batch_worker.letters import Letters
from batch_worker.work import Result, Unauthorized, Worker
from shared.combine import Combiner, SessionTranscribed
from shared.jobs import Job, Reason
from shared.outcomes import Standing, read_failure, standing
from shared.queues import Backlog, Message, QueueUnavailable
from shared.server import Answer, Health, Said
from tests.fakes import MemoryQueue, MemoryStore, ScriptedServer, transcript_for
from tests.shared.test_events import s3_event

PREFIX = "users/u/audio/sessions/s/"


@dataclass
class Night:
    """One batch run and everything around it."""

    store: MemoryStore
    queue: MemoryQueue = field(default_factory=MemoryQueue)
    dead_letters: MemoryQueue = field(default_factory=lambda: MemoryQueue("memory/dlq"))
    failures: MemoryQueue = field(default_factory=lambda: MemoryQueue("memory/failures"))
    server_wait: float = 0
    job_seconds: float = 10.0

    def __post_init__(self) -> None:
        self.server = ScriptedServer(self.store)
        self.events: list[SessionTranscribed] = []
        self.stopping = threading.Event()

    def run(self) -> Summary:
        with Leases(visibility=120, interval=30) as leases:
            drain = self.drain(leases)
            return Batch(drain, self.letters(drain), self.store, self._combiner).run()

    def drain(self, leases: Leases) -> Drain:
        return Drain(
            queue=self.queue,  # type: ignore[arg-type]
            dead_letters=self.dead_letters,  # type: ignore[arg-type]
            worker=Worker(self.store, self._combiner(), self.server, self.job_seconds, self.stopping),  # type: ignore[arg-type]
            leases=leases,
            stopping=self.stopping,
            concurrency=2,
            visibility=120,
            poll_seconds=1,
            server_wait=self.server_wait,
            drain_timeout=1,
        )

    def letters(self, drain: Drain) -> list[Letters]:
        queues: tuple[Any, ...] = (self.failures, self.dead_letters)
        return [Letters(queue, drain, queues[1]) for queue in queues]

    def _combiner(self) -> Combiner:
        return Combiner(self.store, self.events.append)

    def upload(self, name: str, body: bytes = b"audio") -> Job:
        etag = self.store.upload(PREFIX + name, body)
        return Job(bucket=self.store.bucket, key=PREFIX + name, etag=etag)


@pytest.fixture
def night(store: MemoryStore) -> Night:
    return Night(store)


def test_queued_jobs_are_transcribed_and_their_session_is_combined(night: Night) -> None:
    for number in (1, 2, 3):
        night.queue.send(night.upload(f"chunk-{number}.webm"), Reason.UNHEALTHY)
    night.upload("metadata.json", b'{"chunkCount": 3}')
    summary = night.run()
    assert (summary.transcribed, summary.all_done) == (3, True)
    assert len(night.events) == 1
    assert night.queue.visible == []
    assert not night.queue.held


@pytest.mark.parametrize("done_before", [False, True])
def test_a_session_is_complete_before_its_last_message_is_forgotten(night: Night, done_before: bool) -> None:
    """Without the sweep, which would hide it; and also when a worker died between the transcript and the session."""
    job = night.upload("chunk-1.webm")
    night.upload("metadata.json", b'{"chunkCount": 1}')
    if done_before:
        night.store.upload(job.output_key, transcript_for(job).to_json())
    night.queue.send(job, Reason.UNHEALTHY)
    forget, at_delete = night.queue.delete, []

    def look_first(message: Message) -> None:
        at_delete.append("users/u/transcripts/s.json" in night.store.objects)
        forget(message)

    night.queue.delete = look_first  # type: ignore[method-assign]
    with Leases(visibility=120, interval=30) as leases:
        night.drain(leases).run(until_empty=True)
    assert at_delete == [True]


def test_what_is_done_already_is_only_acknowledged(night: Night) -> None:
    job = night.upload("chunk-1.webm")
    for _ in range(3):
        night.queue.send(job, Reason.SAFETY_NET)
    assert night.run().all_done
    assert len(night.server.calls) <= 2  # two may be in flight at once; the server joins those


def test_audio_whose_event_was_lost_is_found_by_the_sweep(night: Night) -> None:
    job = night.upload("chunk-1.webm")
    night.store.upload("calls/a.mp3")
    night.upload("metadata.json", b'{"chunkCount": 1}')
    summary = night.run()
    assert (summary.swept, summary.transcribed, summary.all_done) == (2, 2, True)
    assert standing(night.store, job) is Standing.TRANSCRIBED
    assert len(night.events) == 1


def test_a_session_whose_manifest_event_was_lost_is_completed_by_the_sweep(night: Night) -> None:
    night.queue.send(night.upload("chunk-1.webm"), Reason.FAILED)
    night.run()
    night.upload("metadata.json", b'{"chunkCount": 1}')
    night.run()
    assert len(night.events) == 1


def test_a_message_is_kept_when_s3_has_no_transcript_whatever_the_server_says(night: Night) -> None:
    night.server.lies = True
    night.queue.send(night.upload("chunk-1.webm"), Reason.FAILED)
    night.server.calls.clear()
    original = night.queue.extend
    attempts = 0

    def stop_after_three(message: Message, seconds: int) -> None:
        nonlocal attempts
        attempts += 1
        original(message, seconds)
        if attempts == 3:
            night.stopping.set()

    night.queue.extend = stop_after_three  # type: ignore[method-assign]
    summary = night.run()
    assert not summary.all_done
    assert night.queue.deleted == []


def test_bad_input_is_recorded_and_does_not_hold_up_its_session(night: Night) -> None:
    night.server.answers = [Answer(Said.REFUSED, 422, "media-no-audio", "silent film")]
    job = night.upload("chunk-1.webm")
    night.queue.send(job, Reason.FAILED)
    night.upload("metadata.json", b'{"chunkCount": 1}')
    summary = night.run()
    assert (summary.failed, summary.all_done) == (1, True)
    assert [event.failed for event in night.events] == [1]


def test_a_dead_letter_gets_one_more_try_and_then_a_recorded_failure(night: Night) -> None:
    night.server.answers = [Answer(Said.FAILED, message="connection reset")]
    job = night.upload("chunk-1.webm")
    night.dead_letters.send(job, Reason.FAILED)
    summary = night.run()
    assert (summary.failed, summary.all_done) == (1, True)
    failure = read_failure(night.store, job)
    assert failure is not None
    assert failure.type == "gave-up"
    assert night.dead_letters.visible == []


def test_a_chunk_that_waits_for_its_recordings_first_is_kept_until_the_recording_ends(night: Night) -> None:
    night.server.answers = [Answer(Said.NOT_YET, 422, "media-header-missing", "chunk 1 is not there")]
    job = night.upload("chunk-2.webm")
    night.dead_letters.send(job, Reason.FAILED)
    with Leases(visibility=120, interval=30) as leases:
        night.letters(night.drain(leases))[1].run()
    assert read_failure(night.store, job) is None
    assert len(night.dead_letters.visible) == 1
    night.upload("metadata.json", b'{"chunkCount": 2}')
    with Leases(visibility=120, interval=30) as leases:
        night.letters(night.drain(leases))[1].run()
    failure = read_failure(night.store, job)
    assert failure is not None
    assert failure.type == "media-header-missing"


@pytest.mark.parametrize("body", ["[" * 100_000, "\x00", '{"requestPayload": ' * 500 + "1" + "}" * 500])
def test_no_letter_whatever_is_in_it_ends_a_run(night: Night, body: str) -> None:
    night.dead_letters.send_raw(body)
    night.queue.send(night.upload("chunk-1.webm"), Reason.FAILED)
    summary = night.run()
    assert (summary.transcribed, summary.parked, summary.all_done) == (1, 1, True)
    assert night.dead_letters.visible[0].body == body


def test_a_dead_letter_is_not_blamed_for_a_dead_server(night: Night) -> None:
    night.server.ready = Health(ready=False, alive=False, reason="no answer")
    job = night.upload("chunk-1.webm")
    night.dead_letters.send(job, Reason.FAILED)
    with pytest.raises(ServerGone):
        night.run()
    assert read_failure(night.store, job) is None
    assert len(night.dead_letters.visible) == 1


def test_the_routers_failures_are_handled_like_jobs(night: Night) -> None:
    job = night.upload("chunk-1.webm")
    night.upload("metadata.json", b'{"chunkCount": 1}')
    for event in (s3_event(job.key), s3_event(PREFIX + "metadata.json")):
        night.failures.send_raw(json.dumps({"requestContext": {}, "requestPayload": event}))
    assert night.run().all_done
    assert len(night.failures.deleted) == 2
    assert standing(night.store, job) is Standing.TRANSCRIBED


@pytest.mark.parametrize("body", ["not json", "[]", "{}", '{"version": 9, "job_id": "x"}', '{"s3_key": "k"}'])
def test_an_unreadable_message_is_parked_with_its_reason_and_never_cycles(night: Night, body: str) -> None:
    night.queue.send_raw(body)
    summary = night.run()
    assert summary.all_done
    assert night.dead_letters.sent[0][0] == body
    assert night.dead_letters.attributes[0]["reason"]
    assert [message.body for message in night.dead_letters.visible] == [body]
    night.run()
    assert len(night.dead_letters.sent) == 1


def test_no_message_is_received_while_no_server_lives(night: Night) -> None:
    night.server.ready = Health(ready=False, alive=False, reason="no answer")
    night.queue.send(night.upload("chunk-1.webm"), Reason.UNHEALTHY)
    with pytest.raises(ServerGone, match="no answer"):
        night.run()
    assert night.queue.visible[0].receive_count == 0


def test_a_server_that_is_busy_for_ever_does_not_hold_a_job_for_ever(night: Night) -> None:
    night.server.answers = [Answer(Said.BUSY, 503, retry_after=0.01)]
    night.job_seconds = 0.05
    night.queue.send(night.upload("chunk-1.webm"), Reason.UNHEALTHY)
    with Leases(visibility=120, interval=30) as leases:
        drain = night.drain(leases)
        drain.worker.stopping = threading.Event()
        document = night.queue.receive(most=1, wait=0, visibility=60)[0].document()
        assert drain.worker.handle(document, attempts=1) == [Result.LATER]


def test_a_long_running_worker_outlives_a_queue_that_is_away(night: Night, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("batch_worker.drain.RECOVERY_SECONDS", 0.01)
    job = night.upload("chunk-1.webm")
    night.queue.send(job, Reason.UNHEALTHY)
    receive, failures = night.queue.receive, iter(range(3))

    def fail_three_times(**arguments: int) -> list[Message]:
        if next(failures, None) is not None:
            raise QueueUnavailable("SQS is away")
        if standing(night.store, job) is Standing.TRANSCRIBED:
            night.stopping.set()
        return receive(**arguments)

    night.queue.receive = fail_three_times  # type: ignore[assignment,method-assign]
    with Leases(visibility=120, interval=30) as leases:
        night.drain(leases).run(until_empty=False)
    assert standing(night.store, job) is Standing.TRANSCRIBED


def test_a_worker_that_is_stopped_does_not_wait_for_suspects(night: Night) -> None:
    """A message that came back is worked on alone; its turn, and the others', end when the process is told to stop."""
    released = threading.Event()

    def hang(*arguments: object, **more: object) -> Answer:
        night.stopping.set()
        released.wait(timeout=20)
        return Answer(Said.FAILED)

    night.server.transcribe = hang  # type: ignore[assignment,method-assign]
    for number in (1, 2):
        night.queue.send(night.upload(f"chunk-{number}.webm"), Reason.UNHEALTHY)
    night.queue.visible = [Message(m.id, m.receipt, m.body, 1) for m in night.queue.visible]
    assert night.run().stopped
    assert not released.is_set()
    assert len(night.queue.visible) == 2  # both leases were held, and both are given back
    released.set()


def test_a_busy_server_is_waited_for(night: Night) -> None:
    night.server.answers = [Answer(Said.BUSY, 429, retry_after=0.01), Answer(Said.DONE, 200)]
    night.queue.send(night.upload("chunk-1.webm"), Reason.UNHEALTHY)
    assert night.run().transcribed == 1


def test_a_key_that_the_server_does_not_accept_ends_the_run_and_keeps_the_jobs(night: Night) -> None:
    night.server.answers = [Answer(Said.UNAUTHORIZED, 401)]
    job = night.upload("chunk-1.webm")
    night.queue.send(job, Reason.UNHEALTHY)
    with pytest.raises(Unauthorized, match="API_KEY"):
        night.run()
    assert night.queue.deleted == []
    assert read_failure(night.store, job) is None


def test_a_stopped_worker_gives_its_messages_back(night: Night) -> None:
    night.queue.send(night.upload("chunk-1.webm"), Reason.UNHEALTHY)
    ask: Callable[..., Answer] = night.server.transcribe

    def stop_meanwhile(*arguments: object, **more: object) -> Answer:
        night.stopping.set()
        ask(*arguments, **more)
        return Answer(Said.FAILED, message="the server was stopped too")

    night.server.lies = True
    night.server.transcribe = stop_meanwhile  # type: ignore[method-assign]
    summary = night.run()
    assert summary.stopped
    assert len(night.queue.visible) == 1


def test_a_message_that_came_back_is_worked_on_alone(night: Night) -> None:
    inside, most = 0, 0
    ask = night.server.transcribe
    lock = threading.Lock()
    both = threading.Barrier(2)

    def count(job: Job, *arguments: object, **more: object) -> Answer:
        nonlocal inside, most
        with lock:
            inside += 1
            most = max(most, inside)
        if "chunk-1" not in job.key:
            both.wait(timeout=10)
        else:
            assert inside == 1
        with lock:
            inside -= 1
        return ask(job, *arguments, **more)  # type: ignore[arg-type]

    night.server.transcribe = count  # type: ignore[assignment,method-assign]
    for number in (1, 2, 3):
        night.queue.send(night.upload(f"chunk-{number}.webm"), Reason.UNHEALTHY)
    suspect = night.queue.visible[0]
    night.queue.visible[0] = Message(suspect.id, suspect.receipt, suspect.body, 1)
    night.queue.visible = night.queue.visible[1:] + night.queue.visible[:1]
    assert night.run().transcribed == 3
    assert most == 2


def test_empty_audio_found_by_the_sweep_is_recorded_and_its_session_goes_on(night: Night) -> None:
    night.upload("chunk-1.webm", b"")
    night.upload("metadata.json", b'{"chunkCount": 1}')
    assert night.run().all_done
    assert [event.failed for event in night.events] == [1]


def test_leases_are_renewed_until_the_work_ends() -> None:
    renewed: list[int] = []
    twice = threading.Event()

    class Counting(MemoryQueue):
        def extend(self, message: Message, seconds: int) -> None:
            renewed.append(seconds)
            if len(renewed) == 2:
                twice.set()
                raise QueueUnavailable("one renewal fails; the next must still come")

    queue, message = Counting(), Message("m", "r", "{}", 1)
    with Leases(visibility=120, interval=0.01) as leases:
        leases.hold(queue, message)  # type: ignore[arg-type]
        assert twice.wait(timeout=10)
        leases.release(message)
        assert leases.give_back() == 0
    assert set(renewed) == {120}


def test_delayed_safety_nets_do_not_keep_a_run_awake(night: Night) -> None:
    night.queue.backlog = lambda: Backlog(0, 0, 5)  # type: ignore[method-assign]
    assert night.run().all_done
