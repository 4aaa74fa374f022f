"""GPU instances: what step 320 sets up, what an instance does with its user data, and what the checks say of it."""

import base64
import json
import os
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import ClientError

from infra.local import stack
from tests.infra.conftest import REGION, SCRIPTS, WORDS_OF_CALL, Aws, Step

PREFIX = "smart-transcription"
GROUP = f"{PREFIX}-gpu"
IMAGE = "111111111111.dkr.ecr.us-east-2.amazonaws.com/smart-transcription-server:v1"
integration = pytest.mark.integration

# On the instance ---------------------------------------------------------------------------------------------------

VALUES = {
    "QUEUE_PREFIX": PREFIX,
    "REGION": "us-east-2",
    "IMAGE": IMAGE,
    "PORT": "8000",
    "IDLE_TIMEOUT_MINUTES": "10",
    "MAX_INSTANCE_HOURS": "12",
}
PROGRAMS = ["systemctl", "docker", "aws", "curl", "lsblk", "mkfs.xfs", "mount", "mountpoint", "nvidia-smi", "sleep"]
PROGRAM = """#!/usr/bin/env bash
name=${0##*/}
printf '%s %s\\n' "$name" "$*" >>"$CALLS"
case "$name $*" in
  "aws ssm get-parameter --name /smart-transcription/server-env "*) echo AUDIO_BUCKET=b ;;
  "aws ssm get-parameter --name /smart-transcription/api-key "*) echo the-key ;;
  "aws ssm get-parameter "*)
    [[ -n ${WORKER:-} ]] || { echo "An error occurred (ParameterNotFound)" >&2; exit 254; }
    echo SQS_QUEUE_URL=q
    ;;
  "aws ecr get-login-password") echo token ;;
  "aws autoscaling "*) [[ -z ${REFUSED:-} ]] || { echo "$REFUSED" >&2; exit 254; } ;;
  "curl "*/api/token*) echo token ;;
  "curl "*/instance-id*) echo i-0123 ;;
  "curl "*/health) [[ -n ${HEALTHY:-} ]] ;;
  "curl "*/metrics) cat >/dev/null; printf 'transcription_jobs_%s\\n' "${JOBS:-in_flight 0.0}" ;;
  "lsblk "*) printf '/dev/nvme0n1 Amazon Elastic Block Store\\n%s\\n' "${DISK:-}" ;;
  "mountpoint "*) exit 1 ;;
  "docker image inspect "*) [[ -e $CALLS.pulled ]] ;;
  "docker login "*) [[ $(cat) == token ]] ;;
  "docker pull "*) touch "$CALLS.pulled" ;;
  "docker network inspect "*) exit 1 ;;
  "systemctl is-active "*) echo "${STATE_OF_WORKER:-inactive}"; exit 3 ;;
  "nvidia-smi "*) [[ -n ${GPU:-} ]] ;;
esac
"""


