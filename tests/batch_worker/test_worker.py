"""The batch worker: what it deletes, what it leaves, what it records."""

import json
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import count
from typing import Any

import pytest

from batch_worker.batch import Batch, Summary
from batch_worker.drain import Drain, ServerGone
from batch_worker.grouping import SUSPECT_RECEIVES
from batch_worker.lease import Leases
from batch_worker.letters import Letters
from batch_worker.stopping import Stopping
from batch_worker.work import GAVE_UP, Result, Unauthorized, Worker
from shared.combine import Combiner, SessionTranscribed
from shared.errors import DISK_FULL, InputRefused, StoreUnavailable
from shared.jobs import Job, JobMessage, Reason
from shared.keys import Session
from shared.outcomes import Standing, read_failure, read_outcome, record_failure, standing
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
    group_messages: int = 100
    restitch: bool = True

    def __post_init__(self) -> None:
        self.server = ScriptedServer(self.store)
        self.events: list[SessionTranscribed] = []
        self.stopping = Stopping(1)

    def run(self) -> Summary:
        with Leases(visibility=120, interval=30) as leases:
            return self.batch(self.drain(leases)).run()

    def try_failures(self) -> None:
        with Leases(visibility=120, interval=30) as leases:
            self.letters(self.drain(leases))[0].run()

    def try_dead_letters(self) -> None:
        with Leases(visibility=120, interval=30) as leases:
            self.letters(self.drain(leases))[1].run()

    def batch(self, drain: Drain) -> Batch:
        return Batch(drain, self.letters(drain), self.store, self._combiner, self.restitch)

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
            group_messages=self.group_messages,
        )

    def letters(self, drain: Drain) -> list[Letters]:
        queues: tuple[Any, ...] = (self.failures, self.dead_letters)
        return [Letters(queue, drain, queues[1]) for queue in queues]

    def _combiner(self) -> Combiner:
        return Combiner(self.store, self.events.append)

    def upload(self, name: str, body: bytes = b"audio", session: str = "s") -> Job:
        key = f"users/u/audio/sessions/{session}/{name}"
        return Job(bucket=self.store.bucket, key=key, etag=self.store.upload(key, body))


def until(look: Callable[[], object]) -> None:
    deadline = time.monotonic() + 20
    while not look():
        assert time.monotonic() < deadline
        time.sleep(0.001)


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
    assert night.server.called_alone == [True]


def test_a_chunk_that_waits_for_its_recordings_first_is_kept_until_the_recording_ends(night: Night) -> None:
    night.server.answers = [Answer(Said.NOT_YET, 422, "media-header-missing", "chunk 1 is not there")]
    job = night.upload("chunk-2.webm")
    night.dead_letters.send(job, Reason.FAILED)
    night.try_dead_letters()
    assert read_failure(night.store, job) is None
    assert len(night.dead_letters.visible) == 1
    night.upload("metadata.json", b'{"chunkCount": 2}')
    night.try_dead_letters()
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


@pytest.mark.parametrize(
    "answer", [Answer(Said.UNTRIED, message="no connection"), Answer(Said.UNTRIED, 502, "store-unavailable")]
)
def test_a_dead_letter_that_nobody_has_looked_at_is_kept(night: Night, answer: Answer) -> None:
    night.server.answers = [answer]
    job = night.upload("chunk-1.webm")
    night.dead_letters.send(job, Reason.FAILED)
    night.try_dead_letters()
    assert read_failure(night.store, job) is None
    assert len(night.dead_letters.visible) == 1


def test_the_routers_failures_are_handled_like_jobs(night: Night) -> None:
    job = night.upload("chunk-1.webm")
    night.upload("metadata.json", b'{"chunkCount": 1}')
    for event in (s3_event(job.key, etag=job.etag), s3_event(PREFIX + "metadata.json")):
        night.failures.send_raw(json.dumps({"requestContext": {}, "requestPayload": event}))
    assert night.run().all_done
    assert len(night.failures.deleted) == 2
    assert standing(night.store, job) is Standing.TRANSCRIBED


