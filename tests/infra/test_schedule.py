"""The nightly batch: worker's settings, launcher, schedules, and a run that is watched from its start to its end."""

import json
import os
import re
import subprocess
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import pytest

from batch_worker.backlog import Backlog
from batch_worker.capacity import Occasion, Reason
from batch_worker.group import Group
from batch_worker.launcher import Launcher
from batch_worker.launcher_settings import LauncherSettings
from infra.local import stack
from shared.jobs import Job
from shared.jobs import Reason as Queued
from shared.queues import Queue
from shared.telemetry import unobserved
from tests.infra.conftest import REGION, SCRIPTS, WORDS_OF_CALL, Aws, Step, until

PREFIX = "night"
GROUP = f"{PREFIX}-gpu"
BUCKET = f"{PREFIX}-audio"
ROLE = f"arn:aws:iam::{stack.ACCOUNT}:role/{PREFIX}-scheduler"
LAUNCHER = f"arn:aws:lambda:{REGION}:{stack.ACCOUNT}:function:{PREFIX}-launcher"
FAILURES = f"arn:aws:sqs:{REGION}:{stack.ACCOUNT}:{PREFIX}-failures"

# Against the local AWS ------------------------------------------------------------------------------------------------


def make_group(aws: Aws) -> None:
    tag = {"Key": "Project", "Value": PREFIX, "ResourceId": GROUP, "ResourceType": "auto-scaling-group"}
    aws("autoscaling").create_auto_scaling_group(
        AutoScalingGroupName=GROUP,
        MinSize=0,
        MaxSize=3,
        AvailabilityZones=[f"{REGION}a"],
        LaunchTemplate={"LaunchTemplateName": GROUP, "Version": "$Latest"},
        Tags=[tag],
    )


@pytest.fixture(scope="module")
def night(root: Path, environment: dict[str, str], aws: Aws) -> Iterator[Step]:
    """What the earlier steps make, as far as the batch's own steps need it, and the launcher."""
    repository = aws("ecr").create_repository(repositoryName=f"{PREFIX}-server")["repository"]["repositoryUri"]
    aws("ecr").put_image(repositoryName=f"{PREFIX}-server", imageManifest='{"schemaVersion": 2}', imageTag="v1")
    image = aws("ec2").describe_images()["Images"][0]["ImageId"]
    aws("ec2").create_launch_template(
        LaunchTemplateName=GROUP, LaunchTemplateData={"ImageId": image, "InstanceType": "g4dn.xlarge"}
    )
    make_group(aws)
    built = {"FAST_API_ECR_REPOSITORY_URI": repository, "FAST_API_TAG": "v1"}
    # One instance does an hour of audio in an hour, and has ten hours less its boot.
    chosen = {"MODE": "on-demand", "INSTANCE_SPEED": "1", "TARGET_MINUTES": "600", "ON_DEMAND_AGE_MINUTES": "0.01"}
    step = Step(root / "night.env", {**environment, "QUEUE_PREFIX": PREFIX, "AUDIO_BUCKET": BUCKET, **built, **chosen})
    for number in ("010", "020", "345"):
        done = step(number)
        assert done.returncode == 0, done.stderr
    yield step
    aws("autoscaling").delete_auto_scaling_group(AutoScalingGroupName=GROUP, ForceDelete=True)


@pytest.mark.integration
def test_the_worker_gets_its_settings_without_a_secret_and_logs_that_end(night: Step, aws: Aws) -> None:
    name = f"/{PREFIX}/worker-env"
    aws("ssm").put_parameter(Name=name, Type="String", Value="SESSION_FINISH=restitch")  # of an earlier deployment
    aws("logs").create_log_group(logGroupName=f"/{PREFIX}/worker")  # and half of one

    first = night("350", API_KEY="not-for-there", SESSION_FINISH="combine")
    written = aws("ssm").get_parameter(Name=name)["Parameter"]
    second = night("350", API_KEY="not-for-there", SESSION_FINISH="combine")

    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert dict(line.split("=", 1) for line in written["Value"].splitlines()) == {
        "AWS_REGION": REGION,
        "AUDIO_BUCKET": BUCKET,
        "SQS_QUEUE_URL": night.settings()["SQS_QUEUE_URL"],
        "SQS_DLQ_URL": night.settings()["SQS_DLQ_URL"],
        "SQS_FAILURES_QUEUE_URL": night.settings()["SQS_FAILURES_QUEUE_URL"],
        "EVENT_BUS_NAME": "default",
        "METRICS": "emf",
        "QUEUE_PREFIX": PREFIX,
        "SESSION_FINISH": "combine",
    }
    assert aws("ssm").get_parameter(Name=name)["Parameter"]["Version"] == written["Version"]
    groups = aws("logs").describe_log_groups(logGroupNamePrefix=f"/{PREFIX}/")["logGroups"]
    assert {group["logGroupName"]: group["retentionInDays"] for group in groups} == {
        f"/{PREFIX}/server": 30,
        f"/{PREFIX}/worker": 30,
    }