class Machine:
    """A machine with nothing but what user data finds on one: a file system, and programs that note their calls."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.calls_file = folder / "calls"
        programs = folder / "bin"
        for path in (programs, self.root / "proc", self.root / "etc/docker"):
            path.mkdir(parents=True)
        for name in PROGRAMS:
            (programs / name).write_text(PROGRAM)
            (programs / name).chmod(0o755)
        self.path = f"{programs}:{os.environ['PATH']}"
        self.script = folder / "user-data"
        body = (stack.ROOT / "infra/instance/user-data.sh").read_text().partition("\n")[2]
        values = "".join(f"{name}={value}\n" for name, value in VALUES.items())
        self.script.write_text(f"#!/usr/bin/env bash\n{values}{body}")
        self.up(minutes=30)

    def up(self, *, minutes: float) -> None:
        (self.root / "proc/uptime").write_text(f"{minutes * 60:.2f} 1.00\n")

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        fixed = {"PATH": self.path, "ROOT_DIR": str(self.root), "CALLS": str(self.calls_file)}
        done = subprocess.run(
            ["bash", self.script, *arguments],
            env={**environment, **fixed},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        return done

    def calls(self) -> list[str]:
        """What was called since the last look."""
        lines = self.calls_file.read_text().splitlines() if self.calls_file.exists() else []
        self.calls_file.unlink(missing_ok=True)
        return lines

    def left(self) -> bool:
        wanted = (
            "aws autoscaling terminate-instance-in-auto-scaling-group --instance-id i-0123 "
            "--should-decrement-desired-capacity"
        )
        return wanted in self.calls()


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def test_a_first_boot_starts_server_and_worker_and_a_second_changes_nothing(machine: Machine) -> None:
    first = machine("boot", WORKER="1")
    calls = machine.calls()
    again = machine(WORKER="1")

    units = machine.root / "etc/systemd/system"
    # What ends the instance comes before all that can fail.
    guards = calls.index("systemctl enable --now transcription-finish.timer transcription-deadline.timer")
    assert guards < min(number for number, call in enumerate(calls) if call.startswith(("aws ", "docker ")))
    assert "docker login --username AWS --password-stdin 111111111111.dkr.ecr.us-east-2.amazonaws.com" in calls
    assert f"docker pull --quiet {IMAGE}" in calls
    assert calls[-2:] == [
        "systemctl start --no-block transcription-server.service",
        "systemctl start --no-block transcription-worker.service",
    ]
    assert not [call for call in machine.calls() if call.startswith(("docker pull", "docker login"))]
    assert "OnBootSec=12h\n" in (units / "transcription-deadline.timer").read_text()
    settings = machine.root / "etc/transcription"
    assert (settings / "key.env").read_text() == "API_KEY=the-key\n"
    assert (settings / "server.env").read_text() == "AUDIO_BUCKET=b\n"
    assert {path.stat().st_mode & 0o777 for path in settings.iterdir()} == {0o600}
    assert "the-key" not in "".join([*calls, first.stdout, first.stderr, again.stdout, again.stderr])


def test_systemd_takes_the_units(machine: Machine) -> None:
    if not shutil.which("systemd-analyze"):
        pytest.skip("systemd-analyze is not installed")
    machine("boot")
    units = machine.root / "etc/systemd/system"
    (units / "docker.service").write_text("[Service]\nExecStart=/bin/true\n")
    for program in ("bin/true",):
        (machine.root / program).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(f"/{program}", machine.root / program)
    names = sorted(path.name for path in units.glob("transcription-*.*"))
    assert len(names) == 6
    command = ["systemd-analyze", "verify", f"--root={machine.root}", "--recursive-errors=no", *names]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, [line for line in done.stderr.splitlines() if "transcription" in line]) == (0, [])


def test_without_settings_for_a_worker_there_is_none(machine: Machine) -> None:
    machine("boot")
    assert not [call for call in machine.calls() if "worker.service" in call]


def test_a_local_disk_gets_dockers_data_and_dockers_own_settings_stay(machine: Machine) -> None:
    settings = machine.root / "etc/docker/daemon.json"
    settings.write_text('{"runtimes": {"nvidia": {}}}')

    machine("boot", DISK="/dev/nvme1n1 Amazon EC2 NVMe Instance Storage")

    calls = machine.calls()
    assert "mkfs.xfs -q /dev/nvme1n1" in calls
    assert f"mount /dev/nvme1n1 {machine.root}/mnt/local" in calls
    assert calls.index("systemctl restart docker.service") < calls.index(f"docker pull --quiet {IMAGE}")
    assert json.loads(settings.read_text()) == {"runtimes": {"nvidia": {}}, "data-root": "/mnt/local/docker"}


@pytest.mark.parametrize("gpu", ["", "1"])
def test_the_container_may_little_and_sees_the_gpu_where_there_is_one(machine: Machine, gpu: str) -> None:
    machine("server", GPU=gpu)
    machine("worker", GPU=gpu)
    server, worker = (call for call in machine.calls() if call.startswith("docker run"))
    for command, name in ((server, "server"), (worker, "worker")):
        for option in (
            *("--read-only", "--cap-drop ALL", "--security-opt no-new-privileges", "--pids-limit", "--pull never"),
            *("--log-driver awslogs", f"--log-opt awslogs-group=/{PREFIX}/{name}", "--log-opt awslogs-stream=i-0123"),
        ):
            assert option in command
        assert "--privileged" not in command
        assert "docker.sock" not in command
    assert ("--gpus all" in server) is bool(gpu)
    assert "--gpus" not in worker
    assert server.endswith(f"--publish 8000:8000 {IMAGE}")
    assert worker.endswith(f"{IMAGE} python -m batch_worker --until-idle")
    assert f"--env IDLE_TIMEOUT_MINUTES={VALUES['IDLE_TIMEOUT_MINUTES']}" in worker


def test_a_server_that_is_not_healthy_20_minutes_after_boot_has_its_instance_replaced(machine: Machine) -> None:
    machine.up(minutes=19)
    machine("finish")
    assert not [call for call in machine.calls() if call.startswith("aws autoscaling")]
    machine.up(minutes=20)
    machine("finish")
    (call,) = [call for call in machine.calls() if call.startswith("aws autoscaling")]
    assert call == (
        "aws autoscaling set-instance-health --instance-id i-0123 --health-status Unhealthy "
        "--no-should-respect-grace-period"
    )


def test_an_instance_ends_when_nobody_has_worked_for_long_and_not_before(machine: Machine) -> None:
    last_work = machine.root / "run/transcription/work"

    def finish(*, idle_minutes: float, **environment: str) -> bool:
        if last_work.exists():
            then = time.time() - idle_minutes * 60
            os.utime(last_work, (then, then))
        machine("finish", HEALTHY="1", **environment)
        return machine.left()

    machine("boot")
    assert not finish(idle_minutes=0)
    assert not finish(idle_minutes=9)
    assert not finish(idle_minutes=11, JOBS="total 1")  # one came and went since the last look
    assert not finish(idle_minutes=11, JOBS="in_flight 2.0")
    assert not finish(idle_minutes=11, JOBS="in_flight 2.0")  # a long one
    assert not finish(idle_minutes=11, STATE_OF_WORKER="activating")  # between two tries
    assert not finish(idle_minutes=11, STATE_OF_WORKER="active")  # that one ends it, and looks before it does
    assert not finish(idle_minutes=9)
    assert finish(idle_minutes=11)


def test_an_instance_that_the_group_must_have_stays_and_one_that_cannot_leave_switches_itself_off(
    machine: Machine,
) -> None:
    minimum = "Terminating instance without replacement will violate group's min size constraint."
    machine("leave", "why", REFUSED=minimum)
    assert "systemctl poweroff" not in machine.calls()
    machine("leave", "why", REFUSED="Could not connect to the endpoint URL")
    calls = machine.calls()
    assert len([call for call in calls if call.startswith("aws autoscaling terminate")]) == 5
    assert calls[-1] == "systemctl poweroff"
    machine("fail", "why", REFUSED="Could not connect to the endpoint URL")
    calls = machine.calls()
    assert len([call for call in calls if call.startswith("aws autoscaling set-instance-health")]) == 5
    assert calls[-1] == "systemctl poweroff"


# From outside: what goes wrong ---------------------------------------------------------------------------------------

CLI = (
    WORDS_OF_CALL
    + """\
