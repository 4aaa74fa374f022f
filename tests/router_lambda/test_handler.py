"""The Lambda's edge: what it returns, what it raises, what it logs."""

import json
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import boto3
import pytest
from moto import mock_aws

from router_lambda import handler as edge
from router_lambda.decide import Decision
from router_lambda.route import Decided
from shared.errors import BadEvent, SettingsError
from shared.jobs import Reason
from shared.queues import QueueUnavailable
from tests.shared.test_events import s3_event

KEY = "users/canary-user/audio/sessions/s/chunk-1.webm"


class Context:
    """What Lambda passes; `remaining` in seconds."""

    def __init__(self, remaining: float = 120) -> None:
        self.remaining = remaining

    def get_remaining_time_in_millis(self) -> int:
        return int(self.remaining * 1000)


@pytest.fixture
def aws(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], list[dict[str, Any]]]]:
    """A bucket and a queue on moto; gives a function that reads the queue's messages."""
    for name, value in {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_REGION": "us-east-1",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AUDIO_BUCKET": "audio-bucket",
        "FAST_API_SERVER_URL": "http://127.0.0.1:9",  # the discard port: nobody listens
    }.items():
        monkeypatch.setenv(name, value)
    with mock_aws():
        boto3.client("s3").create_bucket(Bucket="audio-bucket")
        sqs = boto3.client("sqs")
        url = sqs.create_queue(QueueName="jobs")["QueueUrl"]
        monkeypatch.setenv("SQS_QUEUE_URL", url)
        edge._router.cache_clear()

        def messages() -> list[dict[str, Any]]:
            received = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10).get("Messages", [])
            return [json.loads(message["Body"]) for message in received]

        yield messages
    edge._router.cache_clear()


def put(key: str = KEY) -> dict[str, Any]:
    answer = boto3.client("s3").put_object(Bucket="audio-bucket", Key=key, Body=b"audio")
    return s3_event(key, etag=answer["ETag"].strip('"'))


def test_an_upload_with_a_dead_server_is_in_the_queue_when_the_handler_returns(aws: Callable[[], Any]) -> None:
    answer = edge.handler(put(), Context())
    assert [decided["decision"] for decided in answer["decisions"]] == ["queued"]
    assert [message["reason"] for message in aws()] == ["unhealthy"]


def test_without_the_servers_key_the_job_is_queued(aws: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY_PARAMETER", "/nowhere/api-key")
    answer = edge.handler(put(), Context())
    assert [decided["decision"] for decided in answer["decisions"]] == ["queued"]
    assert "the server's key cannot be read" in answer["decisions"][0]["reason"]
    assert len(aws()) == 1


def test_a_malformed_event_raises_so_that_lambda_keeps_it(aws: Callable[[], Any]) -> None:
    with pytest.raises(BadEvent):
        edge.handler({"source": "aws.s3", "detail-type": "Object Created", "detail": {}}, Context())


def test_a_queue_that_does_not_exist_is_named_and_the_event_goes_back_to_lambda(
    aws: Callable[[], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SQS_QUEUE_URL", "https://sqs.us-east-1.amazonaws.com/123456789012/nowhere")
    with pytest.raises(QueueUnavailable, match="nowhere"):
        edge.handler(put(), Context())


def test_a_setting_that_is_missing_is_named(aws: Callable[[], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUDIO_BUCKET")
    with pytest.raises(SettingsError, match="AUDIO_BUCKET is not set"):
        edge.handler(put(), Context())


def test_one_bad_event_of_a_batch_does_not_hold_up_the_others(aws: Callable[[], Any]) -> None:
    with pytest.raises(BadEvent):
        edge.handler([{"s3_key": "x"}, put()], Context())
    assert len(aws()) == 1


def test_several_bad_events_are_raised_together(aws: Callable[[], Any]) -> None:
    with pytest.raises(ExceptionGroup):
        edge.handler([{"s3_key": "x"}, {}], Context())


def test_every_decision_is_one_json_line_and_one_metric_without_the_event(
    aws: Callable[[], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    edge.logger.registered_handler.setStream(sys.stdout)  # type: ignore[attr-defined]
    event = put()
    event["detail"]["requester"] = "canary@example.com"
    edge.handler(event, Context())
    output = capsys.readouterr().out
    lines = [json.loads(line) for line in output.splitlines()]
    decided = [line for line in lines if line.get("message") == "decided"]
    assert [(line["decision"], line["key"], bool(line["job_id"])) for line in decided] == [("queued", KEY, True)]
    assert {"reason", "attempts", "milliseconds"} <= set(decided[0])
    metrics = [line for line in lines if "_aws" in line]
    assert [line for line in metrics if line.get("Decision") == "queued" and line["Decisions"] == [1.0]]
    assert [line for line in metrics if line.get("Reason") == "unhealthy" and line["JobsQueued"] == [1.0]]
    assert {line["Deployment"] for line in metrics} == {"smart-transcription"}
    assert "canary" not in json.dumps(metrics)
    assert "canary@example.com" not in output


def test_what_the_router_decided_is_counted(aws: Callable[[], Any], capsys: pytest.CaptureFixture[str]) -> None:
    now = datetime.now(UTC)

    def decided(decision: Decision, time: datetime | None = None, **facts: Any) -> None:
        edge._count(Decided(decision, **facts), {} if time is None else {"time": time.isoformat()})

    decided(Decision.DIRECT, now - timedelta(seconds=3), attempts=3)
    decided(Decision.DIRECT, now + timedelta(seconds=9))  # a clock that is ahead
    decided(Decision.DIRECT)
    decided(Decision.QUEUED, now, queued=Reason.FAILED, attempts=4, unauthorized=True)
    decided(Decision.SKIPPED, now)
    edge._log_error(BadEvent("?"))
    edge._log_error(RuntimeError("?"))
    edge.telemetry.flush()

    metrics = [line for text in capsys.readouterr().out.splitlines() if "_aws" in (line := json.loads(text))]
    assert {line["Decision"]: line["Decisions"] for line in metrics if "Decision" in line} == {
        "direct": [3.0],
        "queued": [1.0],
        "skipped": [1.0],
        "refused": [1.0],
        "error": [1.0],
    }
    (plain,) = [line for line in metrics if "Retries" in line]
    assert (plain["Retries"], plain["Unauthorized"]) == ([5.0], [1.0])
    (times,) = [line["UploadToTranscript"] for line in metrics if line.get("Route") == "direct"]
    assert times == [pytest.approx(3, abs=2.9), 0]


def test_a_batch_that_fails_is_counted_all_the_same(aws: Callable[[], Any], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(BadEvent):
        edge.handler([{"s3_key": "x"}, put()], Context())
    metrics = [line for text in capsys.readouterr().out.splitlines() if "_aws" in (line := json.loads(text))]
    assert {line["Decision"] for line in metrics if "Decision" in line} == {"refused", "queued"}