# The launcher --------------------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_the_launcher_is_what_the_settings_say_and_a_second_deployment_changes_nothing(night: Step, aws: Aws) -> None:
    name = f"{PREFIX}-launcher"
    found = aws("lambda").get_function(FunctionName=name)
    again = night("345")

    assert again.returncode == 0, again.stderr
    assert "settings unchanged" in again.stderr
    assert "code unchanged" in again.stderr
    assert aws("lambda").get_function(FunctionName=name)["Configuration"] == found["Configuration"]
    variables = found["Configuration"]["Environment"]["Variables"]
    assert {name: variables[name] for name in ("MODE", "INSTANCE_SPEED", "TARGET_MINUTES", "MAX_INSTANCE_HOURS")} == {
        "MODE": "on-demand",
        "INSTANCE_SPEED": "1",
        "TARGET_MINUTES": "600",
        "MAX_INSTANCE_HOURS": "12",
    }
    assert "RUN_BUDGET" not in variables  # its own default
    assert found["Concurrency"]["ReservedConcurrentExecutions"] == 1
    assert found["Tags"] == {"Project": PREFIX}


def test_a_new_account_gets_no_reservation_and_a_budget_wants_prices(stage: "Stage", tmp_path: Path) -> None:
    stage("345", {}, "--dry-run", LAMBDA_CONCURRENCY="0")
    done = stage("345", {}, "--yes", RUN_BUDGET="5", INSTANCE_TYPES="g4dn.xlarge,p5.48xlarge")
    assert done.returncode == 1
    assert "there is no price of p5.48xlarge" in done.stderr
    assert writes(tmp_path) == []


class Fleet:
    """The group and the queue of the night, and what the launcher says when it is called."""

    def __init__(self, night: Step, aws: Aws) -> None:
        self.night, self.aws, self.scaling = night, aws, aws("autoscaling")
        self.url = night.settings()["SQS_QUEUE_URL"]
        self.jobs = Queue(aws("sqs"), self.url)

    def begin_anew(self) -> None:
        """With a group that remembers nothing, too."""
        self.aws("sqs").purge_queue(QueueUrl=self.url)
        self.scaling.delete_auto_scaling_group(AutoScalingGroupName=GROUP, ForceDelete=True)
        make_group(self.aws)

    def holds(self, jobs: int) -> None:
        """So many hours of Opus."""
        job = Job(bucket=BUCKET, key="users/u/audio/sessions/s/chunk-1.webm", etag="e", size=3600 * 8_000)
        for _ in range(jobs):
            self.jobs.send(job, Queued.UNHEALTHY)

    def call(self, occasion: str) -> dict[str, Any]:
        payload = json.dumps({"occasion": occasion})
        answer = self.aws("lambda").invoke(FunctionName=LAUNCHER, Payload=payload)
        said = json.loads(answer["Payload"].read())
        assert "FunctionError" not in answer, said
        return dict(said)

    def group(self) -> Any:
        return self.scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[GROUP])["AutoScalingGroups"][0]

    def ids(self) -> list[str]:
        return [one["InstanceId"] for one in self.group()["Instances"]]

    def desired(self) -> int:
        return int(self.group()["DesiredCapacity"])


@pytest.fixture
def fleet(night: Step, aws: Aws) -> Iterator[Fleet]:
    fleet = Fleet(night, aws)
    yield fleet
    fleet.begin_anew()