printf '%s\\n' "${words[*]}" >>"$CALLS"
answer="$ANSWERS/${words[0]} ${words[1]}"
[[ -e $answer ]] || { echo "An error occurred (NoSuchEntity) when calling it" >&2; exit 254; }
if [[ ${words[1]} == get-object ]]; then
  cp "$answer" "${words[${#words[@]} - 1]}"
else
  cat "$answer"
fi
"""
)

WELL = {
    "sts get-caller-identity": "111111111111\tarn:aws:iam::111111111111:user/me",
    "ecr describe-images": "sha256:1",
    "iam get-instance-profile": f"{PREFIX}-gpu-instance",
    "ssm get-parameter": "ami-1",
    "ec2 describe-images": "/dev/xvda",
    "ec2 describe-subnets": "subnet-1\tvpc-1\tTrue",
    "ec2 describe-security-groups": f"sg-1\t{GROUP}\t{PREFIX}",
    "ec2 describe-launch-templates": f"{GROUP}\t{PREFIX}",
    "ec2 describe-launch-template-versions": "made from something else",
    "autoscaling describe-auto-scaling-groups": f"{GROUP}\t{PREFIX}",
}

Outside = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def outside(tmp_path: Path) -> Outside:
    """Runs a step against a stand-in for AWS, which gives the answers WELL but for those given (None: not there)."""
    program, answers = tmp_path / "aws", tmp_path / "answers"
    program.write_text(CLI)
    program.chmod(0o755)
    answers.mkdir()
    (tmp_path / "env").write_text("AWS_REGION=us-east-2\n")

    def run(
        number: str, *arguments: str, answer: dict[str, str | None] | None = None, **settings: str
    ) -> subprocess.CompletedProcess[str]:
        for name, text in {**WELL, **(answer or {})}.items():
            if text is not None:
                (answers / name).write_text(text)
        (script,) = SCRIPTS.glob(f"step-{number}-*.sh")
        environment = {
            "PATH": os.environ["PATH"],
            "AWS_CLI": str(program),
            "CALLS": str(tmp_path / "calls"),
            "ANSWERS": str(answers),
            "ENV_FILE": str(tmp_path / "env"),
            "FAST_API_ECR_REPOSITORY_URI": IMAGE.partition(":")[0],
            "FAST_API_TAG": "v1",
        }
        return subprocess.run(
            ["bash", script, "--yes", *arguments],
            env={**environment, **settings},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    return run


@pytest.mark.parametrize(
    ("answer", "settings", "says"),
    [
        ({}, {"CLIENT_CIDR": "0.0.0.0/0"}, "CLIENT_CIDR=0.0.0.0/0 admits the whole internet"),
        ({}, {"CLIENT_CIDR": "::/0"}, "CLIENT_CIDR=::/0 admits the whole internet"),
        ({}, {"FAST_API_TAG": ""}, "infra/scripts/step-312-build-image.sh"),
        ({"ecr describe-images": None}, {}, "infra/scripts/step-313-push-image.sh"),
        (
            {},
            {"FAST_API_ECR_REPOSITORY_URI": "111111111111.dkr.ecr.us-east-2.amazonaws.com/other"},
            f"push the image to 111111111111.dkr.ecr.us-east-2.amazonaws.com/{PREFIX}-server",
        ),
        ({"iam get-instance-profile": None}, {}, "infra/scripts/step-010-setup-iam-permissions.sh"),
        ({"ssm get-parameter": None}, {}, "there is no public parameter /aws/service/deeplearning/ami/"),
        ({"ec2 describe-images": None}, {}, "there is no machine image ami-1"),
        ({"ec2 describe-subnets": ""}, {}, "aws ec2 create-default-vpc --region us-east-2"),
        ({"ec2 describe-subnets": ""}, {"VPC_ID": "vpc-2"}, "vpc-2 has no subnet in us-east-2"),
    ],
)
def test_what_is_missing_is_named_before_anything_is_made(
    outside: Outside, answer: dict[str, str | None], settings: dict[str, str], says: str, tmp_path: Path
) -> None:
    done = outside("320", answer=answer, **settings)
    assert done.returncode == 1
    assert says in done.stderr
    noted = tmp_path / "calls"
    calls = noted.read_text().splitlines() if noted.exists() else []
    assert not [call for call in calls if not call.split()[1].startswith(("get-", "describe-"))]


def test_a_configuration_that_no_fleet_can_have_is_refused_setting_by_setting(outside: Outside) -> None:
    wrong = {
        "CLIENT_CIDR": "0.0.0.0/0",
        "MIN_INSTANCES": "3",  # more than MAX_INSTANCES
        "INSTANCE_TYPES": "g4dn",
        "ON_DEMAND_PERCENT": "101",
        "ROUTER_SUBNETS": "10.0.0.0/8",
    }
    done = outside("001", AUDIO_BUCKET="bucket", **wrong)
    assert done.returncode == 1
    named = re.findall(r"wrong  (\w+) is", done.stderr)
    assert sorted(named) == sorted(wrong)


@pytest.mark.parametrize(
    ("kind", "answer"),
    [
        ("security group", {"ec2 describe-security-groups": f"sg-1\t{GROUP}\tNone"}),
        ("launch template", {"ec2 describe-launch-templates": f"{GROUP}\tanother"}),
        ("Auto Scaling group", {"autoscaling describe-auto-scaling-groups": f"{GROUP}\tNone"}),
    ],
)
def test_what_has_our_name_and_is_someone_elses_stays_as_it_is(
    outside: Outside, kind: str, answer: dict[str, str | None]
) -> None:
    done = outside("320", "--dry-run", answer=answer)
    assert done.returncode == 1
    assert f"{kind} {PREFIX}-" in done.stderr
    assert "belongs to something else" in done.stderr
    assert "choose another QUEUE_PREFIX" in done.stderr
    assert f"would run: aws {kind.lower().replace(' ', '-')}" not in done.stderr


def test_a_template_made_from_something_else_gets_a_new_version_and_a_quota_of_nothing_is_named(
    outside: Outside,
) -> None:
    done = outside("320", "--dry-run", answer={"service-quotas get-service-quota": "0.0"}, ON_DEMAND_PERCENT="50")
    assert done.returncode == 0, done.stderr
    assert f"aws ec2 create-launch-template-version --launch-template-name {GROUP}" in done.stderr
    assert f"aws ec2 modify-launch-template --launch-template-name {GROUP} --default-version" in done.stderr
    for code in ("L-DB2E81BA", "L-3819A6DF"):
        assert f"request-service-quota-increase --region us-east-2 --service-code ec2 --quota-code {code} " in (
            done.stderr
        )


INSTANCE = "i-1\tg5.xlarge\tspot\t{launched}\trunning"
ASKED = {"ssm send-command": "c-1", "ssm wait": "", "autoscaling describe-auto-scaling-groups": "2\t1"}


@pytest.mark.parametrize(
    ("answer", "launched", "status", "says"),
    [
        ({"ssm get-command-invocation": '{"status":"ready"} (HTTP 200)'}, "2026-01-01T00:00:00Z", 0, "is healthy"),
        ({"ssm get-command-invocation": '{"reason":"loading"} (HTTP 503)'}, "2026-01-01T00:00:00Z", 1, '"loading"'),
        ({"ssm send-command": None}, "2026-01-01T00:00:00+00:00", 1, "aws ssm start-session --region us-east-2"),
        ({"ssm send-command": None}, "2999-01-01T00:00:00.000Z", 0, "still starting"),
        ({"ec2 describe-instances": "", "autoscaling describe-auto-scaling-groups": "2\t0"}, "", 0, "costs, nothing"),
        (
            {"ec2 describe-instances": "", "autoscaling describe-scaling-activities": "MaxSpotInstanceCountExceeded"},
            "",
            1,
            "wants 1 instances and has none: MaxSpotInstanceCountExceeded",
        ),
        ({"autoscaling describe-auto-scaling-groups": "None"}, "", 1, "step-320-launch-gpu-instances.sh"),
    ],
)
def test_health_says_how_each_instance_is(
    outside: Outside, answer: dict[str, str | None], launched: str, status: int, says: str
) -> None:
    running = {"ec2 describe-instances": INSTANCE.format(launched=launched)}
    done = outside("326", answer={**ASKED, **running, **answer}, API_KEY="never-printed")
    assert done.returncode == status, done.stderr
    assert says in done.stderr
    assert "never-printed" not in done.stdout + done.stderr


HELLO = {"s3api head-bucket": "", "s3api put-object": "", "s3api delete-objects": ""}


def test_a_transcript_that_comes_is_printed_and_nothing_is_left(outside: Outside, tmp_path: Path) -> None:
    transcript = json.dumps({"text": "Hello and welcome.", "model": "tiny.en", "route": "direct"})
    server = {"FAST_API_SERVER_URL": "https://server.example"}
    done = outside("330", answer={**HELLO, "s3api get-object": transcript}, **server)
    assert done.returncode == 0, done.stderr
    assert done.stdout == "Hello and welcome.\n"
    assert "seconds by tiny.en, route direct" in done.stderr
    calls = (tmp_path / "calls").read_text().splitlines()
    assert "delete-objects" in calls[-1]
    assert "{Key=users/step-330/audio/sessions/hello/chunk-001.wav}" in calls[-1]
    assert "{Key=users/step-330/transcripts/hello-chunk-001.json}" in calls[-1]


def test_without_a_server_the_job_waits_for_the_batch_and_its_audio_with_it(outside: Outside, tmp_path: Path) -> None:
    done = outside("330", answer=HELLO)
    assert done.returncode == 0, done.stderr
    assert f"the job waits in the queue {PREFIX}-jobs for the next batch" in done.stderr
    assert "put-object" in (tmp_path / "calls").read_text().splitlines()[-1]


def test_a_transcript_that_does_not_come_is_no_success(outside: Outside) -> None:
    server = {"FAST_API_SERVER_URL": "https://server.example", "TRANSCRIPT_TIMEOUT": "0"}
    done = outside("330", answer=HELLO, **server)
    assert done.returncode == 1
    assert "no transcript after 0 seconds" in done.stderr


# The real scripts, against the emulator ------------------------------------------------------------------------------


@pytest.fixture
def fleet(deployed: Step, aws: Aws, tmp_path: Path) -> Iterator[Step]:
    """Runs the fleet's steps with a configuration of its own; at the end the group and its instances are gone."""
    ecr = aws("ecr")
    uri, _, tag = IMAGE.partition(":")
    repository = uri.partition("/")[2]
    if repository not in [one["repositoryName"] for one in ecr.describe_repositories()["repositories"]]:
        ecr.create_repository(repositoryName=repository, tags=[{"Key": "Project", "Value": PREFIX}])
    ecr.put_image(repositoryName=repository, imageTag=tag, imageManifest=json.dumps({"schemaVersion": 2}))
    env_file = tmp_path / "env"
    shutil.copy(deployed.env_file, env_file)
    image = {"FAST_API_ECR_REPOSITORY_URI": uri, "FAST_API_TAG": tag, "WHISPER_MODEL": "small"}
    yield Step(env_file, {**deployed.environment, **image})
    if aws("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[GROUP])["AutoScalingGroups"]:
        aws("autoscaling").delete_auto_scaling_group(AutoScalingGroupName=GROUP, ForceDelete=True)


def admitted(aws: Aws) -> list[Any]:
    """Who may reach the servers' port."""
    groups = aws("ec2").describe_security_groups(Filters=[{"Name": "group-name", "Values": [GROUP]}])["SecurityGroups"]
    return [
        (rule["FromPort"], rule["ToPort"], [pair["GroupId"] for pair in rule["UserIdGroupPairs"]], rule["IpRanges"])
        for rule in groups[0]["IpPermissions"]
    ]


@integration
def test_the_fleet_is_set_up_and_an_instance_is_as_the_template_says(fleet: Step, aws: Aws) -> None:
    first = fleet("320", CLIENT_CIDR="203.0.113.7/32")
    assert first.returncode == 0, first.stderr
    ec2, autoscaling = aws("ec2"), aws("autoscaling")
    (router,) = ec2.describe_security_groups(Filters=[{"Name": "group-name", "Values": [f"{PREFIX}-router"]}])[
        "SecurityGroups"
    ]
    ((low, high, groups, ranges),) = admitted(aws)
    assert (low, high, groups) == (8000, 8000, [router["GroupId"]])
    assert [one["CidrIp"] for one in ranges] == ["203.0.113.7/32"]
    assert router["IpPermissions"] == []
    assert fleet.settings()["GPU_SERVER_TAG"] == f"Name={GROUP}"
    autoscaling.set_desired_capacity(AutoScalingGroupName=GROUP, DesiredCapacity=1)

    again = fleet("320")

    assert again.returncode == 0, again.stderr
    assert [ranges for *_, ranges in admitted(aws)] == [[]]  # the network that is named no longer is out
    (template,) = ec2.describe_launch_templates(LaunchTemplateNames=[GROUP])["LaunchTemplates"]
    assert template["LatestVersionNumber"] == template["DefaultVersionNumber"] == 1
    (group,) = autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[GROUP])["AutoScalingGroups"]
    assert (group["MinSize"], group["MaxSize"], group["DesiredCapacity"]) == (0, 2, 1)
    policy = group["MixedInstancesPolicy"]
    assert policy["InstancesDistribution"]["SpotAllocationStrategy"] == "price-capacity-optimized"
    types = [one["InstanceType"] for one in policy["LaunchTemplate"]["Overrides"]]
    assert types == ["g4dn.xlarge", "g5.xlarge", "g6.xlarge"]
    parameter = aws("ssm").get_parameter(Name=f"/{PREFIX}/server-env")["Parameter"]["Value"].splitlines()
    assert "WHISPER_MODEL=small" in parameter
    assert not [line for line in parameter if line.startswith("API_KEY")]
    id = group["Instances"][0]["InstanceId"]
    check_instance(fleet, aws, id)
    leave_as_the_instances_role(fleet, aws, id)


