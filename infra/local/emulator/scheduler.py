"""EventBridge Scheduler: each schedule in its own time zone, each target an API call made as the schedule's role.

That a target is an API call is what AWS says too. Here it goes through the emulator's own door, where IAM holds back
what the role may not do. It is made once: nothing that can fail here goes away by trying again.
"""

import functools
import json
import logging
import os
import re
import threading
import time
import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import botocore.session
from botocore import xform_name
from botocore.client import Config
from botocore.exceptions import ClientError, UnknownServiceError
from botocore.model import OperationNotFoundError
from botocore.validate import ParamValidator
from ministack.core import iam_evaluator
from ministack.core.arn import ArnParseError, parse_arn
from ministack.core.responses import get_account_id, get_region, new_uuid, set_request_account_id, set_request_region
from ministack.services import eventbridge, iam, scheduler, sts

from infra.local.emulator.delivery import queue_url
from infra.local.emulator.patching import patch
from infra.local.emulator.refusals import Refused

Schedule = Mapping[str, Any]
Key = tuple[str, str, str]  # account, region, group/name

TICK_SECONDS = 1
SESSION_SECONDS = 900
AT = re.compile(r"at\((\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d)\)")
UNIVERSAL_TARGET = re.compile(r"arn:aws[\w-]*:scheduler:::aws-sdk:([a-z0-9-]+):([a-zA-Z0-9]+)")
READING = ("get", "list", "describe", "head", "batchGet")  # no universal target may begin so

log = logging.getLogger(__name__)

_create = scheduler._create_schedule
_update = scheduler._update_schedule

_started = time.time()
_fired: dict[Key, float] = {}


def install() -> None:
    checked = "a wrong expression, time zone, target or role was accepted"
    patch(scheduler, "_create_schedule", create, because=checked)
    patch(scheduler, "_update_schedule", update, because=checked)
    patch(
        scheduler,
        "_tick_schedules",
        tick,
        because="time zones, universal targets, dead-letter queues and roles were ignored",
    )
    patch(scheduler, "_SCHEDULE_TICK_INTERVAL", TICK_SECONDS, because="a schedule fired up to 10 s late")


# What is accepted -----------------------------------------------------------------------------------------------


def create(name: str, body: Schedule) -> Any:
    return _checked(_create, name, body)


def update(name: str, body: Schedule) -> Any:
    return _checked(_update, name, body)


def _checked(store: Any, name: str, body: Schedule) -> Any:
    try:
        if {"ScheduleExpression", "Target"} <= set(body):
            _check(body)
    except Refused as refusal:
        return scheduler._error(refusal.status, refusal.code, str(refusal))
    return store(name, body)


def _check(body: Schedule) -> None:
    expression, zone = body["ScheduleExpression"], body.get("ScheduleExpressionTimezone", "UTC")
    if zone not in _zones():
        raise _invalid(f"Provided ScheduleExpressionTimezone {zone} is invalid.")
    if not (AT.fullmatch(expression) or eventbridge._parse_rate_seconds(expression) or _cron(expression)):
        raise _invalid(f"Invalid Schedule Expression {expression}.")
    target = body["Target"]
    if universal := UNIVERSAL_TARGET.fullmatch(target["Arn"]):
        _check_universal(*universal.groups(), target.get("Input", "{}"))
    else:
        _call(target, "{}")
    group = f"arn:aws:scheduler:{get_region()}:{get_account_id()}:schedule-group/{body.get('GroupName', 'default')}"
    if not _may_be_assumed(target["RoleArn"], group):
        raise _invalid("The execution role you provide must allow AWS EventBridge Scheduler to assume the role.")


_zones = functools.cache(zoneinfo.available_timezones)  # it reads a thousand files


def _invalid(message: str) -> Refused:
    return Refused("ValidationException", message)


def _check_universal(service: str, action: str, text: str) -> None:
    operation = action[0].upper() + action[1:]
    try:
        shape = botocore.session.Session().get_service_model(service).operation_model(operation).input_shape
    except (UnknownServiceError, OperationNotFoundError) as error:
        raise _invalid(f"{service}:{action} is not a supported target.") from error
    if action.startswith(READING):
        raise _invalid(f"{service}:{action} only reads, and is not a supported target.")
    try:
        faults = ParamValidator().validate(json.loads(text), shape)
    except json.JSONDecodeError as error:
        raise _invalid(f"Invalid RequestJson provided. Reason: {error}") from error
    if faults.has_errors():
        raise _invalid(f"Invalid RequestJson provided. Reason: {faults.generate_report()}")