@pytest.mark.integration
def test_a_schedule_calls_the_launcher_which_starts_what_the_backlog_is_worth(
    night: Step, fleet: Fleet, aws: Aws
) -> None:
    """Schedule, function and their roles are the deployed ones, and IAM is enforced; only the time is the test's."""
    assert night("351").returncode == 0
    found = aws("scheduler").get_schedule(Name=f"{PREFIX}-batch-1")
    fleet.holds(12)
    soon = datetime.now(UTC) + timedelta(seconds=20)

    aws("scheduler").update_schedule(
        Name=f"{PREFIX}-batch-1",
        ScheduleExpression=f"at({soon:%Y-%m-%dT%H:%M:%S})",
        FlexibleTimeWindow=found["FlexibleTimeWindow"],
        Target=found["Target"],
    )

    until(lambda: fleet.desired() == len(fleet.ids()) == 2)
    assert fleet.call("window")["capacity"] == 2


@pytest.mark.integration
def test_nothing_waits_and_nothing_starts(fleet: Fleet) -> None:
    assert fleet.call("window") == {"capacity": 0, "reason": "empty", "why": "nothing waits"}
    assert fleet.call("watch")["reason"] == "empty"
    assert fleet.desired() == 0


@pytest.mark.integration
def test_a_job_that_waits_for_too_long_starts_an_instance_between_the_windows(fleet: Fleet) -> None:
    fleet.holds(1)
    until(lambda: fleet.call("watch")["reason"] == "backlog")
    assert fleet.desired() == 1
    assert fleet.call("watch")["reason"] == "waits"


@pytest.mark.integration
def test_it_gives_up_after_two_instances_that_never_became_healthy_and_leaves_one_that_works(fleet: Fleet) -> None:
    fleet.holds(12)
    fleet.call("window")
    works, fails = fleet.ids()
    protection = {"AutoScalingGroupName": GROUP, "InstanceIds": [works]}
    fleet.scaling.set_instance_protection(**protection, ProtectedFromScaleIn=True)
    for _ in range(2):
        assert fleet.call("watch")["reason"] == "waits"
        fleet.scaling.set_instance_health(InstanceId=fails, HealthStatus="Unhealthy")
        (fails,) = set(fleet.ids()) - {works}

    assert fleet.call("watch")["reason"] == "gave-up"
    assert (fleet.desired(), fleet.ids()) == (1, [works])
    assert fleet.call("window")["reason"] == "gave-up"
    until(lambda: ("Reason", "gave-up") in told(fleet.aws, "CapacityDecisions"))  # what the alarm looks at


def told(aws: Aws, metric: str) -> set[tuple[str, str]]:
    """The dimensions of what was told of it by the function's log."""
    found = aws("cloudwatch").list_metrics(Namespace="TranscriptionRouter", MetricName=metric)["Metrics"]
    return {(one["Name"], one["Value"]) for each in found for one in each["Dimensions"]}


@pytest.mark.integration
def test_an_instance_that_hangs_is_ended_by_the_launchers_role(fleet: Fleet, aws: Aws, night: Step) -> None:
    """The one thing that cannot be waited for here is half a day, so this launcher's clock is ahead."""
    fleet.scaling.set_desired_capacity(AutoScalingGroupName=GROUP, DesiredCapacity=2)
    (old, _) = fleet.ids()
    fleet.scaling.set_instance_protection(AutoScalingGroupName=GROUP, InstanceIds=[old], ProtectedFromScaleIn=True)
    client = as_function(f"{PREFIX}-launcher", aws, night.environment["AWS_ENDPOINT_URL"])
    launcher = Launcher(
        backlog=Backlog(Queue(client("sqs"), fleet.url), [], client("cloudwatch")),
        group=Group(client("autoscaling"), client("ec2"), GROUP),
        policy=LauncherSettings(sqs_queue_url=fleet.url).policy,
        max_instance_hours=12,
        observe=unobserved,
        now=lambda: datetime.now(UTC) + timedelta(hours=12.3),
    )

    assert launcher.run(Occasion.WATCH).reason is Reason.EMPTY
    assert (fleet.desired(), fleet.ids()) == (0, [])


