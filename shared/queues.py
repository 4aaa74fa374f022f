"""One SQS queue: send, long-poll, extend, give back, delete, count."""

import json
from dataclasses import dataclass
from typing import Any

from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from shared.errors import BadMessage, TransientError
from shared.jobs import Job, JobMessage, Reason

# https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/quotas-messages.html
MAX_DELAY_SECONDS = 900
MAX_RECEIVE = 10
LONG_POLL_SECONDS = 20

SEND_CONFIG = Config(connect_timeout=2, read_timeout=3, retries={"mode": "standard", "total_max_attempts": 2})
# A read timeout below the long poll would throw away messages that SQS counts as delivered.
RECEIVE_CONFIG = Config(
    connect_timeout=2, read_timeout=LONG_POLL_SECONDS + 10, retries={"mode": "standard", "total_max_attempts": 3}
)


class QueueUnavailable(TransientError):
    """SQS did not do what it was asked."""


@dataclass(frozen=True)
class Message:
    id: str
    receipt: str
    body: str
    receive_count: int

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
        self.send_raw(JobMessage.of(job, reason).to_json(), delay=delay)

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
            AttributeNames=["ApproximateReceiveCount"],
        )
        return [
            Message(
                item["MessageId"],
                item["ReceiptHandle"],
                item["Body"],
                int(item.get("Attributes", {}).get("ApproximateReceiveCount", 1)),
            )
            for item in answer.get("Messages", ())
        ]

    def extend(self, message: Message, seconds: int) -> None:
        """Keep the message invisible for `seconds` from now; 0 gives it back at once."""
        self._call("change_message_visibility", ReceiptHandle=message.receipt, VisibilityTimeout=seconds)

    def delete(self, message: Message) -> None:
        self._call("delete_message", ReceiptHandle=message.receipt)

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