def check_instance(fleet: Step, aws: Aws, id: str) -> None:
    ec2 = aws("ec2")
    (instance,) = ec2.describe_instances(InstanceIds=[id])["Reservations"][0]["Instances"]
    tags = {tag["Key"]: tag["Value"] for tag in instance["Tags"]}
    assert (instance["InstanceType"], instance["InstanceLifecycle"]) == ("g4dn.xlarge", "spot")
    assert (tags["Name"], tags["Project"]) == (GROUP, PREFIX)
    assert instance["IamInstanceProfile"]["Arn"].endswith(f":instance-profile/{PREFIX}-gpu-instance")
    assert [group["GroupName"] for group in instance["SecurityGroups"]] == [GROUP]
    assert instance["MetadataOptions"]["HttpTokens"] == "required"
    assert not instance.get("KeyName")
    (volume,) = ec2.describe_volumes(Filters=[{"Name": "attachment.instance-id", "Values": [id]}])["Volumes"]
    assert (volume["Encrypted"], volume["VolumeType"], volume["Size"]) == (True, "gp3", 100)
    encoded = ec2.describe_instance_attribute(InstanceId=id, Attribute="userData")["UserData"]["Value"]
    user_data = base64.b64decode(encoded).decode()
    assert f"IMAGE={IMAGE}\n" in user_data
    assert len(user_data) < 16 * 1024  # the most that EC2 takes
    assert fleet.settings()["API_KEY"] not in user_data
    subprocess.run(["bash", "-n"], input=user_data, text=True, check=True)

    health = fleet("326")

    assert health.returncode == 0, health.stderr
    assert f"{id} (g4dn.xlarge, spot, running, up for 0 minutes)" in health.stderr