def as_function(role: str, aws: Aws, endpoint: str) -> Aws:
    """Clients of a function's role, which lets only Lambda in: so a role with the same policy."""
    iam, name = aws("iam"), f"like-{role}"
    policy = iam.get_role_policy(RoleName=role, PolicyName="least-privilege")["PolicyDocument"]
    trust = {"Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{stack.ACCOUNT}:root"}, "Action": "sts:AssumeRole"}
    trusts = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    arn = iam.create_role(RoleName=name, AssumeRolePolicyDocument=trusts)["Role"]["Arn"]
    iam.put_role_policy(RoleName=name, PolicyName="p", PolicyDocument=json.dumps(policy))
    keys = aws("sts").assume_role(RoleArn=arn, RoleSessionName="test")["Credentials"]
    session = boto3.Session(keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"], REGION)
    return lambda service: session.client(service, endpoint_url=endpoint)


# Schedules -----------------------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_schedules_that_differ_are_brought_back_those_that_do_not_are_left_alone_and_surplus_ones_go(
    night: Step, aws: Aws
) -> None:
    scheduler = aws("scheduler")

    def create(name: str, role: str = ROLE) -> None:
        scheduler.create_schedule(
            Name=f"{PREFIX}-{name}",
            ScheduleExpression="rate(1 day)",
            State="DISABLED",
            FlexibleTimeWindow={"Mode": "FLEXIBLE", "MaximumWindowInMinutes": 5},
            Target={"Arn": LAUNCHER, "RoleArn": role, "Input": '{"occasion": "midnight"}'},
        )

    for name in ("batch-1", "watch"):
        if scheduler.list_schedules(NamePrefix=f"{PREFIX}-{name}")["Schedules"]:
            scheduler.delete_schedule(Name=f"{PREFIX}-{name}")
    theirs = json.dumps({"Statement": [{"Effect": "Allow", "Principal": {"Service": "scheduler.amazonaws.com"},
                                        "Action": "sts:AssumeRole"}]})  # fmt: skip
    their_role = aws("iam").create_role(RoleName="their-scheduler", AssumeRolePolicyDocument=theirs)["Role"]["Arn"]
    for name in ("batch", "batch-2", "batch-7", "batch-of-mine"):
        create(name)
    create("batch-8", their_role)
    chosen = {"BATCH_SCHEDULE": "cron(30 2 ? * MON-FRI *); rate(12 hours)", "BATCH_TIMEZONE": "Europe/Berlin"}

    first = night("351", **chosen)
    found = {one["Name"].removeprefix(f"{PREFIX}-"): one for one in schedules(scheduler)}
    second = night("351", **chosen)

    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert [one["LastModificationDate"] for one in schedules(scheduler)] == [
        one["LastModificationDate"] for one in found.values()
    ]
    assert set(found) == {"batch-1", "batch-2", "watch", "batch-of-mine", "batch-8"}
    for name, expression, occasion, age in (
        ("batch-1", "cron(30 2 ? * MON-FRI *)", "window", 21600),
        ("batch-2", "rate(12 hours)", "window", 21600),
        ("watch", "rate(5 minutes)", "watch", 300),
    ):
        schedule, target = found[name], found[name]["Target"]
        assert (schedule["ScheduleExpression"], schedule["State"]) == (expression, "ENABLED")
        assert schedule["ScheduleExpressionTimezone"] == chosen["BATCH_TIMEZONE"]
        assert schedule["FlexibleTimeWindow"] == {"Mode": "OFF"}
        assert json.loads(target["Input"]) == {"occasion": occasion}
        assert target["RetryPolicy"] == {"MaximumRetryAttempts": 185, "MaximumEventAgeInSeconds": age}
        assert (target["Arn"], target["RoleArn"]) == (LAUNCHER, ROLE)
        assert target["DeadLetterConfig"] == {"Arn": FAILURES}
    for name in found:
        scheduler.delete_schedule(Name=f"{PREFIX}-{name}")  # the watch would look into the other tests


def schedules(scheduler: Any) -> list[dict[str, Any]]:
    names = sorted(one["Name"] for one in scheduler.list_schedules(NamePrefix=f"{PREFIX}-")["Schedules"])
    return [scheduler.get_schedule(Name=name) for name in names]


# A batch that is watched ---------------------------------------------------------------------------------------------


