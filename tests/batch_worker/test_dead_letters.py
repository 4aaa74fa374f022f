"""Dead letters in a person's hands: looked at without loss, sent again or given up with a record."""

import json
from dataclasses import replace
from typing import Any

import pytest

from batch_worker.dead_letters import HOLD_SECONDS, Choice, DeadLetter, Look, give_up, read, redrive, standings
from shared.combine import Combiner
from shared.errors import TransientError
from shared.jobs import Job, JobMessage, Reason
from shared.keys import Session
from shared.outcomes import Standing, read_failure
from shared.queues import Message, QueueUnavailable
from tests.fakes import MemoryQueue, MemoryStore, transcript_for
from tests.shared.test_events import s3_event

SESSION = Session("u", "s")


def upload(store: MemoryStore, number: int) -> Job:
    key = f"{SESSION.audio_prefix}chunk-{number}.webm"
    return Job(bucket=store.bucket, key=key, etag=store.upload(key, f"audio {number}".encode()))


def message(document: Any, attributes: dict[str, str] | None = None) -> Message:
    body = document if isinstance(document, str) else json.dumps(document)
    return Message("m1", "r1", body, 5, attributes or {})


def job_document(store: MemoryStore, number: int = 1) -> Any:
    return json.loads(JobMessage.of(upload(store, number), Reason.UNHEALTHY).to_json())


@pytest.fixture
def letters(store: MemoryStore) -> MemoryQueue:
    """Three chunks' jobs, and something that nobody can read."""
    queue = MemoryQueue("memory/dlq")
    for number in (1, 2, 3):
        queue.send(upload(store, number), Reason.FAILED)
    queue.send_raw("nonsense", attributes={"reason": "the message is not JSON"})
    return queue


def looked_at(queue: MemoryQueue) -> list[DeadLetter]:
    with Look(queue) as look:  # type: ignore[arg-type]
        return list(look)


def test_a_look_takes_nothing(letters: MemoryQueue) -> None:
    assert len(looked_at(letters)) == 4
    assert len(letters.visible) == 4
    assert not letters.held
    assert not letters.deleted
    assert {letter.message.receive_count for letter in looked_at(letters)} == {2}


def test_a_look_that_is_interrupted_gives_back_what_it_held(letters: MemoryQueue) -> None:
    def interrupted() -> None:
        with Look(letters) as look:  # type: ignore[arg-type]
            next(iter(look))
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert len(letters.visible) == 4


def test_a_look_ends_although_what_it_holds_comes_back_meanwhile(letters: MemoryQueue) -> None:
    """As SQS may deliver a message twice, or a look may take longer than its messages are hidden."""
    receive = letters.receive

    def forget(*, most: int, wait: int, visibility: int) -> list[Message]:
        assert visibility == HOLD_SECONDS
        messages = receive(most=2, wait=wait, visibility=visibility)
        letters.visible += [replace(message, receive_count=9) for message in messages]
        return messages

    letters.receive = forget  # type: ignore[method-assign]
    assert len(looked_at(letters)) == 4


def test_giving_back_goes_on_when_sqs_does_not(letters: MemoryQueue) -> None:
    with Look(letters) as look:  # type: ignore[arg-type]
        next(iter(look))
        letters.broken = True
    assert letters.held  # it comes back by itself
    with pytest.raises(QueueUnavailable):
        looked_at(letters)


@pytest.mark.parametrize(
    ("document", "attributes", "why"),
    [
        ("nonsense", {}, "the message is not JSON"),
        ("nonsense", {"reason": "an older worker could not read it"}, "an older worker could not read it"),
        (s3_event("k/a.mp3"), {"ERROR_CODE": "NO_PERMISSIONS"}, "NO_PERMISSIONS"),
        (
            s3_event("k/a.mp3"),
            {"ERROR_CODE": "THROTTLING", "ERROR_MESSAGE": "Rate exceeded"},
            "Rate exceeded",
        ),
        (
            {
                "requestPayload": s3_event("k/a.mp3"),
                "responsePayload": {"errorMessage": "StoreUnavailable: S3 is down"},
            },
            {},
            "StoreUnavailable: S3 is down",
        ),
        (
            {"requestPayload": s3_event("k/a.mp3"), "requestContext": {"condition": "RetriesExhausted"}},
            {},
            "RetriesExhausted",
        ),
        ({"source": "aws.scheduler", "detail-type": "x", "detail": {}}, {}, "not known"),
    ],
)
def test_the_best_that_is_known_is_said_of_why_a_letter_is_there(
    document: Any, attributes: dict[str, str], why: str
) -> None:
    assert read(message(document, attributes)).why == why


def test_a_job_that_only_failed_says_why_it_was_queued(store: MemoryStore) -> None:
    letter = read(message(job_document(store)))
    assert (letter.why, letter.keys) == ("queued as unhealthy", (f"{SESSION.audio_prefix}chunk-1.webm",))


@pytest.mark.parametrize(
    ("choice", "chosen"),
    [
        (Choice(), True),
        (Choice(id="m"), True),
        (Choice(id="m2"), False),
        (Choice(key="users/u/"), True),
        (Choice(key="users/v/"), False),
        (Choice(reason="UNHEALTHY"), True),
        (Choice(reason="loops"), False),
        (Choice(id="m", key="users/u/", reason="unhealthy"), True),
        (Choice(id="m", key="users/u/", reason="loops"), False),
    ],
)
def test_all_that_a_choice_says_must_be_true(store: MemoryStore, choice: Choice, chosen: bool) -> None:
    assert choice(read(message(job_document(store)))) is chosen


