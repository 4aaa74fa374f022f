"""The nightly batch: its worker's settings, its schedule, and a run that is watched from its start to its end."""

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from infra.local import stack
from infra.scripts.lib.documents import rendered
from tests.infra.conftest import REGION, SCRIPTS, WORDS_OF_CALL, Aws, Step

PREFIX = "night"
GROUP = f"{PREFIX}-gpu"
ROLE = f"arn:aws:iam::{stack.ACCOUNT}:role/{PREFIX}-scheduler"
FAILURES = f"arn:aws:sqs:{REGION}:{stack.ACCOUNT}:{PREFIX}-failures"

# Against the local AWS ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def night(root: Path, environment: dict[str, str], aws: Aws) -> Iterator[Step]:
    """What the earlier steps would have made, as far as the batch's own steps need it."""
    tags = [{"Key": "Project", "Value": PREFIX}]
    urls = {
        setting: aws("sqs").create_queue(QueueName=f"{PREFIX}-{name}")["QueueUrl"]
        for setting, name in (
            ("SQS_QUEUE_URL", "jobs"),
            ("SQS_DLQ_URL", "dlq"),
            ("SQS_FAILURES_QUEUE_URL", "failures"),
        )
    }
    values = {"PARTITION": "aws", "REGION": REGION, "ACCOUNT": stack.ACCOUNT}
    trust = rendered((stack.ROOT / "infra/policies/trust-scheduler.json").read_text(), values)
    aws("iam").create_role(RoleName=f"{PREFIX}-scheduler", AssumeRolePolicyDocument=trust)
    repository = aws("ecr").create_repository(repositoryName=f"{PREFIX}-server")["repository"]["repositoryUri"]
    aws("ecr").put_image(repositoryName=f"{PREFIX}-server", imageManifest='{"schemaVersion": 2}', imageTag="v1")
    image = aws("ec2").describe_images()["Images"][0]["ImageId"]
    aws("ec2").create_launch_template(
        LaunchTemplateName=GROUP, LaunchTemplateData={"ImageId": image, "InstanceType": "g4dn.xlarge"}
    )
    aws("autoscaling").create_auto_scaling_group(
        AutoScalingGroupName=GROUP,
        MinSize=0,
        MaxSize=1,
        AvailabilityZones=[f"{REGION}a"],
        LaunchTemplate={"LaunchTemplateName": GROUP, "Version": "$Latest"},
        Tags=[{**tag, "ResourceId": GROUP, "ResourceType": "auto-scaling-group"} for tag in tags],
    )
    built = {"FAST_API_ECR_REPOSITORY_URI": repository, "FAST_API_TAG": "v1"}
    settings = {"QUEUE_PREFIX": PREFIX, "AUDIO_BUCKET": "night-audio", **built, **urls}
    yield Step(root / "night.env", {**environment, **settings})
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
        "AUDIO_BUCKET": "night-audio",
        "SQS_QUEUE_URL": night.environment["SQS_QUEUE_URL"],
        "SQS_DLQ_URL": night.environment["SQS_DLQ_URL"],
        "SQS_FAILURES_QUEUE_URL": night.environment["SQS_FAILURES_QUEUE_URL"],
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


@pytest.mark.integration
def test_a_schedule_that_differs_is_brought_back_and_one_that_does_not_is_left_alone(night: Step, aws: Aws) -> None:
    scheduler = aws("scheduler")
    scheduler.create_schedule(
        Name=f"{PREFIX}-batch",
        ScheduleExpression="rate(1 day)",
        State="DISABLED",
        FlexibleTimeWindow={"Mode": "FLEXIBLE", "MaximumWindowInMinutes": 5},
        Target={
            "Arn": "arn:aws:scheduler:::aws-sdk:autoscaling:setDesiredCapacity",
            "RoleArn": ROLE,
            "Input": json.dumps({"AutoScalingGroupName": GROUP, "DesiredCapacity": 9}),
        },
    )
    chosen = {"BATCH_SCHEDULE": "cron(30 2 ? * MON-FRI *)", "BATCH_TIMEZONE": "Europe/Berlin"}

    first = night("351", **chosen)
    found = scheduler.get_schedule(Name=f"{PREFIX}-batch")
    second = night("351", **chosen)

    assert first.returncode == second.returncode == 0, first.stderr + second.stderr
    assert scheduler.get_schedule(Name=f"{PREFIX}-batch")["LastModificationDate"] == found["LastModificationDate"]
    target = found["Target"]
    assert found["ScheduleExpression"] == chosen["BATCH_SCHEDULE"]
    assert found["ScheduleExpressionTimezone"] == chosen["BATCH_TIMEZONE"]
    assert (found["State"], found["FlexibleTimeWindow"]) == ("ENABLED", {"Mode": "OFF"})
    assert json.loads(target["Input"]) == {
        "AutoScalingGroupName": GROUP,
        "DesiredCapacity": 1,
        "HonorCooldown": False,
    }
    assert target["RetryPolicy"] == {"MaximumRetryAttempts": 185, "MaximumEventAgeInSeconds": 21600}
    assert (target["RoleArn"], target["DeadLetterConfig"]) == (ROLE, {"Arn": FAILURES})


