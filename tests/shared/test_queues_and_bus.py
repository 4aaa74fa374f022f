"""SQS and EventBridge, on moto; and the exact limits the clients are given."""

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import boto3
import pytest
from moto import mock_aws

from shared.bus import publisher
from shared.combine import SessionTranscribed
from shared.errors import BadMessage, TransientError
from shared.jobs import Job, JobMessage, Reason
from shared.queues import (
    AUDIO_SECONDS,
    LONG_POLL_SECONDS,
    RECEIVE_CONFIG,
    SEND_CONFIG,
    Backlog,
    Message,
    Queue,
    QueueUnavailable,
)

JOB = Job(bucket="audio-bucket", key="ü ☕.mp3", etag="e")
EVENT = SessionTranscribed("audio-bucket", "k", "u", "s", 2, 0, 10.0, {"direct": 10.0})


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    with mock_aws():
        yield


@pytest.fixture
def queue(aws: None) -> Queue:
    sqs = boto3.client("sqs")
    return Queue(sqs, sqs.create_queue(QueueName="jobs")["QueueUrl"])


def receive(queue: Queue) -> list[Message]:
    return queue.receive(most=10, wait=0, visibility=60)


def test_a_job_goes_through_and_counts_its_receives(queue: Queue) -> None:
    queue.send(JOB, Reason.FAILED)
    [message] = receive(queue)
    assert JobMessage.model_validate(message.document()).job() == JOB
    assert message.receive_count == 1
    queue.extend(message, 0)
    [again] = receive(queue)
    assert again.receive_count == 2
    queue.delete(again)
    assert queue.backlog() == Backlog(0, 0, 0)


@pytest.mark.parametrize(
    ("key", "size", "seconds"),
    [
        ("users/u/audio/sessions/s/chunk-1.webm", 40_000, "5.000"),
        ("calls/an hour.MP3", 57_600_000, "3600.000"),
        ("calls/one channel at 16 kHz.wav", 320_044, "10.001"),
        ("calls/a telephone's.m4a", 16_000, "1.000"),
        ("calls/empty.ogg", 0, "0.000"),
    ],
)
def test_a_message_says_about_how_long_its_audio_is(queue: Queue, key: str, size: int, seconds: str) -> None:
    job = Job(bucket="audio-bucket", key=key, etag="e", size=size)
    queue.send(job, Reason.FORCED)
    queue.send_all([job], Reason.FORCED)
    assert [message.attributes for message in receive(queue)] == [{AUDIO_SECONDS: seconds}] * 2


def test_a_message_of_unknown_size_says_nothing_of_its_length(queue: Queue) -> None:
    queue.send(JOB, Reason.FORCED)
    assert [message.attributes for message in receive(queue)] == [{}]


def test_a_message_says_when_it_was_sent_and_what_its_sender_put_beside_it(queue: Queue) -> None:
    before = datetime.now(UTC)
    queue.send_raw("{}", attributes={"reason": "not JSON"})
    [message] = receive(queue)
    assert message.attributes == {"reason": "not JSON"}
    assert message.sent_at is not None
    assert abs((message.sent_at - before).total_seconds()) < 60


def test_any_number_of_messages_can_be_deleted(queue: Queue) -> None:
    queue.send_all([JOB] * 10, Reason.FORCED)
    queue.send_all([JOB] * 3, Reason.FORCED)
    messages = receive(queue) + receive(queue)
    queue.delete_all([])
    queue.delete_all(messages)
    assert (len(messages), queue.backlog()) == (13, Backlog(0, 0, 0))


def test_a_message_that_is_not_deleted_is_told_of_and_the_others_are_gone(queue: Queue) -> None:
    queue.send_all([JOB] * 2, Reason.FORCED)
    messages = receive(queue)
    with pytest.raises(QueueUnavailable, match="did not delete 1 messages"):
        queue.delete_all([Message("x", "no such receipt", "", 1), *messages])
    assert queue.backlog() == Backlog(0, 0, 0)


class Refusing:
    """SQS that takes a batch and refuses some of it, each time others."""

    def __init__(self, *refused: str) -> None:
        self.refused = list(refused)
        self.taken: list[str] = []

    def send_message_batch(self, *, QueueUrl: str, Entries: list[dict[str, Any]]) -> dict[str, Any]:
        names = self.refused.pop(0) if self.refused else ""
        failed = [{"Id": entry["Id"], "Code": "ServiceUnavailable"} for entry in Entries if entry["Id"] in names]
        self.taken += [entry["Id"] for entry in Entries if entry["Id"] not in names]
        return {"Failed": failed} if failed else {}


def test_what_sqs_refuses_of_a_batch_is_sent_again_and_no_more() -> None:
    sqs = Refusing("013", "1")
    Queue(sqs, "q/jobs").send_all([JOB] * 4, Reason.BACKFILL)
    assert sorted(sqs.taken) == ["0", "1", "2", "3"]


def test_what_sqs_goes_on_refusing_is_told() -> None:
    sqs = Refusing("1", "1", "1")
    with pytest.raises(QueueUnavailable, match="1 of 2 jobs: ServiceUnavailable"):
        Queue(sqs, "q/jobs").send_all([JOB] * 2, Reason.BACKFILL)
    assert sqs.taken == ["0"]


def test_the_backlog_tells_waiting_held_and_delayed_messages_apart(queue: Queue) -> None:
    for delay in (0, 0, 0, 900):
        queue.send(JOB, Reason.SAFETY_NET, delay=delay)
    queue.receive(most=1, wait=0, visibility=60)
    assert queue.backlog() == Backlog(visible=2, in_flight=1, delayed=1)


def test_a_body_that_is_not_json_is_a_typed_error(queue: Queue) -> None:
    queue.send_raw("not json")
    with pytest.raises(BadMessage):
        receive(queue)[0].document()


def test_a_missing_queue_is_named(aws: None) -> None:
    queue = Queue(boto3.client("sqs"), "https://sqs.us-east-1.amazonaws.com/123456789012/nowhere")
    for call in (lambda: queue.send(JOB, Reason.FAILED), queue.backlog, lambda: receive(queue)):
        with pytest.raises(QueueUnavailable, match="nowhere"):
            call()


def test_a_long_poll_is_not_cut_off_by_the_clients_own_timeout() -> None:
    assert RECEIVE_CONFIG.read_timeout > LONG_POLL_SECONDS
    assert SEND_CONFIG.retries["total_max_attempts"] * (SEND_CONFIG.connect_timeout + SEND_CONFIG.read_timeout) <= 10


class Bus:
    def __init__(self, answer: dict[str, Any]) -> None:
        self.entries: list[dict[str, Any]] = []
        self._answer = answer

    def put_events(self, *, Entries: list[dict[str, Any]]) -> dict[str, Any]:
        self.entries += Entries
        return self._answer


def test_a_session_is_announced_with_all_that_others_need() -> None:
    bus = Bus({"FailedEntryCount": 0})
    publisher(bus, "my-bus")(EVENT)
    [entry] = bus.entries
    assert (entry["Source"], entry["DetailType"]) == ("transcription.router", "Session Transcribed")
    assert entry["EventBusName"] == "my-bus"
    assert '"audio_seconds": {"direct": 10.0}' in entry["Detail"]


def test_a_200_for_an_entry_that_was_refused_is_an_error() -> None:
    bus = Bus({"FailedEntryCount": 1, "Entries": [{"ErrorCode": "ThrottlingException"}]})
    with pytest.raises(TransientError, match="Throttling"):
        publisher(bus, "default")(EVENT)