def test_a_failure_of_the_router_about_audio_that_is_gone_is_recorded_and_its_session_completed(night: Night) -> None:
    key = PREFIX + "chunk-1.webm"
    night.upload("metadata.json", b'{"chunkCount": 1}')
    night.failures.send_raw(json.dumps({"requestContext": {}, "requestPayload": s3_event(key)}))
    night.server.answers = [Answer(Said.REFUSED, 404, "source-missing")]
    night.run()
    [(gone, _)] = night.server.calls
    assert gone.key == key
    assert standing(night.store, gone) is Standing.FAILED
    assert [event.failed for event in night.events] == [1]


def test_a_failure_of_the_router_about_overwritten_audio_is_no_last_try_of_what_is_there_now(night: Night) -> None:
    older, newer = night.upload("chunk-1.webm", b"older"), night.upload("chunk-1.webm", b"newer")
    event = s3_event(older.key, etag=older.etag)
    night.failures.send_raw(json.dumps({"requestContext": {}, "requestPayload": event}))
    night.server.answers = [Answer(Said.FAILED, message="connection reset")]
    night.try_failures()
    assert night.failures.visible == []
    assert (night.server.calls, standing(night.store, newer)) == ([], Standing.NEW)


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


def test_a_server_whose_disk_is_full_is_waited_for_but_not_for_long(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batch_worker.work.DISK_FULL_SECONDS", 0.05)
    night.server.answers = [Answer(Said.BUSY, 503, DISK_FULL, retry_after=0.02)]
    job = night.upload("chunk-1.webm")
    with Leases(visibility=120, interval=30) as leases:
        drain = night.drain(leases)
        drain.worker.stopping = threading.Event()
        document = json.loads(JobMessage.of(job, Reason.UNHEALTHY).to_json())
        assert drain.worker.handle(document, attempts=1) == [Result.LATER]
    assert len(night.server.calls) > 1
    assert read_failure(night.store, job) is None


def test_what_does_not_fit_the_servers_disk_even_alone_is_a_recorded_failure(
    night: Night, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("batch_worker.work.DISK_FULL_SECONDS", 0.0)
    night.server.answers = [Answer(Said.BUSY, 503, DISK_FULL, "no room", retry_after=0.01)]
    job = night.upload("chunk-1.webm")
    night.dead_letters.send(job, Reason.FAILED)
    night.try_dead_letters()
    failure = read_failure(night.store, job)
    assert failure is not None
    assert (failure.type, "no room" in failure.message) == (GAVE_UP, True)
    assert night.server.called_alone == [True]


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
    night.queue.visible = [Message(m.id, m.receipt, m.body, 2) for m in night.queue.visible]
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
        if job.key != "1.mp3":
            both.wait(timeout=60)
        else:
            assert inside == 1
        with lock:
            inside -= 1
        return ask(job, *arguments, **more)  # type: ignore[arg-type]

    night.server.transcribe = count  # type: ignore[assignment,method-assign]
    for number in (1, 2, 3):
        etag = night.store.upload(f"{number}.mp3")
        night.queue.send(Job(bucket=night.store.bucket, key=f"{number}.mp3", etag=etag), Reason.UNHEALTHY)
    suspect = night.queue.visible[0]
    night.queue.visible[0] = Message(suspect.id, suspect.receipt, suspect.body, 2)
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
        assert twice.wait(timeout=60)
        leases.release(message)
        assert leases.give_back() == 0
    assert set(renewed) == {120}


def test_delayed_safety_nets_do_not_keep_a_run_awake(night: Night) -> None:
    night.queue.backlog = lambda: Backlog(0, 0, 5)  # type: ignore[method-assign]
    assert night.run().all_done


def send_session(night: Night, count: int, *, manifest: bool = True) -> list[Job]:
    jobs = [night.upload(f"chunk-{number}.webm") for number in range(1, count + 1)]
    for job in jobs:
        night.queue.send(job, Reason.UNHEALTHY)
    if manifest:
        night.upload("metadata.json", json.dumps({"chunkCount": count}).encode())
    return jobs


def is_stitched(night: Night, job: Job) -> bool:
    transcript = read_outcome(night.store, job).transcript
    return transcript is not None and transcript.is_stitched


def test_the_chunks_of_a_session_that_wait_together_are_heard_together(night: Night) -> None:
    jobs = send_session(night, 25)
    summary = night.run()
    assert (summary.transcribed, summary.skipped, summary.all_done) == (25, 0, True)
    assert [len(what) for what, _ in night.server.session_calls] == [25]
    assert night.server.calls == []
    assert all(is_stitched(night, job) for job in jobs)
    assert len(night.queue.deleted) == 25
    assert (len(night.events), summary.restitched) == (1, 0)


def test_a_look_at_a_group_that_nobody_has_begun_is_one_request(night: Night) -> None:
    night.restitch = False
    jobs = send_session(night, 25, manifest=False)
    asked: list[tuple[str, str]] = []
    heard = night.server.transcribe_session

    def hear(*arguments: Any, **options: Any) -> Answer:
        asked.extend(night.store.trace)
        return heard(*arguments, **options)

    night.server.transcribe_session = hear  # type: ignore[method-assign]
    assert night.run().transcribed == 25
    session = jobs[0].audio.session  # type: ignore[union-attr]
    assert asked == [("list", session.transcript_prefix)]


def test_every_message_of_a_group_is_leased_before_the_next_is_asked_for(night: Night) -> None:
    send_session(night, 25)
    held: list[int] = []
    with Leases(visibility=120, interval=30) as leases:
        drain = night.drain(leases)
        receive = night.queue.receive

        def look(**arguments: int) -> list[Message]:
            held.append(len(leases._held))
            return receive(**arguments)

        night.queue.receive = look  # type: ignore[assignment,method-assign]
        drain.run(until_empty=True)
        assert not leases._held
    assert held[:4] == [0, 2, 12, 22]


def test_no_more_messages_are_held_than_is_set(night: Night) -> None:
    night.group_messages = 7
    send_session(night, 20)
    assert night.run().transcribed == 20
    assert [len(what) for what, _ in night.server.session_calls] == [7, 7, 6]


def test_files_are_received_as_there_is_room_for_them(night: Night) -> None:
    """Long ones would wait here for hours while another worker has nothing to do."""
    asked: list[int] = []
    receive = night.queue.receive

    def look(**arguments: int) -> list[Message]:
        asked.append(arguments["most"])
        return receive(**arguments)

    night.queue.receive = look  # type: ignore[assignment,method-assign]
    for number in range(6):
        etag = night.store.upload(f"{number}.mp3")
        night.queue.send(Job(bucket=night.store.bucket, key=f"{number}.mp3", etag=etag), Reason.UNHEALTHY)
    assert night.run().transcribed == 6
    assert max(asked) == 2


def test_a_chunk_that_the_pass_leaves_open_goes_the_ordinary_way(night: Night) -> None:
    jobs = send_session(night, 4)
    night.server.deaf_to = {jobs[2].key}
    night.server.answers = [Answer(Said.REFUSED, 422, "media-no-audio", "silent film")]
    summary = night.run()
    assert (summary.transcribed, summary.failed, summary.all_done) == (3, 1, True)
    assert [job.key for job, _ in night.server.calls] == [jobs[2].key]
    failure = read_failure(night.store, jobs[2])
    assert failure is not None
    assert (failure.type, failure.attempts) == ("media-no-audio", 1)
    assert [event.failed for event in night.events] == [1]


@pytest.mark.parametrize("answer", [Answer(Said.FAILED, 404, "http"), Answer(Said.FAILED), Answer(Said.REFUSED, 413)])
def test_when_there_is_no_stitched_pass_every_chunk_goes_the_ordinary_way(night: Night, answer: Answer) -> None:
    night.restitch = False
    night.server.session_answers = [answer]
    send_session(night, 5)
    summary = night.run()
    assert (summary.transcribed, summary.failed, summary.all_done) == (5, 0, True)
    assert len(night.server.calls) == 5


def test_a_stitched_pass_that_lies_is_not_believed(night: Night) -> None:
    send_session(night, 3)
    night.server.lies = True
    deleted: list[int] = []
    extend = night.queue.extend

    def stop_when_all_are_kept(message: Message, seconds: int) -> None:
        extend(message, seconds)
        deleted.append(len(night.queue.deleted))
        if len(deleted) == 3:
            night.stopping.set()

    night.queue.extend = stop_when_all_are_kept  # type: ignore[method-assign]
    assert not night.run().all_done
    assert deleted[:3] == [0, 0, 0]


def test_a_group_is_forgotten_only_after_its_session_is_complete(night: Night) -> None:
    send_session(night, 3)
    forget, at_delete = night.queue.delete, []

    def look_first(message: Message) -> None:
        at_delete.append("users/u/transcripts/s.json" in night.store.objects)
        forget(message)

    night.queue.delete = look_first  # type: ignore[method-assign]
    with Leases(visibility=120, interval=30) as leases:
        night.drain(leases).run(until_empty=True)
    assert at_delete == [True, True, True]


def test_when_the_session_cannot_be_completed_its_group_is_kept(night: Night) -> None:
    jobs = send_session(night, 2)

    def fail(name: str, key: str, when: str) -> None:
        if key.endswith("metadata.json"):
            raise StoreUnavailable("down")

    night.store.hook = fail
    kept: list[str] = []
    extend = night.queue.extend

    def note(message: Message, seconds: int) -> None:
        kept.append(message.id)
        if len(kept) == 2:
            night.store.hook = lambda *_: None
        extend(message, seconds)

    night.queue.extend = note  # type: ignore[method-assign]
    assert night.run().all_done
    assert sorted(kept) == ["m1", "m2"]
    assert all(is_stitched(night, job) for job in jobs)


def test_duplicates_in_a_group_do_no_harm_and_are_counted_as_such(night: Night) -> None:
    jobs = send_session(night, 3)
    night.queue.send(jobs[0], Reason.SAFETY_NET)
    night.queue.send(jobs[0], Reason.SAFETY_NET)
    summary = night.run()
    assert (summary.transcribed, summary.skipped, summary.all_done) == (3, 2, True)
    assert [len(what) for what, _ in night.server.session_calls] == [3]


def test_what_is_done_is_not_asked_for_again_in_a_group(night: Night) -> None:
    jobs = send_session(night, 3)
    for job in jobs[:2]:
        night.store.upload(job.output_key, transcript_for(job, stitched=True).to_json())
    night.restitch = False
    summary = night.run()
    assert (summary.transcribed, summary.skipped) == (1, 2)
    assert night.server.session_calls == []
    assert len(night.server.calls) == 1


def test_a_message_that_came_back_is_never_in_a_group(night: Night) -> None:
    jobs = send_session(night, 3)
    suspect = night.queue.visible[1]
    night.queue.visible[1] = Message(suspect.id, suspect.receipt, suspect.body, 2)
    assert night.run().transcribed == 3
    [(what, _), *_] = night.server.session_calls
    assert [job.key for job in what if isinstance(job, Job)] == [jobs[0].key, jobs[2].key]
    assert [job.key for job, _ in night.server.calls] == [jobs[1].key]


def test_a_queue_that_goes_away_while_more_is_received_keeps_nobody_waiting(night: Night) -> None:
    """What came before is worked on, and not held without anybody working on it."""
    send_session(night, 6)
    receive, calls = night.queue.receive, count(1)

    def fail_second(**arguments: int) -> list[Message]:
        if next(calls) == 2:
            raise QueueUnavailable("SQS is away")
        return receive(**arguments)

    night.queue.receive = fail_second  # type: ignore[assignment,method-assign]
    assert night.run().transcribed == 6


def test_a_worker_that_is_stopped_gives_back_what_it_had_not_begun(night: Night) -> None:
    send_session(night, 4)
    night.server.lies = True
    ask = night.server.transcribe_session

    def stop_meanwhile(*arguments: Any, **more: Any) -> Answer:
        night.stopping.set()
        return ask(*arguments, **more)

    night.server.transcribe_session = stop_meanwhile  # type: ignore[method-assign]
    assert night.run().stopped
    assert night.server.calls == []
    assert (len(night.queue.visible), night.queue.deleted) == (4, [])


def test_a_failure_that_the_server_records_in_a_pass_is_counted_as_one(night: Night) -> None:
    jobs = send_session(night, 3)
    night.server.deaf_to = {jobs[0].key}
    ask = night.server.transcribe_session

    def record_first(*arguments: Any, **more: Any) -> Answer:
        record_failure(night.store, jobs[0], InputRefused("no audio"))
        return ask(*arguments, **more)

    night.server.transcribe_session = record_first  # type: ignore[method-assign]
    night.restitch = False
    summary = night.run()
    assert (summary.transcribed, summary.failed, summary.skipped) == (2, 1, 0)
    assert night.server.calls == []


def test_a_worker_that_is_stopped_starts_no_further_stitched_pass(night: Night) -> None:
    with Leases(visibility=120, interval=30) as leases:
        drain = night.drain(leases)
        released = threading.Event()
        started: list[int] = []

        def call(number: int) -> None:
            started.append(number)
            night.stopping.set()
            released.wait(timeout=20)

        assert drain.run_all([partial(call, number) for number in range(10)]) == []
        released.set()
        drain._pool.shutdown(wait=True)
    assert len(started) <= drain.concurrency


def live_session(night: Night, count: int, session: str = "s") -> list[Job]:
    jobs = [night.upload(f"chunk-{number}.webm", session=session) for number in range(1, count + 1)]
    for job in jobs:
        night.store.upload(job.output_key, transcript_for(job).to_json())
    night.upload("metadata.json", json.dumps({"chunkCount": count}).encode(), session)
    return jobs


def test_a_session_whose_chunks_were_heard_alone_is_heard_once_more(night: Night) -> None:
    jobs = live_session(night, 3)
    summary = night.run()
    assert (summary.restitched, summary.all_done) == (1, True)
    assert ", 1 sessions restitched" in summary.text()
    assert night.server.session_calls == [("s3://audio-bucket/users/u/audio/sessions/s/", True)]
    assert all(is_stitched(night, job) for job in jobs)
    assert len(night.events) == 2
    assert night.run().restitched == 0


def test_sessions_are_left_alone_when_that_is_the_policy(night: Night) -> None:
    night.restitch = False
    live_session(night, 3)
    summary = night.run()
    assert (summary.restitched, summary.all_done) == (0, True)
    assert "restitched" not in summary.text()
    assert night.server.session_calls == []


@pytest.mark.parametrize("answer", [Answer(Said.FAILED, 500), Answer(Said.UNAUTHORIZED, 401), Answer(Said.DONE, 200)])
def test_a_session_that_cannot_be_stitched_is_tried_once_and_nothing_is_left_over(night: Night, answer: Answer) -> None:
    jobs = live_session(night, 3)
    night.server.session_answers = [answer]
    night.server.deaf_to = {jobs[1].key}
    summary = night.run()
    assert (summary.restitched, summary.left, summary.all_done) == (0, 0, True)
    assert len(night.server.session_calls) == 1


def test_what_the_worker_completes_itself_is_stitched_in_the_same_run(night: Night) -> None:
    """One chunk went straight to the server, the rest waited here."""
    jobs = send_session(night, 3)
    night.queue.visible.pop(0)
    night.store.upload(jobs[0].output_key, transcript_for(jobs[0]).to_json())
    summary = night.run()
    assert (summary.transcribed, summary.restitched, summary.all_done) == (2, 1, True)
    assert is_stitched(night, jobs[0])


def test_the_next_group_is_at_the_server_while_the_first_is_heard(night: Night) -> None:
    """One long session fills all that is received together; the recognizer must not wait for the rest of it."""
    night.group_messages = 10
    send_session(night, 20)
    both = threading.Barrier(2)
    ask = night.server.transcribe_session

    def wait_for_the_other(*arguments: Any, **more: Any) -> Answer:
        both.wait(timeout=20)
        return ask(*arguments, **more)

    night.server.transcribe_session = wait_for_the_other  # type: ignore[method-assign]
    night.restitch = False
    assert night.run().transcribed == 20
    assert night.server.calls == []


def test_a_worker_that_is_told_to_stop_gives_back_at_once_what_it_has_not_begun(night: Night) -> None:
    night.stopping = Stopping(60)
    for session in ("a", "b", "c"):
        for number in range(1, 6):
            night.queue.send(night.upload(f"chunk-{number}.webm", session=session), Reason.UNHEALTHY)
    both = threading.Barrier(2)
    ask = night.server.transcribe_session
    visible: list[int] = []

    def go_on_when_the_rest_is_back(*arguments: Any, **more: Any) -> Answer:
        both.wait(timeout=20)
        night.stopping.set()
        until(lambda: night.queue.visible)
        visible.append(len(night.queue.visible))
        return ask(*arguments, **more)

    night.server.transcribe_session = go_on_when_the_rest_is_back  # type: ignore[method-assign]
    assert night.run().stopped
    assert len(night.queue.deleted) == 10
    assert len(night.queue.visible) == 5
    assert not night.queue.held


def test_what_is_worked_on_alone_has_time_to_end_too(night: Night) -> None:
    night.stopping = Stopping(60)
    night.queue.send(night.upload("chunk-1.webm"), Reason.UNHEALTHY)
    night.queue.visible = [replace(night.queue.visible[0], receive_count=SUSPECT_RECEIVES - 1)]
    ask = night.server.transcribe

    def stop_meanwhile(*arguments: Any, **more: Any) -> Answer:
        night.stopping.set()
        return ask(*arguments, **more)

    night.server.transcribe = stop_meanwhile  # type: ignore[method-assign]
    summary = night.run()
    assert (summary.transcribed, summary.stopped) == (1, True)
    assert (len(night.queue.deleted), night.queue.visible) == (1, [])


def test_what_is_given_back_while_leases_are_renewed_is_not_hidden_again(night: Night) -> None:
    """Neither the message that is being renewed just then, nor one whose turn would come."""
    leases = Leases(visibility=120, interval=30)
    for number in (1, 2):
        night.queue.send(night.upload(f"chunk-{number}.webm"), Reason.UNHEALTHY)
    for message in night.queue.receive(most=2, wait=0, visibility=120):
        leases.hold(night.queue, message)  # type: ignore[arg-type]
    giving_back = threading.Thread(target=leases.give_back)
    calls: list[tuple[str, int]] = []

    def extend(message: Message, seconds: int) -> None:
        if not calls and not giving_back.ident:
            giving_back.start()
            until(lambda: not leases._held)
            giving_back.join(timeout=0.2)  # it has to wait for this call
        calls.append((message.id, seconds))

    night.queue.extend = extend  # type: ignore[method-assign]
    leases.renew()
    giving_back.join(timeout=20)
    assert calls == [("m1", 120), ("m1", 0), ("m2", 0)]


def test_a_letter_is_not_blamed_for_a_server_that_is_stopped_with_its_worker(night: Night) -> None:
    job = night.upload("chunk-1.webm")
    night.dead_letters.send(job, Reason.FAILED)

    def stop_both(*_: object, **__: object) -> Answer:
        night.stopping.set()
        return Answer(Said.FAILED, message="no answer")

    night.server.transcribe = stop_both  # type: ignore[method-assign]
    assert night.run().stopped
    assert read_failure(night.store, job) is None
    assert len(night.dead_letters.visible) == 1


def test_a_letter_whose_worker_is_killed_comes_back_as_soon_as_a_job(night: Night) -> None:
    night.dead_letters.send(night.upload("chunk-1.webm"), Reason.FAILED)
    hidden: list[int] = []
    receive = night.dead_letters.receive

    def look(*, most: int, wait: int, visibility: int) -> list[Message]:
        hidden.append(visibility)
        return receive(most=most, wait=wait, visibility=visibility)

    night.dead_letters.receive = look  # type: ignore[method-assign]
    night.run()
    assert set(hidden) == {120}


def test_letters_that_were_left_are_given_back_when_the_server_goes(night: Night) -> None:
    night.server.answers = [Answer(Said.NOT_YET, 422, "media-header-missing", "chunk 1 is not there")]
    for number in (2, 3):
        night.dead_letters.send(night.upload(f"chunk-{number}.webm"), Reason.FAILED)
    ask = night.server.transcribe

    def die_afterwards(*arguments: Any, **more: Any) -> Answer:
        night.server.ready = Health(ready=False, alive=False, reason="no answer")
        return ask(*arguments, **more)

    night.server.transcribe = die_afterwards  # type: ignore[method-assign]
    with Leases(visibility=120, interval=30) as leases, pytest.raises(ServerGone):
        night.letters(night.drain(leases))[1].run()
    assert len(night.dead_letters.visible) == 2


# Several workers at one queue ----------------------------------------------------------------------------------------


def colleague(night: Night) -> Night:
    """Another worker at the same bucket and queues, with a server of its own."""
    return Night(night.store, night.queue, night.dead_letters, night.failures)


def test_what_another_worker_found_and_queued_is_not_queued_again(night: Night) -> None:
    """It finds the queue not empty any more, works on what is there, and looks at its own finds again."""
    jobs = [night.upload(f"chunk-{number}.webm") for number in (1, 2, 3)]
    listing = night.store.list

    def meanwhile(prefix: str, **more: Any) -> Any:
        found = listing(prefix, **more)
        if prefix == "" and not night.queue.sent:
            for job in jobs:
                night.queue.send(job, Reason.SWEPT)
        return found

    night.store.list = meanwhile  # type: ignore[method-assign]
    summary = night.run()
    assert (summary.transcribed, summary.swept, summary.all_done) == (3, 0, True)
    assert len(night.queue.sent) == 3


def test_what_another_worker_has_done_since_the_sweep_is_not_queued(night: Night) -> None:
    jobs = [night.upload(f"chunk-{number}.webm") for number in (1, 2, 3)]
    other = colleague(night)
    counted, counts = night.queue.backlog, count(1)

    def meanwhile() -> Backlog:
        if next(counts) == 2:  # before the run's second look, which follows its sweep
            night.queue.backlog = counted  # type: ignore[method-assign]
            assert other.run().transcribed == 3
        return counted()

    night.queue.backlog = meanwhile  # type: ignore[method-assign]
    summary = night.run()
    assert (summary.transcribed, summary.swept, summary.all_done) == (0, 0, True)
    assert len(night.queue.sent) == len(jobs)


def test_what_is_found_in_a_queue_that_is_never_empty_is_queued_all_the_same(night: Night) -> None:
    lost = night.upload("chunk-1.webm")
    listing, numbers = night.store.list, count(1)

    def meanwhile(prefix: str, **more: Any) -> Any:
        found = listing(prefix, **more)
        if prefix == "":
            key = f"{next(numbers)}.mp3"
            job = Job(bucket=night.store.bucket, key=key, etag=night.store.upload(key))
            night.queue.send(job, Reason.FAILED)
        return found

    night.store.list = meanwhile  # type: ignore[method-assign]
    night.run()
    assert standing(night.store, lost) is Standing.TRANSCRIBED


def test_sessions_that_another_worker_has_stitched_meanwhile_are_left_alone(night: Night) -> None:
    for name in "abcdefgh":
        live_session(night, 2, name)
    other = colleague(night)
    ask, first, is_done = night.server.transcribe_session, threading.Lock(), threading.Event()

    def meanwhile(*arguments: Any, **more: Any) -> Answer:
        if first.acquire(blocking=False):
            assert other.run().restitched == 8
            is_done.set()
        assert is_done.wait(timeout=20)
        return ask(*arguments, **more)

    night.server.transcribe_session = meanwhile  # type: ignore[method-assign]
    assert night.run().all_done
    assert len(night.server.session_calls) <= 2  # those that were under way


def test_sessions_are_not_stitched_by_all_workers_in_the_same_order(night: Night) -> None:
    sessions = [Session("u", str(number)) for number in range(100)]
    with Leases(visibility=120, interval=30) as leases:
        batch = night.batch(night.drain(leases))
        asked: list[Session] = []
        batch.drain.worker.restitch = lambda session: asked.append(session) is None  # type: ignore[method-assign]
        assert batch._restitch(sessions) == 100
        assert batch._restitch(sessions) == 100
    assert set(asked[:100]) == set(asked[100:]) == set(sessions)
    assert asked[:100] != asked[100:]


def test_a_letter_that_two_workers_try_at_once_succeeds_if_one_of_them_does(night: Night) -> None:
    """The first has lost its lease. The second fails and records that; the first's transcript stands all the same."""
    job = night.upload("chunk-1.webm")
    night.upload("metadata.json", b'{"chunkCount": 1}')
    night.dead_letters.send(job, Reason.FAILED)
    other = colleague(night)
    other.server.answers = [Answer(Said.FAILED, message="connection reset")]
    recorded: list[object] = []

    def lose_the_lease_and_succeed(*_: object, **__: object) -> Answer:
        night.dead_letters.visible += night.dead_letters.held.values()
        other.run()
        recorded.append(read_failure(night.store, job))
        night.store.upload(job.output_key, transcript_for(job).to_json())
        return Answer(Said.DONE, 200)

    night.server.transcribe = lose_the_lease_and_succeed  # type: ignore[method-assign]
    assert night.run().all_done
    assert recorded != [None]
    assert standing(night.store, job) is Standing.TRANSCRIBED
    assert [event.failed for event in (*other.events, *night.events)] == [1, 0]
    assert night.dead_letters.visible == []


def test_an_unreadable_letter_is_parked_once_however_many_workers_look(night: Night) -> None:
    night.queue.send_raw("no json")
    other = colleague(night)
    assert night.run().parked == 1
    assert other.run().parked == 1  # it looked, and left it there
    assert [(message.body, message.attributes.keys()) for message in night.dead_letters.visible] == [
        ("no json", {"reason"})
    ]
