"""The deploy scripts: safe to repeat, safe to read, and honest about what they find."""

import json
import os
import re
import subprocess
from pathlib import Path
from typing import Any

import pytest

from infra.local import stack
from tests.infra.conftest import SCRIPTS, WORDS_OF_CALL, Aws, Step, until

STEPS = sorted(path.name for path in SCRIPTS.glob("step-*.sh"))
PREFIX = "smart-transcription"
integration = pytest.mark.integration


def bash(script: str, **environment: str) -> str:
    """Run a line of bash with the shared library loaded."""
    done = subprocess.run(
        ["bash", "-c", f'source "{SCRIPTS}/lib/common.sh"; {script}'],
        env={"PATH": os.environ["PATH"], "AWS_REGION": "us-east-2", **environment},
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout


# The library ---------------------------------------------------------------------------------------------------------


def test_the_configuration_is_read_not_executed(tmp_path: Path) -> None:
    env_file = tmp_path / "env"
    env_file.write_text(
        f'# a comment\nAUDIO_BUCKET="my bucket"\nexport QUEUE_PREFIX=mine # why\nAPI_KEY=$(touch {tmp_path}/oops)\n'
        "FAST_API_SERVER_URL='http://a/#b'\nEVENT_BUS_NAME=from-file\n"
    )
    found = bash(
        'load_configuration; printf "%s\\n" "$AUDIO_BUCKET" "$QUEUE_PREFIX" "$API_KEY" "$FAST_API_SERVER_URL" '
        '"$EVENT_BUS_NAME"; env',
        ENV_FILE=str(env_file),
        EVENT_BUS_NAME="from-environment",
    ).splitlines()
    assert found[:5] == ["my bucket", "mine", f"$(touch {tmp_path}/oops)", "http://a/#b", "from-environment"]
    assert not (tmp_path / "oops").exists()
    assert not [line for line in found[5:] if line.startswith("API_KEY=")]


def test_saving_one_setting_leaves_every_other_line_alone(tmp_path: Path) -> None:
    env_file = tmp_path / "env"
    before = "# mine\nA=1\n\nSQS_QUEUE_URL=\n  odd line\nB='x y' # kept"
    env_file.write_text(before)
    bash("save_setting SQS_QUEUE_URL 'http://h/a&b\\1'; save_setting NEW 2", ENV_FILE=str(env_file))
    assert env_file.read_text() == before.replace("SQS_QUEUE_URL=", "SQS_QUEUE_URL=http://h/a&b\\1") + "\nNEW=2\n"
    assert env_file.stat().st_mode & 0o777 == 0o600
    assert list(tmp_path.iterdir()) == [env_file]


@pytest.mark.parametrize(
    ("mode", "smallest", "found"), [("always", "0", "1"), ("always", "2", "2"), ("on-demand", "0", "0"), ("", "", "0")]
)
def test_one_instance_is_always_there_since_the_group_must_have_it(mode: str, smallest: str, found: str) -> None:
    settings = {"MODE": mode, "MIN_INSTANCES": smallest, "ENV_FILE": "/nowhere"}
    assert bash('load_configuration; printf "%s" "$MIN_INSTANCES"', **settings) == found


def test_a_missing_region_is_named_with_the_way_to_set_it(tmp_path: Path) -> None:
    (tmp_path / "env").write_text("QUEUE_PREFIX=mine\n")
    environment = {"PATH": os.environ["PATH"], "AWS_CLI": "/bin/false", "ENV_FILE": str(tmp_path / "env")}
    done = run("step-000-setup-configuration.sh", environment, "--yes")
    assert done.returncode == 1
    assert "AWS_REGION is not set" in done.stderr
    assert "next  AWS_REGION=us-east-2 infra/scripts/step-000-setup-configuration.sh" in done.stderr


@pytest.mark.parametrize("name", STEPS)
def test_help_says_what_a_step_does_without_doing_it(name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", SCRIPTS / name, "--help"],
        env={"PATH": os.environ["PATH"], "AWS_CLI": "/bin/false", "ENV_FILE": str(tmp_path / "none")},
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.startswith(f"Usage: infra/scripts/{name}")
    assert "--dry-run" in done.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", STEPS)
def test_a_script_parses(name: str) -> None:
    subprocess.run(["bash", "-n", SCRIPTS / name], check=True)


# Dry run, against a stand-in for the CLI that knows no resource -----------------------------------------------------

STAND_IN = (
    WORDS_OF_CALL
    + """\
printf '%s %s\\n' "${words[0]}" "${words[1]}" >>"$CALLS"
case "${words[0]} ${words[1]}" in
  "sts get-caller-identity") printf '111111111111\\tarn:aws:iam::111111111111:root\\n' ;;
  "events test-event-pattern") echo True ;;
  *) echo "An error occurred (NoSuchEntity) when calling: (404)" >&2; exit 254 ;;
esac
"""
)


@pytest.fixture
def stand_in(tmp_path: Path) -> dict[str, str]:
    """The environment in which the scripts talk to the stand-in."""
    program = tmp_path / "aws"
    program.write_text(STAND_IN)
    program.chmod(0o755)
    return {
        "PATH": os.environ["PATH"],
        "AWS_CLI": str(program),
        "CALLS": str(tmp_path / "calls"),
        "ENV_FILE": str(tmp_path / "env"),
    }


def run(name: str, environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", SCRIPTS / name, *arguments],
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_a_first_configuration_is_the_example_with_the_gaps_filled(stand_in: dict[str, str], tmp_path: Path) -> None:
    done = run("step-000-setup-configuration.sh", stand_in, "--yes")
    assert done.returncode == 0, done.stderr
    example = (stack.ROOT / ".env.example").read_text().splitlines()
    written = (tmp_path / "env").read_text().splitlines()
    assert (tmp_path / "env").stat().st_mode & 0o777 == 0o600
    assert f"AUDIO_BUCKET={PREFIX}-audio-111111111111" in written
    assert [line for line in written if not line.startswith("AUDIO_BUCKET=")] == [
        line for line in example if not line.startswith("AUDIO_BUCKET=")
    ]


CHANGING = re.compile(r"step-(000|010|020|320|330|340|341|342|345|350|351|352|360)-")


@pytest.mark.parametrize("name", [name for name in STEPS if CHANGING.match(name)])
def test_a_dry_run_changes_nothing(name: str, stand_in: dict[str, str], tmp_path: Path) -> None:
    env_file = tmp_path / "env"
    env_file.write_text("AWS_REGION=us-east-2\n")
    done = run(name, stand_in, "--dry-run")
    made = (tmp_path / "calls").read_text().splitlines()
    assert made
    assert not [call for call in made if not re.search(r" (get|list|describe|head|simulate|test|configure)\b", call)]
    assert env_file.read_text() == "AWS_REGION=us-east-2\n"
    if "342" not in name:  # its patterns are judged by the stand-in, which finds everything a match
        assert done.returncode == 0, done.stderr
    if "000" not in name:
        assert "would run: aws" in done.stderr


# The whole, against the emulator ------------------------------------------------------------------------------------


def everything(aws: Aws, settings: dict[str, str]) -> dict[str, Any]:
    """What the scripts made, without what may differ from reading to reading."""

    def plain(answer: dict[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in answer.items() if name != "ResponseMetadata"}

    function = f"{PREFIX}-router"
    found: dict[str, Any] = {
        "settings": settings,
        "function": plain(aws("lambda").get_function_configuration(FunctionName=function)),
        "permissions": json.loads(aws("lambda").get_policy(FunctionName=function)["Policy"]),
        "concurrency": plain(aws("lambda").get_function_concurrency(FunctionName=function)),
        "key": plain(aws("ssm").get_parameter(Name=f"/{PREFIX}/api-key", WithDecryption=True)),
        "events": plain(aws("s3").get_bucket_notification_configuration(Bucket=settings["AUDIO_BUCKET"])),
    }
    for rule in ("uploads", "app-events"):
        found[rule] = plain(aws("events").list_targets_by_rule(Rule=f"{PREFIX}-{rule}"))
    for role in ("router", "gpu-instance", "launcher"):
        found[role] = plain(aws("iam").get_role_policy(RoleName=f"{PREFIX}-{role}", PolicyName="least-privilege"))
    for queue in ("SQS_QUEUE_URL", "SQS_DLQ_URL", "SQS_FAILURES_QUEUE_URL"):
        attributes = aws("sqs").get_queue_attributes(QueueUrl=settings[queue], AttributeNames=["All"])["Attributes"]
        ours = {name: value for name, value in attributes.items() if not re.search("Approximate|Timestamp", name)}
        found[queue] = ours
    return found


@integration
def test_a_second_deployment_changes_nothing(deployed: Step, aws: Aws, environment: dict[str, str]) -> None:
    before = everything(aws, deployed.settings())
    stack.deploy(deployed.env_file, environment)
    assert everything(aws, deployed.settings()) == before


@integration
def test_a_wrong_attribute_is_named_and_the_step_before_repairs_it(deployed: Step, aws: Aws) -> None:
    url = deployed.settings()["SQS_QUEUE_URL"]
    dead_letters = f"arn:aws:sqs:us-east-2:{stack.ACCOUNT}:{PREFIX}-dlq"
    redrive = json.dumps({"deadLetterTargetArn": dead_letters, "maxReceiveCount": 1})
    aws("sqs").set_queue_attributes(QueueUrl=url, Attributes={"RedrivePolicy": redrive, "VisibilityTimeout": "1"})

    found = deployed("021")

    assert found.returncode == 1
    assert "expected maxReceiveCount 5" in found.stderr
    assert f"{PREFIX}-jobs: VisibilityTimeout is 1, expected 120" in found.stderr
    assert "infra/scripts/step-020-create-sqs-resources.sh" in found.stderr
    assert deployed("020").returncode == 0
    assert deployed("021").returncode == 0


@integration
def test_a_role_that_may_too_much_is_named(deployed: Step, aws: Aws) -> None:
    role = f"{PREFIX}-router"
    wide = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Action": "s3:*", "Resource": "*"}]}
    aws("iam").put_role_policy(RoleName=role, PolicyName="extra", PolicyDocument=json.dumps(wide))
    try:
        found = deployed("011")
    finally:
        aws("iam").delete_role_policy(RoleName=role, PolicyName="extra")
    assert found.returncode == 1
    assert f"{role}: s3:DeleteObject on" in found.stderr


@integration
def test_no_step_ever_takes_a_message_from_the_live_queue(deployed: Step, aws: Aws) -> None:
    sqs, url = aws("sqs"), deployed.settings()["SQS_QUEUE_URL"]
    sqs.purge_queue(QueueUrl=url)
    sent = sqs.send_message(QueueUrl=url, MessageBody="a user's job")

    for number in ("020", "021", "342"):
        done = deployed(number)
        assert done.returncode == 0, done.stderr

    (message,) = sqs.receive_message(QueueUrl=url, AttributeNames=["All"])["Messages"]
    assert message["MessageId"] == sent["MessageId"]
    assert message["Attributes"]["ApproximateReceiveCount"] == "1"  # the one just now
    sqs.delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])


@integration
def test_other_peoples_bucket_keeps_its_settings_and_notifications(deployed: Step, aws: Aws, tmp_path: Path) -> None:
    s3, sqs = aws("s3"), aws("sqs")
    s3.create_bucket(Bucket="was-here", CreateBucketConfiguration={"LocationConstraint": "us-east-2"})
    queue = sqs.create_queue(QueueName="theirs")["QueueUrl"]
    arn = sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    policy = {"Version": "2012-10-17", "Statement": [{"Effect": "Allow", "Principal": {"Service": "s3.amazonaws.com"}}]}
    policy["Statement"][0].update({"Action": "sqs:SendMessage", "Resource": arn})  # type: ignore[index,attr-defined]
    sqs.set_queue_attributes(QueueUrl=queue, Attributes={"Policy": json.dumps(policy)})
    theirs = {"QueueConfigurations": [{"Id": "theirs", "QueueArn": arn, "Events": ["s3:ObjectRemoved:*"]}]}
    s3.put_bucket_notification_configuration(Bucket="was-here", NotificationConfiguration=theirs)
    step = Step(tmp_path / "env", {**deployed.environment, "AUDIO_BUCKET": "was-here", "QUEUE_PREFIX": "elsewhere"})

    done = step("020")

    assert done.returncode == 0, done.stderr
    found = s3.get_bucket_notification_configuration(Bucket="was-here")
    assert found["EventBridgeConfiguration"] == {}
    assert [one["Id"] for one in found["QueueConfigurations"]] == ["theirs"]
    assert "Status" not in s3.get_bucket_versioning(Bucket="was-here")


@integration
def test_an_uploaded_file_reaches_the_router_and_without_a_server_the_queue(deployed: Step, aws: Aws) -> None:
    settings = deployed.settings()
    key = "users/u/audio/sessions/made by test/chunk-001.webm"
    aws("s3").put_object(Bucket=settings["AUDIO_BUCKET"], Key=key, Body=b"not really audio")

    def job() -> Any:
        found = aws("sqs").receive_message(QueueUrl=settings["SQS_QUEUE_URL"], WaitTimeSeconds=1).get("Messages", [])
        return [one for one in found if json.loads(one["Body"]).get("key") == key]

    (message,) = until(job, seconds=60)
    aws("sqs").delete_message(QueueUrl=settings["SQS_QUEUE_URL"], ReceiptHandle=message["ReceiptHandle"])


@integration
def test_the_key_is_never_printed_nor_an_argument_of_a_process(deployed: Step, tmp_path: Path) -> None:
    key = deployed.settings()["API_KEY"]
    assert len(key) >= 32
    watched = tmp_path / "aws"
    watched.write_text(
        f'#!/usr/bin/env bash\nprintf "%s\\n" "$*" >>{tmp_path}/calls\nexec {stack.ROOT}/.venv-aws/bin/aws "$@"\n'
    )
    watched.chmod(0o755)

    done = deployed("340", AWS_CLI=str(watched), API_KEY="a-new-key-that-must-not-be-seen")
    again = deployed("340", AWS_CLI=str(watched))

    assert done.returncode == again.returncode == 0, done.stderr + again.stderr
    calls = (tmp_path / "calls").read_text()
    assert "ssm put-parameter" in calls
    for secret in (key, "a-new-key-that-must-not-be-seen"):
        assert secret not in calls + done.stdout + done.stderr + again.stdout + again.stderr