def _may_be_assumed(role: str, schedule_group: str) -> bool:
    """Whether the role's trust policy lets the scheduler in.

    MiniStack's own answer is not asked alone: it lets root pass wherever any service is named.
    """
    record = iam._roles.get(role.rsplit("/", 1)[-1])
    if not record:
        return False
    document = json.loads(record["AssumeRolePolicyDocument"])
    statements = document["Statement"] if isinstance(document["Statement"], list) else [document["Statement"]]
    named = [
        statement
        for statement in statements
        if iam_evaluator._service_principal_matches(statement.get("Principal"), "scheduler.amazonaws.com")
    ]
    account = get_account_id()
    caller = f"arn:aws:iam::{account}:root"
    context = iam_evaluator.EvalContext(
        principal_arn=caller,
        principal_type="Root",
        principal_account=account,
        action="sts:AssumeRole",
        resource_arn=role,
        region=get_region(),
        service_context={"aws:sourceaccount": account, "aws:sourcearn": schedule_group},
    )
    return bool(iam_evaluator.evaluate_trust_policy({"Statement": named}, caller, context))


# When -----------------------------------------------------------------------------------------------------------


def tick() -> None:
    now = time.time()
    for key, schedule in list(scheduler._schedules.all_items()):
        try:
            _fire_if_due(key, schedule, now)
        except Exception:  # the others must still fire
            log.exception("schedule %s", key)


def _fire_if_due(key: Key, schedule: Schedule, now: float) -> None:
    if schedule["State"] != "ENABLED":
        return
    begin, end = scheduler._to_epoch(schedule.get("StartDate")), scheduler._to_epoch(schedule.get("EndDate"))
    # What fell into a time when the emulator was down is not made up for: AWS is never down.
    since = max(_fired.get(key, 0), schedule["LastModificationDate"], _started, (begin or 0) - 1)
    due = next_time(schedule, since)
    is_over = due is None or (end is not None and due > end)
    if due is not None and not is_over and due <= now:
        _fired[key] = now
        threading.Thread(target=_fire, args=(key, dict(schedule), due), name=f"schedule-{key[2]}", daemon=True).start()
        is_over = bool(AT.fullmatch(schedule["ScheduleExpression"]))
    if is_over and schedule["ActionAfterCompletion"] == "DELETE":
        scheduler._schedules._data.pop(key, None)


