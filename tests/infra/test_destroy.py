"""From nothing to a deployment and back to nothing: the driver of the steps, the deployer's policies, and step 999."""

import json
import os
import pty
import re
import shutil
import subprocess
from collections.abc import Callable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from infra.local import stack
from infra.scripts.lib.documents import rendered
from tests.infra.conftest import REGION, SCRIPTS, WORDS_OF_CALL, Aws, Step, until
from tests.infra.test_policies import as_list, outcome

PREFIX = "short-lived"
BUCKET = f"{PREFIX}-audio-{stack.ACCOUNT}"
VALUES = {
    "PARTITION": "aws",
    "REGION": REGION,
    "ACCOUNT": stack.ACCOUNT,
    "QUEUE_PREFIX": PREFIX,
    "AUDIO_BUCKET": BUCKET,
    "EVENT_BUS_NAME": "default",
}
DESTROY = next(SCRIPTS.glob("step-999-*.sh"))
integration = pytest.mark.integration


# The driver ---------------------------------------------------------------------------------------------------------


class Driver:
    """deploy.sh with four steps that only say that they ran; those in the folder `broken` fail."""

    def __init__(self, home: Path) -> None:
        self.home = home
        scripts = home / "infra/scripts"
        (scripts / "lib").mkdir(parents=True)
        (home / "broken").mkdir()
        for name in ("deploy.sh", "lib/common.sh"):
            shutil.copy(SCRIPTS / name, scripts / name)
        for name in ("000-setup", "011-validate-it", "020-create", "361-last", "999-destroy"):
            (scripts / f"step-{name}.sh").write_text(
                f'echo "{name[:3]} $*" >>{home}/ran\n'
                f'[[ ! -e {home}/broken/{name[:3]} ]] || {{ echo "because of that" >&2; exit 1; }}\n'
            )
        self.script = scripts / "deploy.sh"

    def __call__(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        (self.home / "ran").write_text("")
        return subprocess.run(
            ["bash", self.script, *arguments],
            env={"PATH": os.environ["PATH"], "ENV_FILE": str(self.home / "env"), "AWS_REGION": REGION, **environment},
            capture_output=True,
            text=True,
            check=False,
        )

    def ran(self) -> list[str]:
        return [line.strip() for line in (self.home / "ran").read_text().splitlines()]


@pytest.fixture
def driver(tmp_path: Path) -> Driver:
    return Driver(tmp_path)


def test_a_deployment_stops_where_it_fails_and_goes_on_there(driver: Driver) -> None:
    broken = driver.home / "broken/020"
    broken.touch()
    failed = driver("all")
    assert failed.returncode == 1
    assert driver.ran() == ["000", "011", "020"]
    assert "[3/4]" in failed.stderr
    assert "because of that" in failed.stderr
    assert "next  make deploy goes on at step-020; FROM=000 make deploy starts over" in failed.stderr

    broken.unlink()
    assert "goes on at step-020" in driver("all").stderr
    assert driver.ran() == ["020", "361"]
    assert driver("all").returncode == 0
    assert driver.ran() == ["000", "011", "020", "361"]  # it went through, so from the start


def test_where_to_start_is_the_persons_choice_and_belongs_to_one_deployment(driver: Driver) -> None:
    (driver.home / "broken/020").touch()
    driver("all")
    (driver.home / "broken/020").unlink()
    driver("all", "--dry-run")  # neither resumes nor forgets
    assert driver.ran() == ["000 --dry-run", "020 --dry-run", "361 --dry-run"]
    driver("000", "011")  # another way that does not come there
    assert driver.ran() == ["000", "011"]
    driver("all", QUEUE_PREFIX="another")
    assert driver.ran() == ["000", "011", "020", "361"]
    (driver.home / "broken/361").touch()
    driver("all", "--yes", FROM="011", SKIP="020")
    assert driver.ran() == ["011 --yes", "361 --yes"]
    driver("all", FROM="000")
    assert driver.ran() == ["000", "011", "020", "361"]


@pytest.mark.parametrize("arguments", [("12",), ("777",), (), ("--what", "all")])
def test_a_step_that_is_none_is_refused_before_anything_runs(driver: Driver, arguments: tuple[str, ...]) -> None:
    assert driver("000", *arguments).returncode == (1 if arguments else 0)
    assert driver.ran() == ([] if arguments else ["000"])


def test_the_core_is_the_same_for_people_and_for_the_local_stack() -> None:
    core = re.search(r'^CORE="([\d ]+)"$', (SCRIPTS / "deploy.sh").read_text(), re.MULTILINE)
    assert core
    assert [next(SCRIPTS.glob(f"step-{number}-*")).stem for number in core[1].split()] == list(stack.CORE_STEPS)


# What AWS says when it refuses, in words for a person ---------------------------------------------------------------

# Answers from files named after the call; what is deleted is gone, unless a file `no-…` says what to answer instead.
WORLD = (
    WORDS_OF_CALL
    + r"""call="${words[0]} ${words[1]}"
printf '%s\n' "${words[*]//$'\n'/ }" >>"$WORLD/calls"
if [[ -e "$WORLD/no-$call" ]]; then
  cat "$WORLD/no-$call" >&2
  exit 254
elif [[ ${words[1]} == delete-queue ]]; then
  echo "${words[3]}" >>"$WORLD/deleted"
elif [[ $call == "sqs list-queues" ]]; then
  grep -vf "$WORLD/deleted" "$WORLD/sqs list-queues"
elif [[ $call == "s3api delete-objects" ]]; then
  cp "$WORLD/next page" "$WORLD/s3api list-object-versions"
  : >"$WORLD/next page"
elif [[ $call == "s3api delete-bucket" ]]; then
  : >"$WORLD/s3api list-buckets"
elif [[ -e "$WORLD/$call ${words[3]##*/}" ]]; then
  cat "$WORLD/$call ${words[3]##*/}"
elif [[ -e "$WORLD/$call" ]]; then
  cat "$WORLD/$call"
elif [[ $call == "sts get-caller-identity" ]]; then
  printf '111111111111\tarn:aws:iam::111111111111:user/deployer\n'
elif [[ ${words[1]} =~ ^(get|describe|head) ]]; then
  echo "An error occurred (NoSuchEntity) when calling: (404)" >&2
  exit 254
fi
"""
)


class World:
    """Step 999 with a stand-in for AWS, in which there are queues and a bucket."""

    def __init__(self, home: Path) -> None:
        self.home = home
        program = home / "aws"
        program.write_text(WORLD)
        program.chmod(0o755)
        self.env_file = home / "env"
        self.env_file.write_text(
            f"AWS_REGION={REGION}\nQUEUE_PREFIX={PREFIX}\nAUDIO_BUCKET=recordings\nSQS_QUEUE_URL=https://q/{PREFIX}-jobs\n"
            "API_KEY=secret\nFAST_API_TAG=v1\nGPU_SERVER_TAG=Name=mine\nMINE=1\n"
        )
        self.has("sqs list-queues", "".join(f"https://q/{name}\thttps://q/{name}\n" for name in self.queues()))
        self.has("deleted", "")
        self.has("sqs list-queue-tags", PREFIX)
        self.has(f"sqs list-queue-tags {PREFIX}-2-jobs", f"{PREFIX}-2")
        self.has("sqs get-queue-attributes", "12 messages")
        self.has("s3api list-buckets", "recordings\trecordings\n")
        self.has("s3api get-bucket-tagging", PREFIX)
        self.has("s3api get-bucket-location", REGION)
        self.has("s3api list-objects-v2", "1000\n5\n")
        self.has("s3api list-object-versions", '{"Key": 1}\n{"Key": 2}\n')
        self.has("next page", '{"Key": 3}\n')

    @staticmethod
    def queues() -> list[str]:
        return [f"{PREFIX}-jobs", f"{PREFIX}-dlq", f"{PREFIX}-2-jobs"]

    def has(self, call: str, answer: str) -> None:
        (self.home / call).write_text(answer)

    def refuses(self, call: str, code: str, message: str) -> None:
        self.has(f"no-{call}", f"An error occurred ({code}) when calling the X operation: {message}\n")

    def destroy(self, *arguments: str, stdin: int = subprocess.DEVNULL, **environment: str) -> Any:
        return self.run(DESTROY.name, *arguments, stdin=stdin, **environment)

    def run(self, name: str, *arguments: str, stdin: int = subprocess.DEVNULL, **environment: str) -> Any:
        return subprocess.run(
            ["bash", SCRIPTS / name, *arguments],
            env={
                "PATH": os.environ["PATH"],
                "AWS_CLI": str(self.home / "aws"),
                "WORLD": str(self.home),
                "ENV_FILE": str(self.env_file),
                **environment,
            },
            stdin=stdin,
            capture_output=True,
            text=True,
            check=False,
        )

    def changes(self) -> list[str]:
        calls = (self.home / "calls").read_text().splitlines()
        return [call for call in calls if not re.match(r"\S+ (get|list|describe)-", call)]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


@pytest.mark.parametrize(
    ("call", "answer", "why", "next_"),
    [
        ("sts get-caller-identity", "Unable to locate credentials", "there are no credentials", "aws configure"),
        (
            "sts get-caller-identity",
            "An error occurred (ExpiredToken) when calling the GetCallerIdentity operation: The token is expired",
            "the credentials have expired",
            "aws sso login",
        ),
        (
            "sts get-caller-identity",
            "An error occurred (InvalidClientTokenId) when calling the GetCallerIdentity operation: invalid",
            f"AWS in {REGION} does not know these credentials",
            "aws configure",
        ),
        (
            "sqs list-queues",
            'Could not connect to the endpoint URL: "https://sqs.us-east-9.amazonaws.com/"',
            f"nothing answers at AWS in {REGION}",
            "AWS_REGION in ",
        ),
        (
            "lambda list-functions",
            "An error occurred (AccessDeniedException) when calling the ListFunctions operation: User: arn:aws:iam::1:"
            "user/me is not authorized to perform: lambda:ListFunctions on resource: * because no policy allows it",
            "these credentials may not lambda:ListFunctions",
            "infra/policies/deployer*.json",
        ),
        (
            "sqs list-queues",
            "An error occurred (RequestThrottled) when calling the ListQueues operation: Throttling: Rate exceeded",
            "AWS asks for fewer calls at a time",
            f"infra/scripts/{DESTROY.name}, again",
        ),
    ],
)
def test_a_refusal_is_explained_and_nothing_is_destroyed(
    world: World, call: str, answer: str, why: str, next_: str
) -> None:
    world.has(f"no-{call}", answer)
    done = world.destroy("--yes")
    assert done.returncode == 1
    assert answer in done.stderr  # AWS's own words too
    assert f"why  {why}" in done.stderr
    assert next_ in done.stderr.split("next  ")[1]
    assert world.changes() == []


def test_a_call_in_the_middle_of_a_step_is_explained_too(world: World) -> None:
    world.refuses("sqs create-queue", "OverLimit", "QuotaExceeded: too many queues")
    world.has("s3api get-bucket-notification-configuration", "{}")  # all goes well with the bucket beside them
    done = world.run("step-020-create-sqs-resources.sh")
    assert done.returncode == 1
    assert "why  a quota of this account is used up" in done.stderr
    assert done.stderr.count("failed  ") == 1  # the one that knows speaks


# Destroying, with the stand-in --------------------------------------------------------------------------------------


def test_it_names_what_it_found_and_keeps_the_recordings_and_other_peoples_things(world: World) -> None:
    done = world.destroy("--yes")
    assert done.returncode == 0, done.stderr
    assert f"queue {PREFIX}-jobs (12 messages)" in done.stderr
    assert f"queue {PREFIX}-2-jobs stays: it is someone else's" in done.stderr
    kept = "bucket recordings with its 1005 objects (DELETE_AUDIO=yes destroys it too)"
    assert kept in done.stderr
    assert done.stdout == f"left: nothing but {kept}\n"
    assert sorted(call.split("/")[-1] for call in world.changes()) == [f"{PREFIX}-dlq", f"{PREFIX}-jobs"]
    assert world.env_file.read_text() == (
        f"AWS_REGION={REGION}\nQUEUE_PREFIX={PREFIX}\nAUDIO_BUCKET=recordings\nSQS_QUEUE_URL=\n"
        "API_KEY=\nFAST_API_TAG=\nGPU_SERVER_TAG=Name=mine\nMINE=1\n"
    )


def test_the_recordings_go_only_when_that_is_said_every_page_of_their_versions(world: World) -> None:
    assert world.destroy("--yes", DELETE_AUDIO="true").returncode == 1
    done = world.destroy("--yes", DELETE_AUDIO="yes")
    assert done.returncode == 0, done.stderr
    assert done.stdout == "left: nothing\n"
    bucket = [call for call in world.changes() if call.startswith("s3api")]
    assert [call.split()[1] for call in bucket] == ["delete-objects", "delete-objects", "delete-bucket"]


def test_a_bucket_that_was_there_before_is_never_destroyed(world: World) -> None:
    world.refuses("s3api get-bucket-tagging", "NoSuchTagSet", "The TagSet does not exist")
    done = world.destroy("--yes", DELETE_AUDIO="yes")
    assert done.returncode == 0, done.stderr
    assert "bucket recordings stays: it was there before this project" in done.stderr
    assert not [call for call in world.changes() if call.startswith("s3api")]


def test_in_the_wrong_region_nothing_is_destroyed(world: World) -> None:
    world.has("s3api get-bucket-location", "eu-central-1")
    done = world.destroy("--yes")
    assert done.returncode == 1
    assert f"bucket recordings is in eu-central-1, AWS_REGION is {REGION}" in done.stderr
    assert f"next  AWS_REGION=eu-central-1 infra/scripts/{DESTROY.name}" in done.stderr
    assert world.changes() == []


def test_what_may_not_be_destroyed_is_named_and_the_rest_goes_all_the_same(world: World) -> None:
    world.has("sns list-topics", f"arn:aws:sns:{REGION}:1:{PREFIX}-alarms\tarn:aws:sns:{REGION}:1:{PREFIX}-alarms\n")
    world.has("sns list-tags-for-resource", PREFIX)
    world.refuses("sns delete-topic", "AuthorizationError", "User: me is not authorized to perform: SNS:DeleteTopic")
    done = world.destroy("--yes")
    assert done.returncode == 1
    assert done.stdout.startswith(f"left: topic {PREFIX}-alarms: An error occurred (AuthorizationError)")
    assert "ask for the policies infra/policies/deployer*.json" in done.stderr
    assert len([call for call in world.changes() if "delete-queue" in call]) == 2
    assert "API_KEY=secret" in world.env_file.read_text()  # it is not over


def test_a_dry_run_destroys_nothing(world: World) -> None:
    before = world.env_file.read_text()
    done = world.destroy("--dry-run", DELETE_AUDIO="yes")
    assert done.returncode == 0, done.stderr
    assert "would run: aws s3api delete-bucket" in done.stderr
    assert done.stderr.count("would run: aws sqs delete-queue") == 2
    assert world.changes() == []
    assert world.env_file.read_text() == before


@pytest.mark.parametrize(("answer", "destroyed"), [(None, False), ("yes", False), (PREFIX, True)])
def test_a_person_must_type_the_prefix(world: World, answer: str | None, destroyed: bool) -> None:
    if answer is None:
        done = world.destroy()
        assert "there is nobody to ask" in done.stderr
    else:
        ours, theirs = pty.openpty()
        os.write(ours, f"{answer}\n".encode())
        done = world.destroy(stdin=theirs)
        os.close(ours)
        os.close(theirs)
    assert (done.returncode == 0) is destroyed
    assert bool(world.changes()) is destroyed


def test_the_page_tells_of_every_step() -> None:
    page = (stack.ROOT / "docs/deploy.md").read_text()
    steps = [path.name[5:8] for path in SCRIPTS.glob("step-*.sh")]
    assert [number for number in steps if not re.search(rf"\b{number}\b", page)] == []


# The deployer's policies ---------------------------------------------------------------------------------------------


DOCUMENTS = [stack.ROOT / f"infra/policies/{name}.json" for name in ("deployer", "deployer-instances")]


def statements() -> list[dict[str, Any]]:
    documents = [json.loads(rendered(path.read_text(), VALUES)) for path in DOCUMENTS]
    return [statement for document in documents for statement in document["Statement"]]


# Where the action has not the name of the command.
ACTIONS = {
    "s3:HeadBucket": "s3:ListBucket",
    "s3:ListObjectsV2": "s3:ListBucket",
    "s3:ListObjectVersions": "s3:ListBucketVersions",
    "s3:ListBuckets": "s3:ListAllMyBuckets",
    "s3:DeleteObjects": "s3:DeleteObject",
    "s3:GetBucketEncryption": "s3:GetEncryptionConfiguration",
    "s3:PutBucketEncryption": "s3:PutEncryptionConfiguration",
    "s3:GetBucketLifecycleConfiguration": "s3:GetLifecycleConfiguration",
    "s3:PutBucketLifecycleConfiguration": "s3:PutLifecycleConfiguration",
    "s3:GetBucketNotificationConfiguration": "s3:GetBucketNotification",
    "s3:PutBucketNotificationConfiguration": "s3:PutBucketNotification",
    "s3:GetPublicAccessBlock": "s3:GetBucketPublicAccessBlock",
    "s3:PutPublicAccessBlock": "s3:PutBucketPublicAccessBlock",
    "s3:HeadObject": "s3:GetObject",
    "lambda:Invoke": "lambda:InvokeFunction",
    "ecr:GetLoginPassword": "ecr:GetAuthorizationToken",
    "budgets:DescribeBudget": "budgets:ViewBudget",
    "budgets:CreateBudget": "budgets:ModifyBudget",
    "budgets:DeleteBudget": "budgets:ModifyBudget",
    "budgets:UpdateBudget": "budgets:ModifyBudget",
    "iam:WaitRoleExists": "iam:GetRole",
    "lambda:WaitFunctionActiveV2": "lambda:GetFunction",
    "lambda:WaitFunctionUpdatedV2": "lambda:GetFunction",
    "ec2:WaitSecurityGroupExists": "ec2:DescribeSecurityGroups",
    "ssm:WaitCommandExecuted": "ssm:GetCommandInvocation",
}
# What a person is told to do, not what a script does.
ADVICE = {
    *("ec2:CreateDefaultSubnet", "ec2:CreateDefaultVpc", "logs:Tail"),
    "servicequotas:RequestServiceQuotaIncrease",
}
SERVICES = {"s3api": "s3", "service-quotas": "servicequotas"}
COMMAND = re.compile(
    r"(?:\b(?:aws|change|look_up|found|ask|remove)|\brows [a-z-]+)\s+"
    r"(autoscaling|budgets|cloudwatch|ec2|ecr|events|iam|kms|lambda|logs|s3api|scheduler|service-quotas|sns|sqs|ssm)\s+"
    r"((?:wait )?[a-z0-9-]+)"
)


def test_the_deployer_may_make_every_call_of_the_scripts_and_no_other() -> None:
    allowed = {action for one in statements() for action in as_list(one["Action"])}
    needed = set()
    for path in SCRIPTS.rglob("*.sh"):
        for service, command in COMMAND.findall(path.read_text()):
            name = "".join(word.capitalize() for word in command.replace("wait ", "wait-").split("-"))
            action = f"{SERVICES.get(service, service)}:{name}"
            needed.add(ACTIONS.get(action, action))
    assert {action for action in needed if not any(fnmatch(action, pattern) for pattern in allowed)} <= ADVICE
    # What AWS asks for besides: tags at creation, passing of roles, instances by Auto Scaling, a function's network,
    # and layers by docker push.
    besides = re.compile(
        r"iam:(PassRole|CreateServiceLinkedRole|Tag.*)|s3:(PutBucketOwnershipControls|DeleteObjectVersion)"
        r"|ec2:(CreateTags|DescribeVpcs|RunInstances)|autoscaling:CreateOrUpdateTags|scheduler:(Create|Update)Schedule"
        r"|(sqs|lambda|logs|events|sns|kms|cloudwatch):Tag.*|ssm:AddTagsToResource"
        r"|ecr:(BatchCheckLayerAvailability|BatchGetImage|CompleteLayerUpload|GetDownloadUrlForLayer"
        r"|InitiateLayerUpload|PutImage|UploadLayerPart)"
    )
    unused = {pattern for pattern in allowed if not any(fnmatch(action, pattern) for action in needed)}
    assert {action for action in unused if not besides.fullmatch(action)} == set()


def test_the_deployer_names_what_aws_can_name() -> None:
    for statement in statements():
        actions = as_list(statement["Action"])
        # All that can be read of one thing of ours; whoever sets it may see it.
        assert {action for action in actions if "*" in action} <= {"s3:GetBucket*", "lambda:Get*"}
        assert "iam:PassRole" not in actions or list(statement["Condition"]["StringEquals"]) == ["iam:PassedToService"]
        if statement["Sid"] in ("OfAwsItself", "RolesOfAwsItself", "Quota", "TheirVpc"):
            continue
        for resource in as_list(statement["Resource"]):
            if PREFIX not in resource and not resource.endswith("event-bus/default"):
                # AWS names it, or nothing: then it is held by its tag, or only looked at.
                looking = re.compile(r"\w+:(Describe|List|Get|TestEventPattern)\w*")
                assert "Condition" in statement or all(looking.fullmatch(action) for action in actions), resource


def test_the_deployers_policies_are_no_longer_than_a_managed_policy_may_be() -> None:
    # https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_iam-quotas.html: characters but white space
    longest = {**VALUES, "QUEUE_PREFIX": "x" * 40, "AUDIO_BUCKET": "x" * 63}
    for path in DOCUMENTS:
        assert len(rendered(path.read_text(), longest)) <= 6_144, path


# The whole, with IAM enforced ------------------------------------------------------------------------------------

# Where the emulator asks for another resource, or another action, than AWS does.
ONLY_HERE = {
    "the ARN of a rule on the default bus has the bus's name": (
        ["events:PutRule", "events:DescribeRule", "events:DeleteRule"],
        f"arn:aws:events:{REGION}:{stack.ACCOUNT}:rule/default/{PREFIX}-*",
    ),
    "targets are the bus's, not the rule's": (
        ["events:PutTargets", "events:RemoveTargets", "events:ListTargetsByRule", "events:ListTagsForResource"],
        "*",
    ),
    "no name is read from these": (
        ["lambda:CreateFunction", "ssm:GetParametersByPath", "sqs:ListQueueTags", "logs:ListTagsForResource"],
        "*",
    ),
    "instance profiles have no ARN, or their role's": (
        ["iam:CreateInstanceProfile", "iam:GetInstanceProfile", "iam:DeleteInstanceProfile"],
        "*",
    ),
    "the tags of a resource are not seen": (
        [
            *("ec2:DeleteLaunchTemplate", "ec2:DeleteSecurityGroup", "ec2:TerminateInstances"),
            *("kms:DeleteAlias", "kms:DescribeKey", "kms:ListResourceTags", "kms:ScheduleKeyDeletion"),
        ],
        "*",
    ),
    "nor is the name of what is looked at or deleted": (
        [
            *("cloudwatch:DeleteAlarms", "cloudwatch:DeleteDashboards", "cloudwatch:ListTagsForResource"),
            *("ecr:ListTagsForResource", "sns:ListTagsForResource", "iam:SimulatePrincipalPolicy"),
        ],
        "*",
    ),
    "roles of a profile": (
        ["iam:AddRoleToInstanceProfile", "iam:RemoveRoleFromInstanceProfile"],
        f"arn:aws:iam::{stack.ACCOUNT}:role/{PREFIX}-gpu-instance",
    ),
    "budgets have actions of the API's names": (["budgets:DescribeBudget", "budgets:DeleteBudget"], "*"),
}


@pytest.fixture(scope="module")
def deployer(aws: Aws, emulator: stack.Emulator, cli: dict[str, str]) -> dict[str, str]:
    """The environment of a role that has the deployer's policies, and nothing else but what only the emulator wants."""
    extra = [{"Effect": "Allow", "Action": actions, "Resource": resource} for actions, resource in ONLY_HERE.values()]
    trust = {
        "Version": "2012-10-17",
        "Statement": [{"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"AWS": stack.ACCOUNT}}],
    }
    policy = {"Version": "2012-10-17", "Statement": statements() + extra}
    role = aws("iam").create_role(RoleName="a-deployer", AssumeRolePolicyDocument=json.dumps(trust))["Role"]["Arn"]
    aws("iam").put_role_policy(RoleName="a-deployer", PolicyName="deployer", PolicyDocument=json.dumps(policy))
    keys = aws("sts").assume_role(RoleArn=role, RoleSessionName="test")["Credentials"]
    return {
        "AWS_ENDPOINT_URL": emulator.endpoint,
        "AWS_REGION": REGION,
        "AWS_DEFAULT_REGION": REGION,
        "AWS_ACCESS_KEY_ID": keys["AccessKeyId"],
        "AWS_SECRET_ACCESS_KEY": keys["SecretAccessKey"],
        "AWS_SESSION_TOKEN": keys["SessionToken"],
        **cli,
    }


def everything(aws: Aws) -> set[str]:
    """The names of all that there is in the account, of whatever kind a step may make."""
    found: set[str] = set()

    def add(kind: str, names: Any) -> None:
        found.update(f"{kind} {name}" for name in names)

    ec2, events, iam = aws("ec2"), aws("events"), aws("iam")
    add("bucket", [one["Name"] for one in aws("s3").list_buckets()["Buckets"]])
    add("queue", aws("sqs").list_queues().get("QueueUrls", []))
    add("function", [one["FunctionName"] for one in aws("lambda").list_functions()["Functions"]])
    for bus in events.list_event_buses()["EventBuses"]:
        add("bus", [bus["Name"]])
        add("rule", [one["Arn"] for one in events.list_rules(EventBusName=bus["Name"])["Rules"]])
    add("schedule", [one["Name"] for one in aws("scheduler").list_schedules()["Schedules"]])
    add("role", [one["RoleName"] for one in iam.list_roles()["Roles"]])
    add("profile", [one["InstanceProfileName"] for one in iam.list_instance_profiles()["InstanceProfiles"]])
    add("parameter", [one["Name"] for one in aws("ssm").describe_parameters()["Parameters"]])
    add("log group", [one["logGroupName"] for one in aws("logs").describe_log_groups()["logGroups"]])
    add("repository", [one["repositoryName"] for one in aws("ecr").describe_repositories()["repositories"]])
    alarms = aws("cloudwatch").describe_alarms()
    add("alarm", [one["AlarmName"] for one in alarms["MetricAlarms"] + alarms.get("CompositeAlarms", [])])
    add("dashboard", [one["DashboardName"] for one in aws("cloudwatch").list_dashboards()["DashboardEntries"]])
    add("topic", [one["TopicArn"] for one in aws("sns").list_topics()["Topics"]])
    add("key", [one["AliasName"] for one in aws("kms").list_aliases()["Aliases"]])
    add("budget", [one["BudgetName"] for one in aws("budgets").describe_budgets(AccountId=stack.ACCOUNT)["Budgets"]])
    add("template", [one["LaunchTemplateName"] for one in ec2.describe_launch_templates()["LaunchTemplates"]])
    add("security group", [one["GroupId"] for one in ec2.describe_security_groups()["SecurityGroups"]])
    groups = aws("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"]
    add("scaling group", [one["AutoScalingGroupName"] for one in groups])
    instances = [one for each in ec2.describe_instances()["Reservations"] for one in each["Instances"]]
    add("instance", [one["InstanceId"] for one in instances if one["State"]["Name"] not in ("terminated",)])
    return found


def what_the_other_steps_make(aws: Aws) -> None:
    """Image, instances, batch and monitoring, as steps 301 to 361 leave them; half of a name is enough here."""
    tags = [{"Key": "Project", "Value": PREFIX}]
    aws("ecr").create_repository(repositoryName=f"{PREFIX}-server", tags=tags)
    aws("ecr").put_image(repositoryName=f"{PREFIX}-server", imageManifest='{"schemaVersion": 2}', imageTag="v1")
    ec2 = aws("ec2")
    groups = []
    for name in ("gpu", "router"):
        made = ec2.create_security_group(
            GroupName=f"{PREFIX}-{name}",
            Description="test",
            TagSpecifications=[{"ResourceType": "security-group", "Tags": tags}],
        )
        groups.append(made["GroupId"])
    ec2.authorize_security_group_ingress(
        GroupId=groups[0],
        IpPermissions=[
            {"IpProtocol": "tcp", "FromPort": 8000, "ToPort": 8000, "UserIdGroupPairs": [{"GroupId": groups[1]}]}
        ],
    )
    image = ec2.describe_images()["Images"][0]["ImageId"]
    ec2.create_launch_template(
        LaunchTemplateName=f"{PREFIX}-gpu",
        LaunchTemplateData={"ImageId": image, "InstanceType": "g4dn.xlarge", "SecurityGroupIds": [groups[0]]},
        TagSpecifications=[{"ResourceType": "launch-template", "Tags": tags}],
    )
    aws("autoscaling").create_auto_scaling_group(
        AutoScalingGroupName=f"{PREFIX}-gpu",
        MinSize=0,
        MaxSize=1,
        DesiredCapacity=1,
        AvailabilityZones=[f"{REGION}a"],
        LaunchTemplate={"LaunchTemplateName": f"{PREFIX}-gpu", "Version": "$Latest"},
        Tags=[
            {
                "Key": "Project",
                "Value": PREFIX,
                "ResourceId": f"{PREFIX}-gpu",
                "ResourceType": "auto-scaling-group",
                "PropagateAtLaunch": True,
            }
        ],
    )
    for name in ("server", "worker"):
        aws("logs").create_log_group(logGroupName=f"/{PREFIX}/{name}", tags={"Project": PREFIX})
        aws("ssm").put_parameter(Name=f"/{PREFIX}/{name}-env", Value="A=1", Type="String")
    for name in ("batch-1", "batch-2", "watch"):
        aws("scheduler").create_schedule(
            Name=f"{PREFIX}-{name}",
            ScheduleExpression="cron(0 0 * * ? *)",
            FlexibleTimeWindow={"Mode": "OFF"},
            Target={
                "Arn": f"arn:aws:lambda:{REGION}:{stack.ACCOUNT}:function:{PREFIX}-launcher",
                "RoleArn": f"arn:aws:iam::{stack.ACCOUNT}:role/{PREFIX}-scheduler",
                "Input": '{"occasion": "window"}',
            },
        )
    key = aws("kms").create_key(Tags=[{"TagKey": "Project", "TagValue": PREFIX}])["KeyMetadata"]["KeyId"]
    aws("kms").create_alias(AliasName=f"alias/{PREFIX}-alarms", TargetKeyId=key)
    topic = aws("sns").create_topic(Name=f"{PREFIX}-alarms", Tags=tags)["TopicArn"]
    for name, owner in ((f"{PREFIX}-dead-letters", PREFIX), (f"{PREFIX}-2-dead-letters", f"{PREFIX}-2")):
        aws("cloudwatch").put_metric_alarm(
            AlarmName=name,
            Namespace="AWS/SQS",
            MetricName="ApproximateNumberOfMessagesVisible",
            Statistic="Maximum",
            Period=60,
            EvaluationPeriods=1,
            Threshold=1,
            ComparisonOperator="GreaterThanOrEqualToThreshold",
            AlarmActions=[topic],
            Tags=[{"Key": "Project", "Value": owner}],
        )
    aws("cloudwatch").put_dashboard(DashboardName=PREFIX, DashboardBody='{"widgets":[]}')
    aws("budgets").create_budget(
        AccountId=stack.ACCOUNT,
        Budget={
            "BudgetName": PREFIX,
            "BudgetLimit": {"Amount": "10", "Unit": "USD"},
            "TimeUnit": "MONTHLY",
            "BudgetType": "COST",
        },
    )


# Of another deployment, of other people, or of more might than is needed.
BEYOND: dict[str, Callable[[Aws], Any]] = {
    "make another queue": lambda aws: aws("sqs").create_queue(QueueName=f"{PREFIX}-2-jobs"),
    "delete another queue": lambda aws: aws("sqs").delete_queue(QueueUrl=f"/{stack.ACCOUNT}/someone-elses"),
    "read a job": lambda aws: aws("sqs").receive_message(QueueUrl=f"/{stack.ACCOUNT}/{PREFIX}-jobs"),
    "make another role": lambda aws: aws("iam").create_role(RoleName="admin", AssumeRolePolicyDocument="{}"),
    "change its own role": lambda aws: aws("iam").put_role_policy(
        RoleName="a-deployer", PolicyName="more", PolicyDocument="{}"
    ),
    "make administrators": lambda aws: aws("iam").attach_role_policy(
        RoleName=f"{PREFIX}-router", PolicyArn="arn:aws:iam::aws:policy/AdministratorAccess"
    ),
    "make a user": lambda aws: aws("iam").create_user(UserName="me-too"),
    "empty another bucket": lambda aws: aws("s3").delete_object(Bucket="not-ours", Key="k"),
    "delete another bucket": lambda aws: aws("s3").delete_bucket(Bucket="not-ours"),
    "read a recording": lambda aws: aws("s3").get_object(Bucket=BUCKET, Key="users/u/audio/sessions/s/chunk-1.webm"),
    "write a recording": lambda aws: aws("s3").put_object(Bucket=BUCKET, Key="k", Body=b""),
    "delete another function": lambda aws: aws("lambda").delete_function(FunctionName="smart-transcription-router"),
    "read another secret": lambda aws: aws("ssm").get_parameter(Name="/smart-transcription/api-key"),
    "delete another log": lambda aws: aws("logs").delete_log_group(
        logGroupName="/aws/lambda/smart-transcription-router"
    ),
    "remove another rule": lambda aws: aws("events").delete_rule(Name="smart-transcription-uploads"),
    "stop another schedule": lambda aws: aws("scheduler").delete_schedule(Name="smart-transcription-batch-1"),
    "delete another repository": lambda aws: aws("ecr").delete_repository(repositoryName="smart-transcription-server"),
    "delete another group": lambda aws: aws("autoscaling").delete_auto_scaling_group(
        AutoScalingGroupName="smart-transcription-gpu", ForceDelete=True
    ),
    "start an instance": lambda aws: aws("ec2").run_instances(ImageId="ami-12345678", MinCount=1, MaxCount=1),
    "delete another topic": lambda aws: aws("sns").delete_topic(
        TopicArn=f"arn:aws:sns:{REGION}:{stack.ACCOUNT}:smart-transcription-alarms"
    ),
}


@integration
def test_a_deployer_deploys_it_uses_it_and_destroys_it_and_nothing_is_left(
    deployer: dict[str, str], emulator: stack.Emulator, aws: Aws, tmp_path: Path
) -> None:
    aws("s3").create_bucket(Bucket="not-ours", CreateBucketConfiguration={"LocationConstraint": REGION})
    before = everything(aws)
    step = Step(tmp_path / "env", {**deployer, "QUEUE_PREFIX": PREFIX, "AUDIO_BUCKET": BUCKET})

    def run(script: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", script, "--yes", *arguments],
            env={
                **stack.without_aws(os.environ),
                **stack.lambda_settings(),
                **step.environment,
                "ENV_FILE": str(step.env_file),
                **environment,
            },
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    deployed = run(SCRIPTS / "deploy.sh", "core")
    assert deployed.returncode == 0, deployed.stderr
    what_the_other_steps_make(aws)
    launched = run(SCRIPTS / "deploy.sh", "345")
    assert launched.returncode == 0, launched.stderr

    # It is in use: an upload becomes a job, for there is no server. More versions than one of it.
    url = step.settings()["SQS_QUEUE_URL"]
    for content in (b"not really audio", b"nor this"):
        aws("s3").put_object(Bucket=BUCKET, Key="users/u/audio/sessions/s/chunk-1.webm", Body=content)
    count = "ApproximateNumberOfMessages"
    until(lambda: aws("sqs").get_queue_attributes(QueueUrl=url, AttributeNames=[count])["Attributes"][count] != "0")

    session = boto3.Session(
        deployer["AWS_ACCESS_KEY_ID"], deployer["AWS_SECRET_ACCESS_KEY"], deployer["AWS_SESSION_TOKEN"], REGION
    )
    config = Config(retries={"total_max_attempts": 1})

    def as_deployer(service: str) -> Any:
        return session.client(service, endpoint_url=emulator.endpoint, config=config)

    answers = {name: outcome(lambda aws, _, c=call: c(aws), as_deployer, {}) for name, call in BEYOND.items()}
    denied = {"AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "AuthorizationError"}
    assert {name: answer for name, answer in answers.items() if answer not in denied} == {}

    # Someone began by hand.
    aws("lambda").delete_function(FunctionName=f"{PREFIX}-router")
    aws("events").remove_targets(Rule=f"{PREFIX}-uploads", Ids=["router"])

    destroyed = run(DESTROY, DELETE_AUDIO="yes")

    assert destroyed.returncode == 0, destroyed.stderr
    assert destroyed.stdout == "left: nothing\n"
    assert f"alarm {PREFIX}-2-dead-letters stays: it is someone else's" in destroyed.stderr
    assert everything(aws) - before == {f"alarm {PREFIX}-2-dead-letters"}
    assert before - everything(aws) == set()
    assert {step.settings()[name] for name in ("SQS_QUEUE_URL", "SQS_DLQ_URL", "API_KEY")} == {""}
    aws("cloudwatch").delete_alarms(AlarmNames=[f"{PREFIX}-2-dead-letters"])
