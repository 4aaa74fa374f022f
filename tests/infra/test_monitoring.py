"""Alarms, dashboard and budget: they look at what really is told, and step-361 sees what is not as it should be."""

import json
import re
from pathlib import Path
from typing import Any

import pytest

from infra.local import stack
from infra.scripts.lib.documents import alarms_of, costs_of, rendered
from shared.telemetry import DEPLOYMENT, INSTANCE_MINUTES, METRICS, NAMESPACE
from tests.infra.conftest import REGION, Aws, Step

MONITORING = stack.ROOT / "infra/monitoring"
PREFIX = "watched"
TOPIC = f"arn:aws:sns:{REGION}:{stack.ACCOUNT}:{PREFIX}-alarms"
TYPES = ["g4dn.xlarge", "g5.xlarge", "g6.xlarge"]
PRICES = json.loads((stack.ROOT / "shared/prices.json").read_text())["dollars_an_hour"]
VALUES = {
    "PARTITION": "aws",
    "REGION": REGION,
    "ACCOUNT": stack.ACCOUNT,
    "QUEUE_PREFIX": PREFIX,
    "TOPIC_ARN": TOPIC,
    "ROUTER": f"{PREFIX}-router",
    "LAUNCHER": f"{PREFIX}-launcher",
    "INSTANCES": f"{PREFIX}-gpu",
    "JOBS_QUEUE": f"{PREFIX}-jobs",
    "DEAD_LETTER_QUEUE": f"{PREFIX}-dlq",
    "FAILURES_QUEUE": f"{PREFIX}-failures",
    "UPLOADS_RULE": f"{PREFIX}-uploads",
    "APP_EVENTS_DIMENSIONS": f'[{{"Name":"RuleName","Value":"{PREFIX}-app-events"}}]',
    "HOURS_TOO_LONG": "13",
    "INSTANCES_TOO_MANY": "1",
    "ALARM_ARNS": "[]",
    "PRICES_DATE": "2025-06",
}
# What AWS tells by itself, from its user guides, each with its dimension.
OF_AWS = {
    ("AWS/SQS", "ApproximateNumberOfMessagesVisible", "QueueName"),
    ("AWS/SQS", "ApproximateNumberOfMessagesNotVisible", "QueueName"),
    ("AWS/SQS", "ApproximateAgeOfOldestMessage", "QueueName"),
    ("AWS/Lambda", "Errors", "FunctionName"),
    ("AWS/Lambda", "Throttles", "FunctionName"),
    ("AWS/Events", "FailedInvocations", "RuleName"),
    ("AWS/Scheduler", "TargetErrorCount", "ScheduleGroup"),
    ("AWS/AutoScaling", "GroupDesiredCapacity", "AutoScalingGroupName"),
    ("AWS/AutoScaling", "GroupInServiceInstances", "AutoScalingGroupName"),
}
EMITTED = {metric.name: metric for metric in METRICS}


def alarms() -> list[dict[str, Any]]:
    return alarms_of((MONITORING / "alarms.json").read_text(), VALUES)


def widgets() -> list[dict[str, Any]]:
    costs = {
        name: ",".join(map(json.dumps, costs_of(PRICES, PREFIX, TYPES, visible=visible)))
        for name, visible in (("INSTANCE_COSTS", True), ("INSTANCE_COSTS_HIDDEN", False))
    }
    return list(json.loads(rendered((MONITORING / "dashboard.json").read_text(), VALUES | costs))["widgets"])


def looked_at_by_alarms() -> list[tuple[str, str, dict[str, str]]]:
    metrics = [
        part["MetricStat"]["Metric"] for alarm in alarms() for part in alarm.get("Metrics", ()) if "MetricStat" in part
    ]
    metrics += [alarm for alarm in alarms() if "MetricName" in alarm]
    return [
        (one["Namespace"], one["MetricName"], {pair["Name"]: pair["Value"] for pair in one["Dimensions"]})
        for one in metrics
    ]


def looked_at_by_the_dashboard() -> list[tuple[str, str, dict[str, str]]]:
    rows = [row for widget in widgets() for row in widget["properties"].get("metrics", ()) if isinstance(row[0], str)]
    plain = [[part for part in row if isinstance(part, str)] for row in rows]
    return [(row[0], row[1], dict(zip(row[2::2], row[3::2], strict=True))) for row in plain]


