"""Sends a record to the ARN of a destination or a dead-letter queue, as the AWS services do among themselves."""

import json
import logging
from collections.abc import Mapping
from typing import Any

from ministack.core.arn import ArnParseError, parse_arn
from ministack.services import eventbridge, sqs

log = logging.getLogger(__name__)


def deliver(arn: str, record: Any, *, attributes: Mapping[str, str] | None = None) -> None:
    """Deliver, or log that it was impossible: AWS drops the record too, and shows it in a metric only."""
    try:
        service = parse_arn(arn).service
    except ArnParseError:
        log.error("not an ARN, record dropped: %s", arn)
        return
    body = json.dumps(record)
    if service == "sqs":
        _to_queue(arn, body, attributes or {})
    elif service == "sns":
        eventbridge._dispatch_to_sns(arn, body)
    elif service == "lambda":
        eventbridge._dispatch_to_lambda(arn, body)
    else:
        log.error("no destination of this kind, record dropped: %s", arn)


def queue_url(arn: str) -> str | None:
    return next((url for (_, _, url), queue in sqs._queues.all_items() if queue["attributes"]["QueueArn"] == arn), None)


def _to_queue(arn: str, body: str, attributes: Mapping[str, str]) -> None:
    url = queue_url(arn)
    if url is None:
        log.error("queue is gone, record dropped: %s", arn)
        return
    typed = {name: {"DataType": "String", "StringValue": value} for name, value in attributes.items()}
    sqs._act_send_message({"QueueUrl": url, "MessageBody": body, "MessageAttributes": typed}, url)
    sqs.esm_wake.set()