def test_sent_again_is_what_was_chosen_and_can_be_read(letters: MemoryQueue) -> None:
    jobs = MemoryQueue()
    with Look(letters) as look:  # type: ignore[arg-type]
        assert redrive(look, jobs, Choice(key=f"{SESSION.audio_prefix}chunk-2")) == (1, 0)  # type: ignore[arg-type]
    assert [json.loads(body)["chunk_index"] for body, _ in jobs.sent] == [2]
    assert len(letters.visible) == 3
    with Look(letters) as look:  # type: ignore[arg-type]
        assert redrive(look, jobs, Choice()) == (2, 1)  # type: ignore[arg-type]
    assert len(jobs.sent) == 3
    assert [message.body for message in letters.visible] == ["nonsense"]


def test_a_letter_is_deleted_only_after_it_was_sent(letters: MemoryQueue) -> None:
    jobs = MemoryQueue(broken=True)
    with pytest.raises(QueueUnavailable), Look(letters) as look:  # type: ignore[arg-type]
        redrive(look, jobs, Choice())  # type: ignore[arg-type]
    assert len(letters.visible) == 4
    assert not letters.deleted


def combiner(store: MemoryStore) -> Combiner:
    return Combiner(store, lambda event: None)


def test_what_is_given_up_has_a_record_and_holds_up_its_session_no_longer(store: MemoryStore) -> None:
    job = upload(store, 2)
    done = upload(store, 1)
    store.upload(done.output_key, transcript_for(done).to_json())
    store.upload(SESSION.manifest_key, b'{"chunkCount": 2}')
    letter = read(message(JobMessage.of(job, Reason.FAILED).to_json()))
    assert standings(store, letter) == {job.key: Standing.NEW}
    assert give_up(store, combiner(store), letter, "a test tone") == {job.key: Standing.FAILED}
    record = read_failure(store, job)
    assert record is not None
    assert (record.type, record.message, record.attempts) == ("given-up", "given up: a test tone", 5)
    assert SESSION.output_key in store.objects


def test_giving_up_what_is_done_by_now_records_nothing(store: MemoryStore) -> None:
    job = upload(store, 1)
    store.upload(job.output_key, transcript_for(job).to_json())
    letter = read(message(JobMessage.of(job, Reason.FAILED).to_json()))
    assert give_up(store, combiner(store), letter, "x") == {job.key: Standing.TRANSCRIBED}
    assert job.audio.error_key not in store.objects


def test_an_event_of_the_routers_is_given_up_for_the_audio_that_it_names_also_when_that_is_gone(
    store: MemoryStore,
) -> None:
    job = upload(store, 1)
    gone = s3_event(f"{SESSION.audio_prefix}chunk-2.webm")
    document = {"requestPayload": [s3_event(job.key, etag=job.etag), gone]}
    letter = read(message(document))
    failed = give_up(store, combiner(store), letter, "x")
    assert failed == {job.key: Standing.FAILED, gone["detail"]["object"]["key"]: Standing.FAILED}


def test_an_event_of_the_routers_is_not_given_up_for_what_has_replaced_its_audio(store: MemoryStore) -> None:
    job = upload(store, 1)
    letter = read(message({"requestPayload": s3_event(job.key, etag="older")}))
    assert give_up(store, combiner(store), letter, "x") == {job.key: Standing.SUPERSEDED}
    assert job.audio.error_key not in store.objects


def test_an_event_that_names_no_version_is_given_up_for_the_audio_that_is_there(store: MemoryStore) -> None:
    job = upload(store, 1)
    gone = {"s3_bucket": store.bucket, "s3_key": f"{SESSION.audio_prefix}chunk-2.webm"}
    letter = read(message({"requestPayload": [{"s3_bucket": store.bucket, "s3_key": job.key}, gone]}))
    assert give_up(store, combiner(store), letter, "x") == {job.key: Standing.FAILED}


def test_a_manifests_event_is_given_up_by_looking_at_its_session(store: MemoryStore) -> None:
    job = upload(store, 1)
    store.upload(job.output_key, transcript_for(job).to_json())
    store.upload(SESSION.manifest_key, b'{"chunkCount": 1}')
    letter = read(message(s3_event(SESSION.manifest_key)))
    assert give_up(store, combiner(store), letter, "x") == {}
    assert SESSION.output_key in store.objects


@pytest.mark.parametrize("document", ["nonsense", {"s3_bucket": "another-bucket", "s3_key": "calls/a.mp3"}])
def test_there_may_be_nothing_to_record(store: MemoryStore, document: Any) -> None:
    assert give_up(store, combiner(store), read(message(document)), "x") == {}
    assert not store.objects


def test_a_store_that_stays_away_is_told_before_anything_is_deleted(store: MemoryStore) -> None:
    letter = read(message(job_document(store)))

    def away(*_: str) -> None:
        raise TransientError("S3 is down")

    store.hook = away
    with pytest.raises(TransientError):
        give_up(store, combiner(store), letter, "x")