def check_metric(namespace: str, name: str, dimensions: dict[str, str]) -> None:
    if namespace != NAMESPACE:
        assert [(namespace, name, dimension) for dimension in dimensions] == [
            known for known in OF_AWS if known[:2] == (namespace, name)
        ]
        return
    metric = EMITTED[name]
    assert list(dimensions) == [DEPLOYMENT, *metric.dimensions], name
    assert dimensions.pop(DEPLOYMENT) == PREFIX
    for dimension, value in dimensions.items():
        assert value in metric.dimensions[dimension], (name, value)


def test_alarms_and_dashboard_look_only_at_what_is_told() -> None:
    for namespace, name, dimensions in looked_at_by_alarms() + looked_at_by_the_dashboard():
        check_metric(namespace, name, dimensions)


def test_what_is_told_is_looked_at() -> None:
    seen = {
        name for namespace, name, _ in looked_at_by_alarms() + looked_at_by_the_dashboard() if namespace == NAMESPACE
    }
    assert seen == set(EMITTED)


def test_every_expression_knows_its_metrics() -> None:
    for widget in widgets():
        options = [row[-1] for row in widget["properties"].get("metrics", ()) if isinstance(row[-1], dict)]
        ids = [option["id"] for option in options if "id" in option]
        assert len(ids) == len(set(ids))
        for option in options:
            words = re.sub(r"METRICS\('dollars'\)|SUM", "", option.get("expression", ""))
            assert set(re.findall(r"[a-z]\w*", words)) <= set(ids), option
    for alarm in alarms():
        parts = {part["Id"]: part for part in alarm.get("Metrics", ())}
        expressions = " ".join(part.get("Expression", "") for part in parts.values())
        assert set(re.findall(r"\b[a-z]+\b", expressions)) <= set(parts)


def test_widgets_lie_side_by_side() -> None:
    cells = [
        (x, y)
        for one in widgets()
        for x in range(one["x"], one["x"] + one["width"])
        for y in range(one["y"], one["y"] + one["height"])
    ]
    assert len(cells) == len(set(cells))
    assert max(x for x, _ in cells) < 24


def test_an_alarm_tells_someone_and_says_what_it_means() -> None:
    assert len({alarm["AlarmName"] for alarm in alarms()}) == len(alarms()) >= 15
    for alarm in alarms():
        assert alarm["AlarmName"].startswith(f"{PREFIX}-")
        assert alarm["AlarmActions"] == alarm["OKActions"] == [TOPIC]
        assert len(alarm["AlarmDescription"]) > 40
        periods = [part["MetricStat"]["Period"] for part in alarm.get("Metrics", ()) if "MetricStat" in part]
        # https://docs.aws.amazon.com/AmazonCloudWatch/latest/APIReference/API_PutMetricAlarm.html
        period = alarm.get("Period") or periods[0]
        assert alarm["EvaluationPeriods"] * period <= (7 if period >= 3600 else 1) * 86400


def test_every_default_type_has_its_prices_and_hours_are_counted_by_them() -> None:
    assert set(INSTANCE_MINUTES.dimensions["InstanceType"]) == set(TYPES) <= set(PRICES)
    assert all(0 < prices["spot"] < prices["on-demand"] < 10 for prices in PRICES.values())
    rows = costs_of({"a.big": {"spot": 0.6}}, "mine", ["a.big", "unknown"], visible=True)
    assert rows == [
        [NAMESPACE, "InstanceMinutes", "Deployment", "mine", "InstanceType", "a.big", "Market", "spot",
         {"id": "minutes1", "visible": False}],
        [{"expression": "minutes1 / 60 * 0.6", "label": "a.big spot", "id": "dollars1", "visible": True}],
    ]  # fmt: skip


def test_the_page_names_every_metric_and_alarm_and_what_they_cost() -> None:
    page = (stack.ROOT / "docs/monitoring.md").read_text()
    series = sum(metric.series for metric in METRICS)
    assert f"{series} metrics" in page
    assert f"${series * 0.3:.2f}" in page  # https://aws.amazon.com/cloudwatch/pricing/
    assert all(f"| `{metric.name}` | {metric.unit.value} |" in page for metric in METRICS)
    assert all(f"`…{alarm['AlarmName'].removeprefix(PREFIX)}`" in page for alarm in alarms())


# Against the emulator ------------------------------------------------------------------------------------------------


