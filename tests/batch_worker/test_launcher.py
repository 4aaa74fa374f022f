"""The launcher as Lambda calls it, on moto: what it asks AWS, what it makes of the answers, and what it changes."""

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError
from botocore.stub import Stubber
from moto import mock_aws

from batch_worker import launcher
from batch_worker.backlog import Backlog
from batch_worker.capacity import Mode, Occasion, Reason, Waiting
from batch_worker.group import Group
from batch_worker.launcher import Launcher
from batch_worker.launcher_settings import LauncherSettings
from batch_worker.reaper import Instance
from shared.errors import BadEvent, SettingsError
from shared.jobs import Job
from shared.jobs import Reason as Queued
from shared.queues import AUDIO_SECONDS, Queue
from shared.settings import load
from shared.telemetry import Metric

REGION = "us-east-2"
# An hour of Opus, as its size says.
HOUR = Job(bucket="audio-bucket", key="users/u/audio/sessions/s/chunk-1.webm", etag="e", size=3600 * 8_000)
WINDOW, WATCH = Occasion.WINDOW, Occasion.WATCH


Aws = Callable[[str], Any]


@pytest.fixture(scope="module")
def aws() -> Iterator[Aws]:
    """One moto for all, since it takes seconds to start; each test has queues and a group of its own."""
    keys = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "test")
    with pytest.MonkeyPatch.context() as environment, mock_aws():
        for name, value in {**keys, "AWS_DEFAULT_REGION": REGION}.items():
            environment.setenv(name, value)
        image = boto3.client("ec2").describe_images()["Images"][0]["ImageId"]
        data = {"ImageId": image, "InstanceType": "g4dn.xlarge"}
        boto3.client("ec2").create_launch_template(LaunchTemplateName="any", LaunchTemplateData=data)
        yield cache(boto3.client)


class Night:
    """Queues and a group of at most 3, and a launcher that looks at them; `later` is its clock, ahead by so much."""

    def __init__(self, name: str, aws: Aws) -> None:
        self.name, self.aws, self.scaling = name, aws, aws("autoscaling")
        self.jobs, self.dead, self.failures = (
            Queue(aws("sqs"), aws("sqs").create_queue(QueueName=f"{name}-{kind}")["QueueUrl"])
            for kind in ("jobs", "dlq", "failures")
        )
        self.scaling.create_auto_scaling_group(
            AutoScalingGroupName=f"{name}-gpu",
            MinSize=0,
            MaxSize=3,
            AvailabilityZones=[f"{REGION}a"],
            LaunchTemplate={"LaunchTemplateName": "any"},
        )
        self.observed: list[tuple[Any, ...]] = []
        self.later = timedelta()
        settings = LauncherSettings(sqs_queue_url=self.jobs.url, instance_speed=1.0, target_minutes=600)
        self.launcher = Launcher(
            backlog=Backlog(self.jobs, [self.dead, self.failures], aws("cloudwatch")),
            group=Group(self.scaling, aws("ec2"), f"{name}-gpu"),
            policy=settings.policy,
            max_instance_hours=12,
            observe=self.observe,
            now=lambda: datetime.now(UTC) + self.later,
        )

    def observe(self, metric: Metric, *labels: str, value: float = 1.0) -> None:
        self.observed.append((metric.name, *labels, value))

    def holds(self, jobs: int) -> None:
        for _ in range(jobs):
            self.jobs.send(HOUR, Queued.UNHEALTHY)

    def run(self, occasion: Occasion = WINDOW, **policy: Any) -> Reason:
        changed = replace(self.launcher, policy=replace(self.launcher.policy, **policy))
        return changed.run(occasion).reason

    def instances(self) -> list[dict[str, Any]]:
        return list(self.group()["Instances"])

    def group(self) -> Any:
        return self.scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[f"{self.name}-gpu"])[
            "AutoScalingGroups"
        ][0]

    def desired(self) -> int:
        return int(self.group()["DesiredCapacity"])

    def protect(self, *ids: str) -> None:
        self.scaling.set_instance_protection(
            AutoScalingGroupName=f"{self.name}-gpu", InstanceIds=list(ids), ProtectedFromScaleIn=True
        )


@pytest.fixture
def night(aws: Aws, request: pytest.FixtureRequest) -> Night:
    return Night(f"night-{abs(hash(request.node.name))}", aws)


