"""One SQS queue: send, long-poll, extend, give back, delete, count."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from shared.errors import BadMessage, TransientError
from shared.jobs import Job, JobMessage, Reason

# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
MAX_DELAY_SECONDS = 900
MAX_RECEIVE = 10
MAX_BATCH = 10  # messages in one request to send
LONG_POLL_SECONDS = 20

BATCH_TRIES = 3  # of what SQS refuses of a batch that it took; the SDK sees no failure there
AUDIO_SECONDS = "audio_seconds"  # a job's attribute: how much work it is, for whoever counts the backlog
SEND_CONFIG = Config(connect_timeout=2, read_timeout=3, retries={"mode": "standard", "total_max_attempts": 2})
# A read timeout below the long poll would throw away messages that SQS counts as delivered.
RECEIVE_CONFIG = Config(
    connect_timeout=2, read_timeout=LONG_POLL_SECONDS + 10, retries={"mode": "standard", "total_max_attempts": 3}
)


class QueueUnavailable(TransientError):
    """SQS did not do what it was asked."""


@dataclass(frozen=True)
class Message:
    """`attributes`: what its sender put beside the body. `sent_at`: None where nobody asked SQS."""

    id: str
    receipt: str
    body: str
    receive_count: int
    attributes: Mapping[str, str] = field(default_factory=dict, hash=False)
    sent_at: datetime | None = None

    def document(self) -> Any:
        """The body as JSON. Raises BadMessage."""
        try:
            return json.loads(self.body)
        except (ValueError, RecursionError) as error:
            raise BadMessage("the message is not JSON") from error


@dataclass(frozen=True)
class Backlog:
    """SQS's three counters; each is approximate."""

    visible: int
    in_flight: int
    delayed: int


class Queue:
    """Safe to share between threads. Every method raises QueueUnavailable when SQS fails after the SDK's retries."""

    def __init__(self, client: Any, url: str) -> None:
        self._client = client
        self.url = url

    def send(self, job: Job, reason: Reason, *, delay: int = 0) -> None:
        """Queue a job, invisible for `delay` seconds first."""
        self._call("send_message", DelaySeconds=delay, **_entry(job, reason))

    def send_all(self, jobs: Sequence[Job], reason: Reason) -> None:
        """Queue up to MAX_BATCH jobs in one request. When it raises, some of them may be queued."""
        entries = [{"Id": str(number), **_entry(job, reason)} for number, job in enumerate(jobs)]
        refused: list[dict[str, Any]] = []
        for _ in range(BATCH_TRIES):
            refused = self._call("send_message_batch", Entries=entries).get("Failed", [])
            ids = {entry["Id"] for entry in refused}
            entries = [entry for entry in entries if entry["Id"] in ids]
            if not entries:
                return
        raise QueueUnavailable(f"SQS refused {len(entries)} of {len(jobs)} jobs: {refused[0].get('Code')}")

    def send_raw(self, body: str, *, delay: int = 0, attributes: dict[str, str] | None = None) -> None:
        wrapped = {name: {"DataType": "String", "StringValue": value} for name, value in (attributes or {}).items()}
        self._call("send_message", MessageBody=body, DelaySeconds=delay, MessageAttributes=wrapped)

    def receive(self, *, most: int, wait: int, visibility: int) -> list[Message]:
        """Up to `most` messages (at most 10), after at most `wait` seconds, invisible for `visibility` seconds."""
        answer = self._call(
            "receive_message",
            MaxNumberOfMessages=min(most, MAX_RECEIVE),
            WaitTimeSeconds=wait,
            VisibilityTimeout=visibility,
            AttributeNames=["ApproximateReceiveCount", "SentTimestamp"],
            MessageAttributeNames=["All"],
        )
        return [_message(item) for item in answer.get("Messages", ())]

    def extend(self, message: Message, seconds: int) -> None:
        """Keep the message invisible for `seconds` from now; 0 gives it back at once."""
        self._call("change_message_visibility", ReceiptHandle=message.receipt, VisibilityTimeout=seconds)

    def delete(self, message: Message) -> None:
        self._call("delete_message", ReceiptHandle=message.receipt)

    def delete_all(self, messages: Sequence[Message]) -> None:
        """Any number of them. When it raises, some are deleted."""
        refused: list[dict[str, Any]] = []
        for start in range(0, len(messages), MAX_BATCH):
            some = enumerate(messages[start : start + MAX_BATCH])
            entries = [{"Id": str(number), "ReceiptHandle": message.receipt} for number, message in some]
            refused += self._call("delete_message_batch", Entries=entries).get("Failed", [])
        if refused:
            raise QueueUnavailable(f"SQS did not delete {len(refused)} messages: {refused[0].get('Code')}")

    def backlog(self) -> Backlog:
        names = (
            "ApproximateNumberOfMessages",
            "ApproximateNumberOfMessagesNotVisible",
            "ApproximateNumberOfMessagesDelayed",
        )
        counts = self._call("get_queue_attributes", AttributeNames=list(names))["Attributes"]
        return Backlog(*(int(counts[name]) for name in names))

    def _call(self, action: str, **arguments: Any) -> Any:
        try:
            return getattr(self._client, action)(QueueUrl=self.url, **arguments)
        except (ClientError, BotoCoreError) as error:
            raise QueueUnavailable(f"SQS {action} on {self.url.rpartition('/')[2]}: {error}") from error


def _entry(job: Job, reason: Reason) -> dict[str, Any]:
    seconds = job.audio_seconds
    number = {} if seconds is None else {AUDIO_SECONDS: {"DataType": "Number", "StringValue": f"{seconds:.3f}"}}
    return {"MessageBody": JobMessage.of(job, reason).to_json(), "MessageAttributes": number}


def _message(item: dict[str, Any]) -> Message:
    counted = item.get("Attributes", {})
    sent = counted.get("SentTimestamp")  # milliseconds
    return Message(
        item["MessageId"],
        item["ReceiptHandle"],
        item["Body"],
        int(counted.get("ApproximateReceiveCount", 1)),
        {name: value.get("StringValue", "") for name, value in item.get("MessageAttributes", {}).items()},
        datetime.fromtimestamp(int(sent) / 1000, UTC) if sent else None,
    )
