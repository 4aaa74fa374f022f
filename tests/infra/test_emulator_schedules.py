"""Schedules in the project's emulator, as AWS's clients see them."""

import json
import subprocess
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from infra.local import stack
from tests.infra.conftest import REGION, Aws, until
from tests.infra.test_emulator import receive
from tests.infra.test_emulator_instances import refusal

pytestmark = pytest.mark.integration

NEXT_TIMES = """
import json, sys
from datetime import UTC, datetime
from infra.local.emulator.scheduler import next_time

for expression, zone, since in json.load(sys.stdin):
    schedule = {"ScheduleExpression": expression, "ScheduleExpressionTimezone": zone, "CreationDate": 30.0}
    due = next_time(schedule, datetime.fromisoformat(since).timestamp())
    print(due and datetime.fromtimestamp(due, UTC).strftime("%Y-%m-%d %H:%M:%S"))
"""
ZONE = "Asia/Tokyo"
UNIVERSAL = "arn:aws:scheduler:::aws-sdk"


@pytest.fixture(scope="session")
def role(aws: Aws) -> str:
    """A role of the scheduler: it may send messages, and nothing else."""
    iam, name = aws("iam"), "test-scheduler"
    trust = {
        "Effect": "Allow",
        "Principal": {"Service": "scheduler.amazonaws.com"},
        "Action": "sts:AssumeRole",
        "Condition": {
            "StringEquals": {
                "aws:SourceAccount": stack.ACCOUNT,
                "aws:SourceArn": f"arn:aws:scheduler:{REGION}:{stack.ACCOUNT}:schedule-group/default",
            }
        },
    }
    policy = {"Effect": "Allow", "Action": "sqs:SendMessage", "Resource": "*"}
    created = iam.create_role(RoleName=name, AssumeRolePolicyDocument=json.dumps({"Statement": [trust]}))
    iam.put_role_policy(RoleName=name, PolicyName="p", PolicyDocument=json.dumps({"Statement": [policy]}))
    return str(created["Role"]["Arn"])


@pytest.fixture
def target(role: str) -> Callable[..., dict[str, Any]]:
    """A target of a schedule: an API action, with its input."""

    def make(action: str, input: dict[str, Any], **more: Any) -> dict[str, Any]:
        return {"Arn": f"{UNIVERSAL}:{action}", "RoleArn": role, "Input": json.dumps(input), **more}

    return make


def create(aws: Aws, name: str, target: dict[str, Any], expression: str = "rate(1 hour)", **more: Any) -> None:
    aws("scheduler").create_schedule(
        Name=name, ScheduleExpression=expression, FlexibleTimeWindow={"Mode": "OFF"}, Target=target, **more
    )


def soon() -> str:
    """A time that is still to come when the call arrives, on a slow machine too."""
    return f"at({datetime.now(ZoneInfo(ZONE)) + timedelta(seconds=20):%Y-%m-%dT%H:%M:%S})"


def test_a_schedule_calls_its_target_at_the_zones_time_as_its_role(
    aws: Aws, queue: tuple[str, str], target: Callable[..., dict[str, Any]]
) -> None:
    url, arn = queue
    capacity = {"AutoScalingGroupName": "any", "DesiredCapacity": 1}
    allowed = target("sqs:sendMessage", {"QueueUrl": url, "MessageBody": "of <aws.scheduler.schedule-arn>"})
    denied = target("autoscaling:setDesiredCapacity", capacity, DeadLetterConfig={"Arn": arn})
    once = {"ScheduleExpressionTimezone": ZONE, "ActionAfterCompletion": "DELETE"}

    create(aws, "once-allowed", allowed, soon(), **once)
    create(aws, "once-denied", denied, soon(), **once)
    create(aws, "once-templated", {**allowed, "Arn": arn, "Input": "text"}, soon(), **once)

    messages = [receive(aws, url) for _ in range(3)]
    (kept,) = (message for message in messages if "MessageAttributes" in message)
    schedule_arn = f"arn:aws:scheduler:{REGION}:{stack.ACCOUNT}:schedule/default/once-allowed"
    assert {message["Body"] for message in messages} == {f"of {schedule_arn}", kept["Body"], "text"}
    facts = {name: value["StringValue"] for name, value in kept["MessageAttributes"].items()}
    assert json.loads(kept["Body"]) == capacity
    assert facts["ERROR_CODE"] == "AccessDenied"
    assert facts["TARGET_ARN"] == denied["Arn"]
    until(lambda: aws("scheduler").list_schedules(NamePrefix="once-")["Schedules"] == [])


def test_a_schedule_that_could_never_fire_is_refused(
    aws: Aws, function_role: str, target: Callable[..., dict[str, Any]]
) -> None:
    good = target("autoscaling:setDesiredCapacity", {"AutoScalingGroupName": "any", "DesiredCapacity": 1})
    wrong: dict[str, dict[str, Any]] = {
        "expression": {"expression": "cron(0 0 * * * *)"},
        "hour": {"expression": "cron(0 25 * * ? *)"},
        "zone": {"ScheduleExpressionTimezone": "Europe/Berlyn"},
        "action": {"target": {**good, "Arn": f"{UNIVERSAL}:autoscaling:setCapacity"}},
        "reading": {"target": {**good, "Arn": f"{UNIVERSAL}:autoscaling:describeAutoScalingGroups"}},
        "input": {"target": target("autoscaling:setDesiredCapacity", {"GroupName": "any"})},
        "role": {"target": {**good, "RoleArn": function_role}},
    }

    refused = {
        name: refusal(create, **{"aws": aws, "name": "wrong", "target": good, **setting})
        for name, setting in wrong.items()
    }

    assert refused == dict.fromkeys(wrong, "ValidationException")
    create(aws, "right", good)
    aws("scheduler").delete_schedule(Name="right")


def test_the_clock_of_a_schedule_is_the_one_on_its_zones_wall(root: Path) -> None:
    cases = {
        ("cron(30 2 * * ? *)", ZONE, "2026-11-26T00:00:00+00:00"): "2026-11-26 17:30:00",
        ("cron(0 0 * * ? *)", "UTC", "2026-11-26T00:00:00+00:00"): "2026-11-27 00:00:00",
        ("at(2026-11-26T09:00:00)", ZONE, "2026-11-25T23:59:59+00:00"): "2026-11-26 00:00:00",
        ("at(2026-11-26T09:00:00)", ZONE, "2026-11-26T00:00:00+00:00"): "None",
        ("rate(5 minutes)", "UTC", "1970-01-01T00:05:30+00:00"): "1970-01-01 00:10:30",
        # 02:30 is left out on the day on which summer time begins, and comes twice when it ends.
        ("cron(30 2 * * ? *)", "Europe/Berlin", "2026-03-28T12:00:00+00:00"): "2026-03-30 00:30:00",
        ("cron(30 2 * * ? *)", "Europe/Berlin", "2026-10-24T12:00:00+00:00"): "2026-10-25 00:30:00",
        ("cron(30 2 * * ? *)", "Europe/Berlin", "2026-10-25T00:30:00+00:00"): "2026-10-26 01:30:00",
    }

    answer = subprocess.run(
        [stack.PYTHON, "-c", NEXT_TIMES],
        cwd=stack.ROOT,
        input=json.dumps(list(cases)),
        capture_output=True,
        text=True,
        check=True,
    )

    assert dict(zip(cases, answer.stdout.splitlines(), strict=True)) == cases
