"""SQS and EventBridge, on moto; and the exact limits the clients are given."""

from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from moto import mock_aws

from shared.bus import publisher
from shared.combine import SessionTranscribed
from shared.errors import BadMessage, TransientError
from shared.jobs import Job, JobMessage, Reason
from shared.queues import (
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