def test_a_backlog_raises_capacity_and_the_same_event_again_changes_nothing(
    night: Night, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    night.holds(12)  # hours of audio: for 10 hours of one instance, less its boot
    assert [night.run(), night.run()] == [Reason.BACKLOG, Reason.BACKLOG]
    assert night.desired() == len(night.instances()) == 2
    assert night.observed[:2] == [("CapacityDecisions", "backlog", 1.0), ("DesiredCapacity", 2)]
    line = vars(caplog.records[0])
    assert (line["message"], line["occasion"], line["jobs"], line["desired"]) == ("capacity", "window", 12, 0)
    assert (line["capacity"], line["reason"]) == (2, "backlog")
    assert "12.0 hours of audio" in line["why"]


def test_nothing_waits_nothing_starts_and_nothing_is_told(night: Night) -> None:
    assert [night.run(), night.run(WATCH)] == [Reason.EMPTY, Reason.EMPTY]
    assert night.desired() == 0
    assert night.observed == []


def test_what_is_in_work_and_what_failed_counts_as_waiting(night: Night) -> None:
    night.holds(2)
    night.jobs.receive(most=1, wait=0, visibility=60)
    night.dead.send_raw("{}")
    night.failures.send_raw("{}", delay=900)
    assert night.launcher.backlog.waiting(datetime.now(UTC)).jobs == 4


def test_the_hours_of_audio_are_guessed_from_what_a_few_jobs_say(night: Night) -> None:
    assert night.launcher.backlog.audio_seconds(Waiting(7, 0.0)) == 7 * 5  # nobody says anything: chunks
    night.jobs.send(HOUR, Queued.FORCED)
    night.jobs.send_all([HOUR.model_copy(update={"size": None})] * 2, Queued.FORCED)
    night.jobs.send_raw("{}", attributes={AUDIO_SECONDS: "no number"})
    night.jobs.send_raw("{}", attributes={AUDIO_SECONDS: "inf"})  # a day at most
    mean = (3600 + 2 * 5 + 5 + 86_400) / 5
    assert night.launcher.backlog.audio_seconds(Waiting(100, 0.0)) == pytest.approx(100 * mean)


def test_a_look_takes_no_job_from_the_workers_for_long(night: Night) -> None:
    night.holds(40)
    night.launcher.backlog.audio_seconds(Waiting(40, 0.0))
    assert night.jobs.backlog().in_flight == 30
    messages = night.aws("sqs").receive_message(QueueUrl=night.jobs.url, MaxNumberOfMessages=10)["Messages"]
    assert len(messages) == 10


def age(aws: Aws, queue: str, seconds: float, *, minutes_ago: float) -> None:
    aws("cloudwatch").put_metric_data(
        Namespace="AWS/SQS",
        MetricData=[
            {
                "MetricName": "ApproximateAgeOfOldestMessage",
                "Dimensions": [{"Name": "QueueName", "Value": queue}],
                "Timestamp": datetime.now(UTC) - timedelta(minutes=minutes_ago),
                "Value": seconds,
            }
        ],
    )


def test_the_oldest_job_is_as_old_as_was_told_last_of_this_queue(night: Night) -> None:
    now = datetime.now(UTC)
    night.holds(1)
    assert night.launcher.backlog.waiting(now).oldest == 0
    age(night.aws, f"{night.name}-jobs", 5000, minutes_ago=20)  # out of date
    assert night.launcher.backlog.waiting(now).oldest == 0
    age(night.aws, f"{night.name}-jobs", 4000, minutes_ago=9)
    age(night.aws, f"{night.name}-jobs", 100, minutes_ago=3)  # the old one is done
    age(night.aws, "another-jobs", 9000, minutes_ago=2)
    assert night.launcher.backlog.waiting(now).oldest == 100


def test_a_job_that_waits_for_too_long_starts_an_instance_on_demand(night: Night) -> None:
    night.holds(1)
    age(night.aws, f"{night.name}-jobs", 901, minutes_ago=3)
    assert night.run(WATCH) is Reason.WAITS
    assert night.desired() == 0
    assert night.run(WATCH, mode=Mode.ON_DEMAND) is Reason.BACKLOG
    assert night.desired() == 1


def test_what_was_asked_for_and_is_not_needed_any_more_is_taken_back_but_nothing_that_is_there(night: Night) -> None:
    night.holds(30)
    night.run()
    first, second, third = (one["InstanceId"] for one in night.instances())
    night.protect(first, second)
    night.aws("sqs").purge_queue(QueueUrl=night.jobs.url)
    night.run(WATCH)
    assert night.desired() == 3  # they are there, and end by themselves
    night.scaling.terminate_instance_in_auto_scaling_group(InstanceId=third, ShouldDecrementDesiredCapacity=True)
    assert night.run(WATCH) is Reason.EMPTY
    assert (night.desired(), {one["InstanceId"] for one in night.instances()}) == (2, {first, second})


def test_an_instance_that_hangs_is_ended_with_its_place_and_counted(
    night: Night, caplog: pytest.LogCaptureFixture
) -> None:
    night.holds(30)
    night.run()
    night.protect(night.instances()[0]["InstanceId"])
    night.later = timedelta(hours=12.2)
    night.run(WATCH)
    assert night.desired() == 3  # it should end itself now
    night.later = timedelta(hours=12.3)
    night.observed.clear()
    night.run(WATCH)
    assert (night.desired(), night.instances()) == (0, [])
    assert night.observed.count(("InstancesReaped", 1.0)) == 3
    assert [vars(record)["reason"] for record in caplog.records if record.message == "ended"] == ["too-long"] * 3


def test_the_budget_ends_instances_when_it_is_spent(night: Night) -> None:
    night.holds(30)
    dollars = {"budget": 3.0, "price": 1.0}
    night.run(**dollars)
    count = len(night.instances())
    assert count >= 1
    night.later = timedelta(hours=3.0 / count + 0.01)
    night.run(WATCH, **dollars)
    assert night.instances() == []


def test_what_the_group_must_have_is_not_ended_for_it_would_be_replaced(night: Night) -> None:
    night.scaling.update_auto_scaling_group(AutoScalingGroupName=f"{night.name}-gpu", MinSize=1)
    night.holds(30)
    night.run()
    night.later = timedelta(days=2)
    night.run(WATCH)
    assert (night.desired(), len(night.instances())) == (1, 1)


def test_an_instance_that_ended_itself_meanwhile_is_no_error_and_a_missing_permission_is(night: Night) -> None:
    gone = Instance("i-0123456789abcdef0", datetime.now(UTC), protected=False)
    with Stubber(night.scaling) as stub:
        stub.add_client_error("terminate_instance_in_auto_scaling_group", "ValidationError", "no such instance")
        assert night.launcher.group.end(gone) is False
        stub.add_client_error("terminate_instance_in_auto_scaling_group", "AccessDenied", "no")
        with pytest.raises(ClientError):
            night.launcher.group.end(gone)


def test_a_group_that_is_missing_is_named_with_the_step_that_makes_it(night: Night) -> None:
    night.scaling.delete_auto_scaling_group(AutoScalingGroupName=f"{night.name}-gpu", ForceDelete=True)
    with pytest.raises(LookupError, match=r"no Auto Scaling group night-\d+-gpu: infra/scripts/step-320"):
        night.run()


def test_a_queue_that_does_not_answer_changes_nothing(night: Night) -> None:
    night.holds(30)
    night.run()
    night.aws("sqs").delete_queue(QueueUrl=night.jobs.url)
    with pytest.raises(Exception, match=f"{night.name}-jobs"):
        night.run()
    assert night.desired() == 3


# As Lambda calls it --------------------------------------------------------------------------------------------------


@pytest.fixture
def called(night: Night, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Any], dict[str, Any]]]:
    environment = {
        "SQS_QUEUE_URL": night.jobs.url,
        "SQS_DLQ_URL": night.dead.url,
        "SQS_FAILURES_QUEUE_URL": night.failures.url,
        "QUEUE_PREFIX": night.name,
        "INSTANCE_SPEED": "1",
        "TARGET_MINUTES": "600",
    }
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    launcher._launcher.cache_clear()
    yield lambda event: launcher.handler(event, None)
    launcher._launcher.cache_clear()


