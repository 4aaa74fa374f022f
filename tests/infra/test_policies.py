"""The policy documents: what each role may do, and that it is no more than its program needs."""

import json
import re
from collections.abc import Callable
from typing import Any

import boto3
import pytest
from botocore.config import Config
from botocore.exceptions import ClientError

from infra.local import stack
from infra.scripts.lib.documents import rendered
from tests.infra.conftest import REGION, Aws, Step

POLICIES = stack.ROOT / "infra/policies"
ROLES = ("router", "gpu-instance")
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


def statements(role: str) -> list[dict[str, Any]]:
    document = json.loads(rendered((POLICIES / f"{role}.json").read_text(), VALUES))
    return list(document["Statement"])


def as_list(value: Any) -> list[str]:
    return value if isinstance(value, list) else [value]


@pytest.mark.parametrize("role", ROLES)
def test_only_what_aws_cannot_name_is_a_star(role: str) -> None:
    for statement in statements(role):
        assert not [action for action in as_list(statement["Action"]) if "*" in action]
        if "*" in as_list(statement["Resource"]):
            assert statement["Action"] == "ec2:DescribeInstances"


@pytest.mark.parametrize("role", ROLES)
def test_no_role_may_delete_an_object(role: str) -> None:
    actions = {action for statement in statements(role) for action in as_list(statement["Action"])}
    assert {action for action in actions if "Delete" in action} <= {"sqs:DeleteMessage"}


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
    "delete transcript": lambda aws, _: aws("s3").delete_object(Bucket=BUCKET, Key=TRANSCRIPT),
    "delete audio": lambda aws, _: aws("s3").delete_object(Bucket=BUCKET, Key=AUDIO),
    "list a user": lambda aws, _: aws("s3").list_objects_v2(Bucket=BUCKET, Prefix="users/u/"),
    "list everything": lambda aws, _: aws("s3").list_objects_v2(Bucket=BUCKET, Prefix=""),
    "read another bucket": lambda aws, _: aws("s3").get_object(Bucket="someone-elses", Key="k"),
    "open the bucket": lambda aws, _: aws("s3").delete_public_access_block(Bucket=BUCKET),
    "send job": lambda aws, urls: aws("sqs").send_message(QueueUrl=urls["SQS_QUEUE_URL"], MessageBody="{}"),
    "send failure": lambda aws, urls: aws("sqs").send_message(
        QueueUrl=urls["SQS_FAILURES_QUEUE_URL"], MessageBody="{}"
    ),
    "send dead letter": lambda aws, urls: aws("sqs").send_message(QueueUrl=urls["SQS_DLQ_URL"], MessageBody="{}"),
    "receive job": lambda aws, urls: aws("sqs").receive_message(QueueUrl=urls["SQS_QUEUE_URL"], WaitTimeSeconds=0),
    "receive dead letter": lambda aws, urls: aws("sqs").receive_message(
        QueueUrl=urls["SQS_DLQ_URL"], WaitTimeSeconds=0
    ),
    "purge jobs": lambda aws, urls: aws("sqs").purge_queue(QueueUrl=urls["SQS_QUEUE_URL"]),
    "delete queue": lambda aws, urls: aws("sqs").delete_queue(QueueUrl=urls["SQS_QUEUE_URL"]),
    "read the key": lambda aws, _: aws("ssm").get_parameter(Name=f"/{PREFIX}/api-key", WithDecryption=True),
    "change the key": lambda aws, _: aws("ssm").put_parameter(
        Name=f"/{PREFIX}/api-key", Value="x", Type="SecureString", Overwrite=True
    ),
    "announce": lambda aws, _: aws("events").put_events(
        Entries=[{"Source": "transcription.router", "DetailType": "Session Transcribed", "Detail": "{}"}]
    ),
    "remove a rule": lambda aws, _: aws("events").delete_rule(Name=f"{PREFIX}-uploads"),
    "find servers": lambda aws, _: aws("ec2").describe_instances(),
    "end servers": lambda aws, _: aws("ec2").terminate_instances(InstanceIds=["i-0123456789abcdef0"]),
    "change a role": lambda aws, _: aws("iam").put_role_policy(
        RoleName=f"{PREFIX}-router", PolicyName="more", PolicyDocument="{}"
    ),
}

BOTH = {
    *("get audio", "get manifest", "put transcript", "put other transcript", "list a user"),
    *("send job", "send failure", "read the key", "announce"),
}
ALLOWED = {
    "router": BOTH | {"find servers"},
    "gpu-instance": BOTH | {"list everything", "send dead letter", "receive job", "receive dead letter"},
}


@pytest.fixture(scope="module")
def with_role(emulator: stack.Emulator, deployed: Step, aws: Aws) -> Callable[[str], Aws]:
    s3 = aws("s3")
    s3.create_bucket(Bucket="someone-elses", CreateBucketConfiguration={"LocationConstraint": REGION})
    for bucket, key in ((BUCKET, AUDIO), (BUCKET, "users/u/audio/sessions/s/metadata.json"), ("someone-elses", "k")):
        s3.put_object(Bucket=bucket, Key=key, Body=b"x")

    def with_role(role: str) -> Aws:
        arn = f"arn:aws:iam::{stack.ACCOUNT}:role/{PREFIX}-{role}"
        keys = aws("sts").assume_role(RoleArn=arn, RoleSessionName="test")["Credentials"]
        session = boto3.Session(keys["AccessKeyId"], keys["SecretAccessKey"], keys["SessionToken"], REGION)
        config = Config(retries={"total_max_attempts": 1})
        return lambda service: session.client(service, endpoint_url=emulator.endpoint, config=config)

    return with_role


def outcome(call: Call, aws: Aws, urls: dict[str, str]) -> str:
    try:
        call(aws, urls)
    except ClientError as error:
        return str(error.response["Error"]["Code"])
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
@pytest.mark.parametrize("role", ROLES)
def test_a_missing_object_is_missing_not_forbidden(role: str, with_role: Callable[[str], Aws]) -> None:
    with pytest.raises(ClientError) as error:
        with_role(role)("s3").get_object(Bucket=BUCKET, Key="users/u/transcripts/none.json")
    assert error.value.response["Error"]["Code"] == "NoSuchKey"