@pytest.mark.integration
def test_a_batch_is_watched_until_the_queue_is_empty_and_the_instance_gone(night: Step, aws: Aws) -> None:
    """Nothing runs on the local AWS's instances: this test does the instance's work."""
    url = night.environment["SQS_QUEUE_URL"]
    for number in range(3):
        aws("sqs").send_message(QueueUrl=url, MessageBody=str(number))

    watching = subprocess.Popen(
        ["bash", SCRIPTS / "step-352-test-batch-run.sh", "--yes"],
        env={**stack.without_aws(os.environ), **night.environment, "ENV_FILE": str(night.env_file)},
        stdin=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert watching.stderr
    said = ""
    for line in watching.stderr:
        said += line
        if "instances: 1 in service of 1; jobs: 3 waiting" in line:
            work(aws, url)
            aws("autoscaling").set_desired_capacity(AutoScalingGroupName=GROUP, DesiredCapacity=0)

    assert watching.wait() == 0, said
    assert "jobs: 3 waiting, 0 at work, 0 delayed" in said
    assert "the queue is empty, the instance is gone" in said


def work(aws: Aws, url: str) -> None:
    """Does each job at its first receipt: the script has taken none."""
    done: list[str] = []
    while len(done) < 3:
        answer = aws("sqs").receive_message(QueueUrl=url, AttributeNames=["All"], MaxNumberOfMessages=10)
        for message in answer.get("Messages", []):
            assert message["Attributes"]["ApproximateReceiveCount"] == "1"
            aws("sqs").delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
            done.append(message["Body"])
    assert sorted(done) == ["0", "1", "2"]


# Against a stand-in for the CLI, whose answers are files --------------------------------------------------------------

STAND_IN = (
    WORDS_OF_CALL
    + """\
name="${words[0]} ${words[1]}"
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
    return [call for call in calls if " get-" not in call and " describe-" not in call]


@pytest.mark.parametrize(
    ("number", "missing", "said"),
    [
        ("350", "ecr describe-images", "smart-transcription-server:v1 does not exist"),
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
    assert [call.split()[1] for call in writes(tmp_path)] == ["create-schedule", "create-schedule"]


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
    done = stage("001", {}, BATCH_SCHEDULE="0 0 * * *", BATCH_TIMEZONE="at home", IDLE_TIMEOUT_MINUTES="0")
    assert done.returncode == 1
    assert "BATCH_SCHEDULE is '0 0 * * *', expected cron(…) with six fields" in done.stderr
    assert "BATCH_TIMEZONE is 'at home'" in done.stderr
    assert "IDLE_TIMEOUT_MINUTES is '0'" in done.stderr


def test_a_schedule_of_someone_else_is_refused_and_stays(stage: Stage, tmp_path: Path) -> None:
    theirs = json.dumps({"Name": "smart-transcription-batch", "Target": {"RoleArn": "arn:aws:iam::1:role/theirs"}})
    done = stage("351", {"scheduler get-schedule": theirs})
    assert done.returncode == 1
    assert "smart-transcription-batch is someone else's" in done.stderr
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


@pytest.mark.parametrize(
    ("before", "after", "status", "said"),
    [
        ("5\t0\t0", "0\t0\t0", 0, "the batch ran"),
        ("5\t0\t0", "3\t1\t0", 1, "the instance is gone and 4 jobs are left"),
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