@pytest.mark.integration
def test_a_batch_is_watched_until_the_queue_is_empty_and_the_instances_gone(
    night: Step, fleet: Fleet, aws: Aws
) -> None:
    """Nothing runs on the local AWS's instances: this test does the instances' work."""
    fleet.holds(3)
    settings = {"ENV_FILE": str(night.env_file), "TEST_TIMEOUT": "5"}

    watching = subprocess.Popen(
        ["bash", SCRIPTS / "step-352-test-batch-run.sh", "--yes"],
        env={**stack.without_aws(os.environ), **night.environment, **settings},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watching.stderr
    said = ""
    try:
        for line in watching.stderr:
            said += line
            if "instances: 1 in service of 1; jobs: 3 waiting" in line:
                work(aws, fleet.url)
                fleet.scaling.set_desired_capacity(AutoScalingGroupName=GROUP, DesiredCapacity=0)
        assert watching.wait() == 0, said
    finally:
        watching.kill()

    assert "jobs: 3 waiting, 0 at work, 0 delayed" in said
    assert "the launcher wants 1 instances (backlog): 3 jobs" in said
    assert "the queue is empty, the instances are gone" in said


@pytest.mark.integration
def test_with_nothing_to_do_nothing_starts_and_that_is_well(night: Step, fleet: Fleet) -> None:
    done = night("352")
    assert done.returncode == 0, done.stderr
    assert "the launcher wants 0 instances (empty): nothing waits" in done.stderr
    assert "the launcher works, and has started nothing" in done.stderr
    assert fleet.desired() == 0


def work(aws: Aws, url: str) -> None:
    """Does each job at its second receipt: the launcher has had a look, the script has taken none."""
    done: list[str] = []

    def all_done() -> bool:
        answer = aws("sqs").receive_message(QueueUrl=url, AttributeNames=["All"], MaxNumberOfMessages=10)
        for message in answer.get("Messages", []):
            assert message["Attributes"]["ApproximateReceiveCount"] == "2"
            aws("sqs").delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
            done.append(message["MessageId"])
        return len(done) >= 3

    until(all_done)
    assert len(set(done)) == 3


# Against a stand-in for the CLI, whose answers are files --------------------------------------------------------------

STAND_IN = (
    WORDS_OF_CALL
    + """\
name="${words[0]} ${words[1]}"
[[ $name != "lambda invoke" ]] || cp "$HERE/answers/decision" "${words[${#words[@]} - 1]}"
printf '%s\\n' "${words[*]//$'\\n'/ }" >>"$HERE/calls"
answer="$HERE/answers/$name"
count=$(grep -c "^$name" "$HERE/calls")
[[ ! -e $answer.$count ]] || answer=$answer.$count
if [[ ! -e $answer ]]; then
  [[ $name != *" get-"* && $name != *" describe-"* ]] || { echo "(NoSuchEntity)" >&2; exit 254; }
elif grep -q '^An error' "$answer"; then
  cat "$answer" >&2
  exit 254
else
  cat "$answer"
fi
"""
)

# What the reads of a healthy deployment answer, after --query.
HEALTHY = {
    "sts get-caller-identity": f"{stack.ACCOUNT}\tarn:aws:iam::{stack.ACCOUNT}:root",
    "iam get-role": "role",
    "lambda get-function-configuration": "arn",
    "lambda invoke": "None",
    "decision": '{"capacity": 1, "reason": "backlog", "why": "5 jobs"}',
    "ecr describe-images": "sha256:1",
    "autoscaling describe-auto-scaling-groups": "1\t0",
    "sqs get-queue-attributes": "0\t0\t0",
}

Stage = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    """Runs a step with given answers; `name.2` is what a call answers the second time."""
    (tmp_path / "answers").mkdir()
    programs = {"aws": STAND_IN, "sleep": "#!/bin/sh\n"}
    for name, text in programs.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(0o755)

    def stage(
        number: str, answers: dict[str, str], *arguments: str, **settings: str
    ) -> subprocess.CompletedProcess[str]:
        for name, text in {**HEALTHY, **answers}.items():
            (tmp_path / "answers" / name).write_text(text + "\n")
        (script,) = SCRIPTS.glob(f"step-{number}-*.sh")
        environment = {
            "PATH": f"{tmp_path}:{os.environ['PATH']}",
            "AWS_CLI": "aws",
            "AWS_REGION": REGION,
            "ENV_FILE": str(tmp_path / "env"),
            "HERE": str(tmp_path),
            "FAST_API_ECR_REPOSITORY_URI": "registry/smart-transcription-server",
            "FAST_API_TAG": "v1",
            **dict.fromkeys(("SQS_QUEUE_URL", "SQS_DLQ_URL", "SQS_FAILURES_QUEUE_URL"), "http://queue"),
        }
        return subprocess.run(
            ["bash", script, *arguments],
            env={**environment, **settings},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    return stage


def writes(tmp_path: Path) -> list[str]:
    calls = (tmp_path / "calls").read_text().splitlines()
    return [call for call in calls if not re.match(r"\S+ (get|describe|list)-", call)]


@pytest.mark.parametrize(
    ("number", "missing", "said"),
    [
        ("350", "ecr describe-images", "smart-transcription-server:v1 does not exist"),
        ("345", "autoscaling describe-auto-scaling-groups", "next  infra/scripts/step-320"),
        ("350", "autoscaling describe-auto-scaling-groups", "next  infra/scripts/step-320"),
        ("351", "autoscaling describe-auto-scaling-groups", "next  infra/scripts/step-320"),
        ("352", "autoscaling describe-auto-scaling-groups", "next  infra/scripts/step-320"),
    ],
)
def test_what_an_earlier_step_makes_is_named_with_that_step_and_nothing_is_written(
    number: str, missing: str, said: str, stage: Stage, tmp_path: Path
) -> None:
    done = stage(number, {missing: "None"}, "--yes")
    assert done.returncode == 1
    assert said in done.stderr
    assert writes(tmp_path) == []


def test_no_permission_to_look_is_not_taken_for_nothing_there(stage: Stage, tmp_path: Path) -> None:
    refusal = "An error occurred (AccessDeniedException) when calling GetSchedule: not authorized"
    done = stage("351", {"scheduler get-schedule": refusal})
    assert done.returncode == 1
    assert "not authorized" in done.stderr
    assert "aws scheduler get-schedule was refused" in done.stderr
    assert writes(tmp_path) == []


def test_a_role_that_the_scheduler_does_not_know_yet_is_waited_for(stage: Stage, tmp_path: Path) -> None:
    unknown = (
        "An error occurred (ValidationException) when calling the CreateSchedule operation: "
        "The execution role you provide must allow AWS EventBridge Scheduler to assume the role."
    )
    stage("351", {"scheduler create-schedule.1": unknown, "scheduler create-schedule.2": "{}"})
    assert [call.split()[1] for call in writes(tmp_path)] == ["create-schedule"] * 3  # the window's twice, the watch's


@pytest.mark.parametrize(
    "refusal", ["Invalid Schedule Expression cron(0 0 * *).", "The ScheduleExpressionTimezone is not valid."]
)
def test_a_schedule_that_is_no_schedule_is_named_with_its_settings(refusal: str, stage: Stage, tmp_path: Path) -> None:
    done = stage(
        "351",
        {"scheduler create-schedule": f"An error occurred (ValidationException): {refusal}"},
        BATCH_SCHEDULE="cron(0 0 * *)",
        BATCH_TIMEZONE="Europe/Nowhere",
    )
    assert done.returncode == 1
    assert refusal in done.stderr
    assert "BATCH_SCHEDULE is 'cron(0 0 * *)', BATCH_TIMEZONE is 'Europe/Nowhere'" in done.stderr
    assert len(writes(tmp_path)) == 1


def test_the_configuration_step_knows_a_wrong_schedule_before_aws_does(stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "env").touch()
    wrong = {
        "BATCH_SCHEDULE": "cron(0 0 * * ? *);0 0 * * *",
        "BATCH_TIMEZONE": "at home",
        "IDLE_TIMEOUT_MINUTES": "0",
        "MODE": "nightly",
        "TARGET_MINUTES": "0.0",
        "INSTANCE_SPEED": "fast",
        "LEAST_JOBS": "0",
        "RUN_BUDGET": "-1",
        "BOOTS_ALLOWED": "0",
    }
    done = stage("001", {}, **wrong)
    assert done.returncode == 1
    assert "BATCH_SCHEDULE is 'cron(0 0 * * ? *);0 0 * * *', expected cron(…) with six fields" in done.stderr
    assert [name for name in wrong if f"{name} is '{wrong[name]}', expected" not in done.stderr] == []


@pytest.mark.parametrize(
    "right",
    [
        {"BATCH_SCHEDULE": "cron(0 0 * * ? *); rate(6 hours);rate(1 day)", "MODE": "on-demand"},
        {"TARGET_MINUTES": "2.0", "INSTANCE_SPEED": "0.5", "RUN_BUDGET": "10", "LATEST_AGE_HOURS": "12.50"},
    ],
)
def test_the_configuration_step_takes_what_is_right(right: dict[str, str], stage: Stage, tmp_path: Path) -> None:
    (tmp_path / "env").touch()
    done = stage("001", {}, AUDIO_BUCKET="night-audio", **right)
    assert done.returncode == 0, done.stderr


def test_a_schedule_of_someone_else_is_refused_and_stays(stage: Stage, tmp_path: Path) -> None:
    theirs = json.dumps({"Name": "smart-transcription-batch-1", "Target": {"RoleArn": "arn:aws:iam::1:role/theirs"}})
    done = stage("351", {"scheduler get-schedule": theirs})
    assert done.returncode == 1
    assert "smart-transcription-batch-1 is someone else's" in done.stderr
    assert "choose another QUEUE_PREFIX" in done.stderr
    assert writes(tmp_path) == []


def test_no_instance_is_started_without_a_yes(stage: Stage, tmp_path: Path) -> None:
    done = stage("352", {})
    assert done.returncode == 1
    assert "dollar an hour" in done.stderr
    assert "next  infra/scripts/step-352-test-batch-run.sh --yes" in done.stderr
    assert writes(tmp_path) == []


def test_why_no_instance_comes_is_said_and_how_to_stop_trying(stage: Stage) -> None:
    reason = "Could not launch Spot Instances. MaxSpotInstanceCountExceeded - Max spot instance count exceeded."
    done = stage(
        "352",
        {
            "autoscaling describe-auto-scaling-groups.2": "1\t0\t0",
            "autoscaling describe-scaling-activities": f"2999-01-01T00:00:00+00:00\tFailed\t{reason}",
        },
        "--yes",
        TEST_TIMEOUT="0",
    )
    assert done.returncode == 1
    assert f"no instance yet: {reason}" in done.stderr
    assert "no instance came into service within 0 minutes" in done.stderr
    assert "set-desired-capacity --auto-scaling-group-name smart-transcription-gpu --desired-capacity 0" in done.stderr


def test_an_instance_that_is_always_there_is_not_waited_for_to_be_gone(stage: Stage) -> None:
    groups, queue = "autoscaling describe-auto-scaling-groups", "sqs get-queue-attributes"
    polls = {f"{groups}.2": "1\t1\t1", f"{groups}.3": "1\t1\t1", f"{queue}.2": "3\t2\t0"}
    done = stage("352", {groups: "2\t1", **polls}, "--yes", MODE="always")
    assert done.returncode == 0, done.stderr
    assert "jobs: 3 waiting, 2 at work" in done.stderr
    assert done.stderr.rstrip().endswith("the batch ran: the queue is empty")


@pytest.mark.parametrize(
    ("before", "after", "status", "said"),
    [
        ("5\t0\t0", "0\t0\t0", 0, "the batch ran"),
        ("5\t0\t0", "3\t1\t0", 1, "the instances are gone and 4 jobs are left"),
    ],
)
def test_a_batch_that_runs_already_is_only_watched(
    before: str, after: str, status: int, said: str, stage: Stage, tmp_path: Path
) -> None:
    groups = "autoscaling describe-auto-scaling-groups"
    queue = "sqs get-queue-attributes"
    polls = {f"{groups}.2": "1\t1\t1", f"{groups}.3": "0\t0\t0", queue: after, f"{queue}.1": before}
    done = stage("352", {groups: "2\t1", **polls})
    assert done.returncode == status, done.stderr
    assert said in done.stderr
    assert writes(tmp_path) == []