@pytest.fixture
def watched(environment: dict[str, str], tmp_path: Path) -> Step:
    """The scripts for a deployment of its own: what alarms look at need not be there."""
    settings = {"QUEUE_PREFIX": PREFIX, "ALARM_EMAIL": "canary@example.com", "MONTHLY_BUDGET": "50"}
    return Step(tmp_path / "env", {**environment, **settings})


def everything(aws: Aws) -> dict[str, Any]:
    """What the step made, without what changes by itself."""
    alarms = aws("cloudwatch").describe_alarms(AlarmNamePrefix=f"{PREFIX}-")["MetricAlarms"]
    logs = aws("logs").describe_log_groups(logGroupNamePrefix="/")["logGroups"]
    names = [f"{PREFIX}-gpu"]
    (group,) = aws("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=names)["AutoScalingGroups"]
    return {
        "alarms": [
            {name: value for name, value in alarm.items() if not re.search("State|Timestamp", name)} for alarm in alarms
        ],
        "dashboard": aws("cloudwatch").get_dashboard(DashboardName=PREFIX)["DashboardBody"],
        "topic": aws("sns").get_topic_attributes(TopicArn=TOPIC)["Attributes"],
        "subscriptions": aws("sns").list_subscriptions_by_topic(TopicArn=TOPIC)["Subscriptions"],
        "key": aws("kms").describe_key(KeyId=f"alias/{PREFIX}-alarms")["KeyMetadata"]["KeyId"],
        "budget": aws("budgets").describe_budget(AccountId=stack.ACCOUNT, BudgetName=PREFIX)["Budget"],
        "logs": {one["logGroupName"]: one.get("retentionInDays") for one in logs if PREFIX in one["logGroupName"]},
        "group": {metric["Metric"] for metric in group["EnabledMetrics"]},
    }


def cautious(cli: str, folder: Path) -> str:
    """An AWS CLI whose user may not look at budgets; and addresses are confirmed as on AWS: by a person, later."""
    program = folder / "aws"
    program.write_text(
        "#!/usr/bin/env bash\n"
        'case " $* " in\n'
        '  *" budgets "*) echo "An error occurred (AccessDeniedException): no" >&2; exit 254 ;;\n'
        '  *" list-subscriptions-by-topic "*) echo PendingConfirmation; exit ;;\n'
        "esac\n"
        f'exec {cli} "$@"\n'
    )
    program.chmod(0o755)
    return str(program)


@pytest.fixture
def group(aws: Aws) -> str:
    """A group of instances, as step-320 makes it as far as alarms are concerned."""
    image = aws("ec2").describe_images()["Images"][0]["ImageId"]
    name = f"{PREFIX}-gpu"
    data = {"ImageId": image, "InstanceType": "g4dn.xlarge"}
    aws("ec2").create_launch_template(LaunchTemplateName=name, LaunchTemplateData=data)
    aws("autoscaling").create_auto_scaling_group(
        AutoScalingGroupName=name,
        MinSize=0,
        MaxSize=1,
        AvailabilityZones=[f"{REGION}a"],
        LaunchTemplate={"LaunchTemplateName": name},
    )
    return name


@pytest.mark.integration
def test_monitoring_is_created_read_back_and_repaired(watched: Step, group: str, aws: Aws, tmp_path: Path) -> None:
    created = watched("360")
    assert created.returncode == 0, created.stderr
    found = everything(aws)
    wanted = {alarm["AlarmName"]: alarm for alarm in alarms()}
    assert {alarm["AlarmName"] for alarm in found["alarms"]} == set(wanted)
    for alarm in found["alarms"]:
        expected = {name: value for name, value in wanted[alarm["AlarmName"]].items() if name != "Tags"}
        assert {name: alarm.get(name) for name in expected} == expected
    assert len(json.loads(found["dashboard"])["widgets"]) == len(widgets())
    assert found["topic"]["KmsMasterKeyId"] == f"alias/{PREFIX}-alarms"
    assert {one["Principal"]["Service"] for one in json.loads(found["topic"]["Policy"])["Statement"]} == {
        "cloudwatch.amazonaws.com",
        "budgets.amazonaws.com",
    }
    assert [one["Endpoint"] for one in found["subscriptions"]] == ["canary@example.com"]
    assert float(found["budget"]["BudgetLimit"]["Amount"]) == 50
    logs = (f"/aws/lambda/{PREFIX}-router", f"/aws/lambda/{PREFIX}-launcher", f"/{PREFIX}/server", f"/{PREFIX}/worker")
    assert found["logs"] == dict.fromkeys(logs, 30)
    assert found["group"] == {"GroupDesiredCapacity", "GroupInServiceInstances"}
    assert "canary@example.com" not in created.stdout + created.stderr

    dead_letters = wanted[f"{PREFIX}-dead-letters"]
    aws("cloudwatch").put_metric_alarm(**dead_letters | {"Threshold": 5, "AlarmActions": []})
    aws("cloudwatch").delete_alarms(AlarmNames=[f"{PREFIX}-no-server"])
    aws("cloudwatch").put_dashboard(DashboardName=PREFIX, DashboardBody='{"widgets": []}')
    aws("sns").set_topic_attributes(TopicArn=TOPIC, AttributeName="Policy", AttributeValue='{"Statement": []}')
    aws("logs").delete_retention_policy(logGroupName=f"/{PREFIX}/worker")
    broken = watched("361")
    assert broken.returncode == 1
    for words in (
        f"alarm {PREFIX}-dead-letters: Threshold is 5.0, expected 1",
        f"alarm {PREFIX}-dead-letters: AlarmActions is [], expected",
        f"alarm {PREFIX}-no-server does not exist",
        f"dashboard {PREFIX} is not as this project sets it",
        f"topic {PREFIX}-alarms: its policy is not as this project sets it",
        f"log /{PREFIX}/worker: days that it remembers",
        "next  infra/scripts/step-360-create-monitoring.sh",
    ):
        assert words in broken.stderr

    cli = cautious(watched.environment["AWS_CLI"], tmp_path)
    again = watched("360", AWS_CLI=cli)
    assert again.returncode == 0, again.stderr
    assert "may not look at AWS Budgets" in again.stderr
    assert "alarms: 2 of 15 written" in again.stderr
    aws("cloudwatch").set_alarm_state(AlarmName=f"{PREFIX}-no-server", StateValue="ALARM", StateReason="a test")
    repaired = watched("361", AWS_CLI=cli)
    assert repaired.returncode == 0, repaired.stderr
    assert everything(aws) == found  # nothing twice, nothing else
    assert f"{PREFIX}-no-server is on: For 20 minutes an instance was wanted" in repaired.stderr
    assert "before the link in AWS's mail is followed" in repaired.stderr


@pytest.mark.integration
def test_a_key_that_gets_no_name_does_not_stay(watched: Step, aws: Aws, tmp_path: Path) -> None:
    program = tmp_path / "aws"
    refusal = "An error occurred (AccessDeniedException): not authorized to perform: kms:CreateAlias"
    program.write_text(
        f'#!/usr/bin/env bash\n[[ " $* " != *" create-alias "* ]] || {{ echo "{refusal}" >&2; exit 254; }}\n'
        f'exec {watched.environment["AWS_CLI"]} "$@"\n'
    )
    program.chmod(0o755)

    refused = watched("360", AWS_CLI=str(program), QUEUE_PREFIX="nameless")

    assert refused.returncode == 1
    assert "the key got no name, so it was deleted again" in refused.stderr
    assert "these credentials may not kms:CreateAlias" in refused.stderr
    ids = [one["KeyId"] for one in aws("kms").list_keys()["Keys"]]
    ours = [id for id in ids if {"TagKey": "Project", "TagValue": "nameless"} in tags_of(aws, id)]
    assert [aws("kms").describe_key(KeyId=id)["KeyMetadata"]["KeyState"] for id in ours] == ["PendingDeletion"]


def tags_of(aws: Aws, key: str) -> list[dict[str, str]]:
    return list(aws("kms").list_resource_tags(KeyId=key).get("Tags", []))


@pytest.mark.integration
def test_a_topic_of_someone_elses_stays_as_it_is(watched: Step, aws: Aws) -> None:
    arn = aws("sns").create_topic(Name="theirs-alarms")["TopicArn"]
    before = aws("sns").get_topic_attributes(TopicArn=arn)["Attributes"]
    refused = watched("360", QUEUE_PREFIX="theirs")
    assert refused.returncode == 1
    assert "topic theirs-alarms belongs to something else" in refused.stderr
    assert "choose another QUEUE_PREFIX" in refused.stderr
    assert aws("sns").get_topic_attributes(TopicArn=arn)["Attributes"] == before
    assert not aws("cloudwatch").describe_alarms(AlarmNamePrefix="theirs-")["MetricAlarms"]
