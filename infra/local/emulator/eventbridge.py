"""EventBridge: functions are invoked asynchronously, and what has no target goes to the target's dead-letter queue."""

import json
from typing import Any

from ministack.core.arn import ArnParseError, parse_arn
from ministack.services import eventbridge, lambda_svc, sqs

from infra.local.emulator.delivery import deliver
from infra.local.emulator.patching import patch

_invoke_target = eventbridge._invoke_target


def install() -> None:
    patch(
        eventbridge,
        "_dispatch_to_lambda",
        invoke_function,
        because="a function was called once: no retries, no failure destination, throttled events lost",
    )
    patch(
        eventbridge,
        "_invoke_target",
        invoke_target,
        because="an event whose target does not exist was lost: the target's DeadLetterConfig was stored only",
    )


def invoke_function(arn: str, payload: str) -> None:
    function, config, name = lambda_svc._get_func_record_for_ref(arn)
    if not function or not config:
        raise LookupError(f"function {name} does not exist")
    lambda_svc.invoke_async_with_retry(lambda_svc._execution_record_for_config(function, config), json.loads(payload))


def invoke_target(target: dict[str, Any], event: dict[str, Any], rule: dict[str, Any], view: Any = None) -> None:
    view = view or eventbridge._pattern_event_view(event)
    if not _is_missing(target["Arn"]):
        _invoke_target(target, event, rule, view)
    elif queue := (target.get("DeadLetterConfig") or {}).get("Arn"):
        # No retry for a missing target: https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-rule-dlq.html
        attributes = {
            "RULE_ARN": rule["Arn"],
            "TARGET_ARN": target["Arn"],
            "ERROR_CODE": "NO_RESOURCE",
            "ERROR_MESSAGE": "The target does not exist.",
        }
        deliver(queue, view.event_with_detail(), attributes=attributes)


def _is_missing(arn: str) -> bool:
    try:
        service = parse_arn(arn).service
    except ArnParseError:
        return True
    if service == "lambda":
        return lambda_svc._get_func_record_for_ref(arn)[0] is None
    if service == "sqs":
        return sqs._queue_by_arn(arn) is None
    return False
