"""The policy documents: what each role may do, and that it is no more than its program needs."""

import json
import re
import uuid
from collections.abc import Callable, Iterator
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from infra.local import stack
from infra.scripts.lib.documents import rendered
from tests.infra.conftest import REGION, Aws, Step

POLICIES = stack.ROOT / "infra/policies"
ROLES = ("router", "gpu-instance", "launcher", "scheduler")
PREFIX = "smart-transcription"
BUCKET = f"{PREFIX}-audio-{stack.ACCOUNT}"
AUDIO = "users/u/audio/sessions/s/chunk-1.webm"
TRANSCRIPT = "users/u/transcripts/s-chunk-1.json"
VALUES = {
    "PARTITION": "aws",
    "REGION": REGION,
    "ACCOUNT": stack.ACCOUNT,
    "QUEUE_PREFIX": PREFIX,
    "AUDIO_BUCKET": BUCKET,
    "EVENT_BUS_NAME": "default",
}

# https://docs.aws.amazon.com/service-authorization/latest/reference/
NAMES_NO_RESOURCE = {
    *("ec2:DescribeInstances", "ec2:DescribeSubnets", "ec2:DescribeNetworkInterfaces"),
    # AWS could name some of these, but Lambda makes them before they have a name: it wants "*".
    *("ec2:CreateNetworkInterface", "ec2:DeleteNetworkInterface"),
    *("ec2:AssignPrivateIpAddresses", "ec2:UnassignPrivateIpAddresses"),
    *("autoscaling:DescribeAutoScalingGroups", "autoscaling:DescribeScalingActivities", "cloudwatch:GetMetricData"),
    *("ecr:GetAuthorizationToken", "autoscaling:DescribeAutoScalingInstances", "ssm:UpdateInstanceInformation"),
    *("ssmmessages:CreateControlChannel", "ssmmessages:CreateDataChannel"),
    *("ssmmessages:OpenControlChannel", "ssmmessages:OpenDataChannel"),
}


def statements(role: str) -> list[dict[str, Any]]:
    document = json.loads(rendered((POLICIES / f"{role}.json").read_text(), VALUES))
    return list(document["Statement"])


