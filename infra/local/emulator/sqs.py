"""SQS: who may do something to one message may do it to ten of them at once."""

from typing import Any

from ministack.core import iam_actions

from infra.local.emulator.patching import patch

_action = iam_actions.extract_iam_action


def install() -> None:
    patch(iam_actions, "extract_iam_action", action, because="a batch of messages needed a permission that AWS has not")


def action(service: str, *request: Any) -> str | None:
    """https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-api-permissions-reference.html"""
    found: str | None = _action(service, *request)
    return found.removesuffix("Batch") if found and service == "sqs" else found