def leave_as_the_instances_role(fleet: Step, aws: Aws, id: str) -> None:
    role = f"arn:aws:iam::{stack.ACCOUNT}:role/{PREFIX}-gpu-instance"
    keys = aws("sts").assume_role(RoleArn=role, RoleSessionName=id)["Credentials"]
    session = boto3.Session(keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"], REGION)
    as_instance = session.client("autoscaling", endpoint_url=fleet.environment["AWS_ENDPOINT_URL"])
    as_instance.set_instance_protection(AutoScalingGroupName=GROUP, InstanceIds=[id], ProtectedFromScaleIn=True)
    as_instance.terminate_instance_in_auto_scaling_group(InstanceId=id, ShouldDecrementDesiredCapacity=True)
    (group,) = aws("autoscaling").describe_auto_scaling_groups(AutoScalingGroupNames=[GROUP])["AutoScalingGroups"]
    assert (group["DesiredCapacity"], group["Instances"]) == (0, [])
    with pytest.raises(ClientError, match="not authorized"):
        as_instance.set_desired_capacity(AutoScalingGroupName=GROUP, DesiredCapacity=2)


@integration
def test_the_router_goes_into_the_subnets_that_are_named_and_out_of_them_again(deployed: Step, aws: Aws) -> None:
    ec2 = aws("ec2")
    (subnet, *_) = ec2.describe_subnets()["Subnets"]
    filters = [{"Name": "group-name", "Values": [f"{PREFIX}-router"]}]
    if not ec2.describe_security_groups(Filters=filters)["SecurityGroups"]:
        tags = [{"ResourceType": "security-group", "Tags": [{"Key": "Project", "Value": PREFIX}]}]
        ec2.create_security_group(
            GroupName=f"{PREFIX}-router", Description="router", VpcId=subnet["VpcId"], TagSpecifications=tags
        )
    (group,) = ec2.describe_security_groups(Filters=filters)["SecurityGroups"]

    def network() -> tuple[list[str], list[str]]:
        found = aws("lambda").get_function_configuration(FunctionName=f"{PREFIX}-router").get("VpcConfig", {})
        return found.get("SubnetIds", []), found.get("SecurityGroupIds", [])

    assert network() == ([], [])
    done = deployed("340", ROUTER_SUBNETS=subnet["SubnetId"])
    assert done.returncode == 0, done.stderr
    assert network() == ([subnet["SubnetId"]], [group["GroupId"]])
    done = deployed("340")
    assert done.returncode == 0, done.stderr
    assert network() == ([], [])