def as_list(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


@pytest.mark.parametrize("role", ROLES)
def test_only_what_aws_cannot_name_is_a_star(role: str) -> None:
    for statement in statements(role):
        actions = as_list(statement["Action"])
        assert not [action for action in actions if "*" in action]
        if "*" in as_list(statement["Resource"]) and statement["Effect"] == "Allow":
            assert set(actions) <= NAMES_NO_RESOURCE


def test_only_lambda_itself_makes_network_interfaces_for_the_router_not_its_code() -> None:
    allowed, denied = (one for one in statements("router") if "ec2:CreateNetworkInterface" in as_list(one["Action"]))
    assert (allowed["Effect"], denied["Effect"]) == ("Allow", "Deny")
    assert allowed["Action"] == denied["Action"]
    function = f"arn:aws:lambda:{REGION}:{stack.ACCOUNT}:function:{PREFIX}-router"
    assert denied["Condition"] == {"ArnEquals": {"lambda:SourceFunctionArn": function}}


@pytest.mark.parametrize("role", ROLES)
def test_no_role_may_delete_an_object(role: str) -> None:
    actions = {action for statement in statements(role) for action in as_list(statement["Action"])}
    assert {action for action in actions if "Delete" in action} <= {"sqs:DeleteMessage", "ec2:DeleteNetworkInterface"}


def test_nothing_is_open_to_the_whole_internet() -> None:
    for path in [*POLICIES.glob("*"), *(stack.ROOT / "infra/scripts").rglob("*.*")]:
        if path.suffix in (".json", ".sh", ".py"):
            assert not re.search(r"0\.0\.0\.0/0|::/0", path.read_text()), path


def test_queues_and_bucket_refuse_plain_http_unless_the_endpoint_has_nothing_else() -> None:
    template = (POLICIES / "queue.json").read_text()
    document = json.loads(rendered(template, {"QUEUE_ARN": "arn"}))
    assert document["Statement"][0]["Condition"] == {"Bool": {"aws:SecureTransport": "false"}}
    assert rendered(template, {"QUEUE_ARN": "arn"}, without="TlsOnly") == ""


# What really happens, with IAM enforced ------------------------------------------------------------------------------

Call = Callable[[Aws, dict[str, str]], Any]

CALLS: dict[str, Call] = {
    "get audio": lambda aws, _: aws("s3").get_object(Bucket=BUCKET, Key=AUDIO),
    "get manifest": lambda aws, _: aws("s3").get_object(Bucket=BUCKET, Key="users/u/audio/sessions/s/metadata.json"),
    "put audio": lambda aws, _: aws("s3").put_object(Bucket=BUCKET, Key=AUDIO, Body=b"x"),
    "put transcript": lambda aws, _: aws("s3").put_object(Bucket=BUCKET, Key=TRANSCRIPT, Body=b"x"),
    "put other transcript": lambda aws, _: aws("s3").put_object(Bucket=BUCKET, Key="transcripts/k.json", Body=b"x"),
    "put report": lambda aws, _: aws("s3").put_object(Bucket=BUCKET, Key="reports/batch/2026-01-31.json", Body=b"x"),
    "delete transcript": lambda aws, _: aws("s3").delete_object(Bucket=BUCKET, Key=TRANSCRIPT),
    "delete audio": lambda aws, _: aws("s3").delete_object(Bucket=BUCKET, Key=AUDIO),
    "list a user": lambda aws, _: aws("s3").list_objects_v2(Bucket=BUCKET, Prefix="users/u/"),
    "list everything": lambda aws, _: aws("s3").list_objects_v2(Bucket=BUCKET, Prefix=""),
    "read another bucket": lambda aws, _: aws("s3").get_object(Bucket="someone-elses", Key="k"),
    "open the bucket": lambda aws, _: aws("s3").delete_public_access_block(Bucket=BUCKET),
    "send job": lambda aws, urls: aws("sqs").send_message(QueueUrl=urls["SQS_QUEUE_URL"], MessageBody="{}"),
    "send jobs at once": lambda aws, urls: aws("sqs").send_message_batch(
        QueueUrl=urls["SQS_QUEUE_URL"], Entries=[{"Id": "0", "MessageBody": "{}"}]
    ),
    "send failure": lambda aws, urls: aws("sqs").send_message(
        QueueUrl=urls["SQS_FAILURES_QUEUE_URL"], MessageBody="{}"
    ),
    "send dead letter": lambda aws, urls: aws("sqs").send_message(QueueUrl=urls["SQS_DLQ_URL"], MessageBody="{}"),
    "receive job": lambda aws, urls: aws("sqs").receive_message(QueueUrl=urls["SQS_QUEUE_URL"], WaitTimeSeconds=0),
    "receive dead letter": lambda aws, urls: aws("sqs").receive_message(
        QueueUrl=urls["SQS_DLQ_URL"], WaitTimeSeconds=0
    ),
    "count jobs": lambda aws, urls: aws("sqs").get_queue_attributes(
        QueueUrl=urls["SQS_QUEUE_URL"], AttributeNames=["ApproximateNumberOfMessages"]
    ),
    "count dead letters": lambda aws, urls: aws("sqs").get_queue_attributes(
        QueueUrl=urls["SQS_DLQ_URL"], AttributeNames=["ApproximateNumberOfMessages"]
    ),
    "purge jobs": lambda aws, urls: aws("sqs").purge_queue(QueueUrl=urls["SQS_QUEUE_URL"]),
    "delete queue": lambda aws, urls: aws("sqs").delete_queue(QueueUrl=urls["SQS_QUEUE_URL"]),
    "read the key": lambda aws, _: aws("ssm").get_parameter(Name=f"/{PREFIX}/api-key", WithDecryption=True),
    "change the key": lambda aws, _: aws("ssm").put_parameter(
        Name=f"/{PREFIX}/api-key", Value="x", Type="SecureString", Overwrite=True
    ),
    "read the server's settings": lambda aws, _: aws("ssm").get_parameter(Name=f"/{PREFIX}/server-env"),
    "read the worker's settings": lambda aws, _: aws("ssm").get_parameter(Name=f"/{PREFIX}/worker-env"),
    "change the worker's settings": lambda aws, _: aws("ssm").put_parameter(
        Name=f"/{PREFIX}/worker-env", Value="x", Overwrite=True
    ),
    "log in to ECR": lambda aws, _: aws("ecr").get_authorization_token(),
    "pull the image": lambda aws, _: aws("ecr").batch_get_image(
        repositoryName=f"{PREFIX}-server", imageIds=[{"imageTag": "none"}]
    ),
    "pull another image": lambda aws, _: aws("ecr").batch_get_image(
        repositoryName="someone-elses", imageIds=[{"imageTag": "none"}]
    ),
    "push an image": lambda aws, _: aws("ecr").put_image(repositoryName=f"{PREFIX}-server", imageManifest="{}"),
    "open the server's log": lambda aws, _: aws("logs").create_log_stream(
        logGroupName=f"/{PREFIX}/server", logStreamName=uuid.uuid4().hex
    ),
    "open another log": lambda aws, _: aws("logs").create_log_stream(
        logGroupName="/someone/elses", logStreamName=uuid.uuid4().hex
    ),
    "remove a log": lambda aws, _: aws("logs").delete_log_group(logGroupName=f"/{PREFIX}/server"),
    "know its group": lambda aws, _: aws("autoscaling").describe_auto_scaling_instances(),
    "announce": lambda aws, _: aws("events").put_events(
        Entries=[{"Source": "transcription.router", "DetailType": "Session Transcribed", "Detail": "{}"}]
    ),
    "remove a rule": lambda aws, _: aws("events").delete_rule(Name=f"{PREFIX}-uploads"),
    "find servers": lambda aws, _: aws("ec2").describe_instances(),
    "end servers": lambda aws, _: aws("ec2").terminate_instances(InstanceIds=["i-0123456789abcdef0"]),
    "start a batch": lambda aws, _: aws("autoscaling").set_desired_capacity(
        AutoScalingGroupName=f"{PREFIX}-gpu", DesiredCapacity=0
    ),
    "start something else": lambda aws, _: aws("autoscaling").set_desired_capacity(
        AutoScalingGroupName="someone-elses", DesiredCapacity=0
    ),
    "see the group": lambda aws, _: aws("autoscaling").describe_auto_scaling_groups(),
    "see what the group did": lambda aws, _: aws("autoscaling").describe_scaling_activities(
        AutoScalingGroupName=f"{PREFIX}-gpu"
    ),
    "ask for a queue's age": lambda aws, _: aws("cloudwatch").get_metric_data(
        MetricDataQueries=[{"Id": "a", "Expression": "1"}], StartTime=0, EndTime=60
    ),
    "tell metrics": lambda aws, _: aws("cloudwatch").put_metric_data(
        Namespace="TranscriptionRouter", MetricData=[{"MetricName": "JobsLeft", "Value": 0}]
    ),
    "call the launcher": lambda aws, _: aws("lambda").invoke(FunctionName=f"{PREFIX}-launcher"),
    "call the router": lambda aws, _: aws("lambda").invoke(FunctionName=f"{PREFIX}-router", Payload="{}"),
    "change the launcher": lambda aws, _: aws("lambda").update_function_configuration(
        FunctionName=f"{PREFIX}-launcher", Timeout=3
    ),
    "let the batch grow": lambda aws, _: aws("autoscaling").update_auto_scaling_group(
        AutoScalingGroupName=f"{PREFIX}-gpu", MaxSize=100
    ),
    "change a role": lambda aws, _: aws("iam").put_role_policy(
        RoleName=f"{PREFIX}-router", PolicyName="more", PolicyDocument="{}"
    ),
}

BOTH = {
    *("get audio", "get manifest", "put transcript", "put other transcript", "list a user"),
    *("send job", "send jobs at once", "send failure", "count jobs", "read the key", "announce"),
}
ALLOWED = {
    "router": BOTH | {"find servers"},
    "gpu-instance": BOTH
    | {"list everything", "send dead letter", "receive job", "receive dead letter", "count dead letters"}
    | {"read the server's settings", "read the worker's settings", "log in to ECR", "pull the image"}
    | {"open the server's log", "know its group", "put report"},
    "launcher": {"count jobs", "count dead letters", "receive job", "send failure", "see the group"}
    | {"see what the group did", "ask for a queue's age", "find servers", "start a batch"},
    "scheduler": {"call the launcher", "send failure"},
}


@pytest.fixture(scope="module")
def group(aws: Aws) -> Iterator[None]:
    """The group that the launcher may size must be there, if no test has deployed it."""
    autoscaling, name = aws("autoscaling"), f"{PREFIX}-gpu"
    if autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"]:
        yield
        return
    image = aws("ec2").describe_images()["Images"][0]["ImageId"]
    template = {"ImageId": image, "InstanceType": "g4dn.xlarge"}
    aws("ec2").create_launch_template(LaunchTemplateName="stand-in", LaunchTemplateData=template)
    autoscaling.create_auto_scaling_group(
        AutoScalingGroupName=name,
        MinSize=0,
        MaxSize=1,
        AvailabilityZones=[f"{REGION}a"],
        LaunchTemplate={"LaunchTemplateName": "stand-in"},
    )
    yield
    autoscaling.delete_auto_scaling_group(AutoScalingGroupName=name)


def like_the_scheduler(aws: Aws) -> str:
    """A role with the scheduler's policy: its own lets nobody in but a schedule of this account."""
    iam, name = aws("iam"), "like-the-scheduler"
    policy = iam.get_role_policy(RoleName=f"{PREFIX}-scheduler", PolicyName="least-privilege")["PolicyDocument"]
    trust = {"Effect": "Allow", "Principal": {"AWS": f"arn:aws:iam::{stack.ACCOUNT}:root"}, "Action": "sts:AssumeRole"}
    trusts = json.dumps({"Version": "2012-10-17", "Statement": [trust]})
    iam.create_role(RoleName=name, AssumeRolePolicyDocument=trusts)
    iam.put_role_policy(RoleName=name, PolicyName="least-privilege", PolicyDocument=json.dumps(policy))
    return name


@pytest.fixture(scope="module")
def with_role(emulator: stack.Emulator, deployed: Step, group: None, aws: Aws) -> Callable[[str], Aws]:
    s3 = aws("s3")
    s3.create_bucket(Bucket="someone-elses", CreateBucketConfiguration={"LocationConstraint": REGION})
    for bucket, key in ((BUCKET, AUDIO), (BUCKET, "users/u/audio/sessions/s/metadata.json"), ("someone-elses", "k")):
        s3.put_object(Bucket=bucket, Key=key, Body=b"x")

    def with_role(role: str) -> Aws:
        name = f"{PREFIX}-{role}" if role != "scheduler" else like_the_scheduler(aws)
        arn = f"arn:aws:iam::{stack.ACCOUNT}:role/{name}"
        keys = aws("sts").assume_role(RoleArn=arn, RoleSessionName="test")["Credentials"]
        session = boto3.Session(keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"], REGION)
        config = Config(retries={"total_max_attempts": 1})
        return lambda service: session.client(service, endpoint_url=emulator.endpoint, config=config)

    return with_role


def outcome(call: Call, aws: Aws, urls: dict[str, str]) -> str:
    try:
        call(aws, urls)
    except ClientError as error:
        code = str(error.response["Error"]["Code"])
        return "allowed" if "NotFound" in code else code  # whoever hears that it is not there may ask for it
    return "allowed"


@pytest.mark.integration
@pytest.mark.parametrize("role", ROLES)
def test_a_role_may_do_all_it_must_and_nothing_beyond(
    role: str, with_role: Callable[[str], Aws], deployed: Step
) -> None:
    aws, urls = with_role(role), deployed.settings()
    answers = {name: outcome(call, aws, urls) for name, call in CALLS.items()}
    assert {name for name, answer in answers.items() if answer == "allowed"} == ALLOWED[role], answers
    assert set(answers.values()) <= {"allowed", "AccessDenied", "AccessDeniedException", "UnauthorizedOperation"}


@pytest.mark.integration
@pytest.mark.parametrize("role", ["router", "gpu-instance"])
def test_a_missing_object_is_missing_not_forbidden(role: str, with_role: Callable[[str], Aws]) -> None:
    with pytest.raises(ClientError) as error:
        with_role(role)("s3").get_object(Bucket=BUCKET, Key="users/u/transcripts/none.json")
    assert error.value.response["Error"]["Code"] == "NoSuchKey"