def next_time(schedule: Schedule, since: float) -> float | None:
    """The first moment after `since`, in seconds since 1970, at which the schedule is due."""
    expression = schedule["ScheduleExpression"]
    zone = zoneinfo.ZoneInfo(schedule.get("ScheduleExpressionTimezone") or "UTC")
    if at := AT.fullmatch(expression):
        moment = datetime.fromisoformat(at[1]).replace(tzinfo=zone).timestamp()
        return moment if moment > since else None
    if interval := eventbridge._parse_rate_seconds(expression):
        begin = float(schedule["CreationDate"])
        return begin + interval * (max(since - begin, 0) // interval + 1)
    # MiniStack computes with a clock without zones; ours is that of the zone's wall.
    wall = datetime.fromtimestamp(since, zone).replace(tzinfo=UTC)
    while wall := eventbridge._cron_next_fire(_cron(expression), wall):
        moment = wall.replace(tzinfo=zone).timestamp()
        # A time that a change to summer time leaves out is skipped, one that comes twice counts once.
        # https://docs.aws.amazon.com/scheduler/latest/UserGuide/schedule-types.html
        exists = datetime.fromtimestamp(moment, zone).replace(tzinfo=UTC) == wall
        if exists and moment > since:
            return moment
    return None


def _cron(expression: str) -> Any:
    """MiniStack's parsed fields; None for what AWS refuses, which is more than MiniStack does."""
    fields = eventbridge._parse_cron_fields(expression)
    if not fields:
        return None
    minutes, hours, _, months, _, _, day_of_month, day_of_week = fields
    in_range = minutes <= set(range(60)) and hours <= set(range(24)) and months <= set(range(1, 13))
    return fields if in_range and (day_of_month == "?") != (day_of_week == "?") else None


# What -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Call:
    service: str
    operation: str
    parameters: Mapping[str, Any]


def _call(target: Mapping[str, Any], text: str) -> Call:
    """The API call that a target stands for, with `text` as its input.

    Raises:
        Refused: the emulator has no such target.
    """
    arn = target["Arn"]
    if universal := UNIVERSAL_TARGET.fullmatch(arn):
        return Call(universal[1], xform_name(universal[2]), json.loads(text))
    try:
        service = parse_arn(arn).service
    except ArnParseError as error:
        raise _invalid(f"Provided Arn {arn} is not in correct format.") from error
    if service == "lambda":
        return Call("lambda", "invoke", {"FunctionName": arn, "InvocationType": "Event", "Payload": text})
    if service == "sqs":
        more = target.get("SqsParameters", {})
        return Call("sqs", "send_message", {"QueueUrl": queue_url(arn) or arn, "MessageBody": text, **more})
    if service == "sns":
        return Call("sns", "publish", {"TopicArn": arn, "Message": text})
    raise _invalid(f"The emulator has no schedules for {service}.")


def _fire(key: Key, schedule: Schedule, due: float) -> None:
    account, region, _ = key
    set_request_account_id(account)
    set_request_region(region)
    target, moment = schedule["Target"], datetime.fromtimestamp(due, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    execution = new_uuid()
    text = target.get("Input") or _default_input(schedule, execution, moment)
    for name, value in {
        "schedule-arn": schedule["Arn"],
        "scheduled-time": moment,
        "execution-id": execution,
        "attempt-number": "1",
    }.items():
        text = text.replace(f"<aws.scheduler.{name}>", value)
    try:
        _make(_call(target, text), target["RoleArn"])
    except Exception as error:  # whatever the target refuses, the dead-letter queue is told
        log.warning("schedule %s: %s", schedule["Arn"], error)
        code = error.response["Error"]["Code"] if isinstance(error, ClientError) else type(error).__name__
        facts = {
            "SCHEDULE_ARN": schedule["Arn"],
            "SCHEDULED_TIME": moment,
            "EXECUTION_ID": execution,
            "TARGET_ARN": target["Arn"],
            "RETRY_ATTEMPTS": "0",
            "IS_PAYLOAD_TRUNCATED": "false",
            "ERROR_CODE": code,
            "ERROR_MESSAGE": str(error)[:1024],
        }
        _keep(target, text, facts)
    else:
        log.info("schedule %s: done", schedule["Arn"])


def _default_input(schedule: Schedule, execution: str, moment: str) -> str:
    return json.dumps(
        {
            "version": "0",
            "id": execution,
            "detail-type": "Scheduled Event",
            "source": "aws.scheduler",
            "account": get_account_id(),
            "time": moment,
            "region": get_region(),
            "resources": [schedule["Arn"]],
            "detail": "{}",
        }
    )


def _keep(target: Mapping[str, Any], text: str, facts: Mapping[str, str]) -> None:
    """Put what could not be done into the target's dead-letter queue, if the role may.

    https://docs.aws.amazon.com/scheduler/latest/UserGuide/configuring-schedule-dlq.html
    """
    queue = (target.get("DeadLetterConfig") or {}).get("Arn")
    if not queue:
        return
    attributes = {name: {"DataType": "String", "StringValue": value} for name, value in facts.items()}
    message = {"QueueUrl": queue_url(queue) or queue, "MessageBody": text, "MessageAttributes": attributes}
    try:
        _make(Call("sqs", "send_message", message), target["RoleArn"])
    except Exception as error:  # nobody is left to tell, and the other schedules go on
        log.error("schedule %s: not even kept in %s: %s", facts["SCHEDULE_ARN"], queue, error)


def _make(call: Call, role: str) -> None:
    credentials = _session_of(role)
    client = botocore.session.Session().create_client(
        call.service,
        region_name=get_region(),
        endpoint_url=f"http://127.0.0.1:{os.environ['GATEWAY_PORT']}",
        config=Config(retries={"total_max_attempts": 1}),
        **credentials,
    )
    getattr(client, call.operation)(**call.parameters)


def _session_of(role: str) -> dict[str, str]:
    """Credentials of the role, as AssumeRole would give them to the scheduler itself, which no client can be here."""
    account, name = get_account_id(), role.rsplit("/", 1)[-1]
    key, secret, token = iam._gen_session_access_key(), iam._gen_secret(), iam._gen_session_token()
    session = {
        "Arn": f"arn:aws:sts::{account}:assumed-role/{name}/scheduler",
        "UserId": f"{name}:scheduler",
        "SecretAccessKey": secret,
        "SessionToken": token,
        "Expiration": time.time() + SESSION_SECONDS,
    }
    sts.register_session(key, session)
    return {"aws_access_key_id": key, "aws_secret_access_key": secret, "aws_session_token": token}