def test_the_function_answers_what_it_decided_and_prints_its_metrics(
    called: Callable[[Any], dict[str, Any]], night: Night, capsys: pytest.CaptureFixture[str]
) -> None:
    night.holds(12)
    answer = called({"occasion": "window"})
    assert json.loads(json.dumps(answer)) == {"capacity": 2, "reason": "backlog", "why": answer["why"]}
    assert night.desired() == 2
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    (told,) = [line for line in lines if "CapacityDecisions" in line]
    assert told["Reason"] == "backlog"


@pytest.mark.parametrize("event", [{}, {"occasion": "midnight"}, "window", None])
def test_another_event_is_refused_with_what_is_expected(called: Callable[[Any], Any], event: Any) -> None:
    with pytest.raises(BadEvent, match='"occasion": "window"'):
        called(event)


def test_what_aws_refuses_raises_for_lambda_tries_again(called: Callable[[Any], Any], night: Night) -> None:
    night.holds(1)
    night.scaling.delete_auto_scaling_group(AutoScalingGroupName=f"{night.name}-gpu", ForceDelete=True)
    with pytest.raises((LookupError, ClientError)):
        called({"occasion": "watch"})


# Settings ------------------------------------------------------------------------------------------------------------


def settings(**values: Any) -> LauncherSettings:
    return load(LauncherSettings, sqs_queue_url="https://sqs/jobs", **values)


@pytest.mark.parametrize(
    ("values", "price"),
    [
        ({}, 0.45),  # the dearest spot price
        ({"on_demand_percent": 20}, 1.006),  # one of those may be on demand
        ({"instance_type": "g4dn.xlarge"}, 0.22),
        ({"instance_types": "g4dn.xlarge,g6.xlarge"}, 0.36),
        ({"instance_types": "g4dn.xlarge,of-no-price"}, 0.22),
    ],
)
def test_an_hour_costs_what_the_dearest_instance_costs_that_may_come(values: dict[str, Any], price: float) -> None:
    assert settings(**values).policy.price == price


def test_a_budget_needs_the_price_of_every_type() -> None:
    with pytest.raises(SettingsError, match=r"RUN_BUDGET needs a price of each instance type in shared/prices\.json"):
        settings(run_budget=5, instance_types="g4dn.xlarge,of-no-price")
    assert settings(run_budget=5).policy.budget == 5


def test_minutes_and_hours_are_seconds_in_the_policy() -> None:
    policy = settings(target_minutes=30, latest_age_hours=2, on_demand_age_minutes=0.5, idle_timeout_minutes=3).policy
    assert (policy.target, policy.latest_age, policy.on_demand_age, policy.idle) == (1800, 7200, 30, 180)
