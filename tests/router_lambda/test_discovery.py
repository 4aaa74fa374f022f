"""Finding GPU servers by tag."""

from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from moto import mock_aws

from router_lambda.discovery import CACHE_SECONDS, fixed, tagged


@pytest.fixture
def ec2(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with mock_aws():
        yield boto3.client("ec2", region_name="us-east-1")


def launch(ec2: Any, role: str) -> tuple[str, str]:
    image = ec2.describe_images(Owners=["amazon"])["Images"][0]["ImageId"]
    tags = [{"ResourceType": "instance", "Tags": [{"Key": "Role", "Value": role}]}]
    [instance] = ec2.run_instances(ImageId=image, MinCount=1, MaxCount=1, TagSpecifications=tags)["Instances"]
    return instance["InstanceId"], instance["PrivateIpAddress"]


def test_running_servers_are_found_by_tag_at_their_private_address(ec2: Any) -> None:
    _, address = launch(ec2, "gpu-server")
    launch(ec2, "something-else")
    stopped, _ = launch(ec2, "gpu-server")
    ec2.terminate_instances(InstanceIds=[stopped])
    discover = tagged(ec2, "Role=gpu-server", port=8000, clock=lambda: 0.0)
    assert discover() == (f"http://{address}:8000",)


def test_the_answer_is_remembered_for_some_seconds(ec2: Any) -> None:
    now = 0.0
    discover = tagged(ec2, "Role=gpu-server", port=8000, clock=lambda: now)
    assert discover() == ()
    launch(ec2, "gpu-server")
    assert discover() == ()
    now = CACHE_SECONDS
    assert len(discover()) == 1


def test_when_ec2_does_not_answer_there_are_no_servers_and_no_error() -> None:
    ec2 = boto3.client(
        "ec2",
        region_name="us-east-1",
        endpoint_url="http://127.0.0.1:9",
        aws_access_key_id="x",
        aws_secret_access_key="x",
    )
    assert tagged(ec2, "Role=gpu-server", port=8000, clock=lambda: 0.0)() == ()


def test_a_fixed_list_is_what_it_is() -> None:
    assert fixed(("http://a", "http://b"))() == ("http://a", "http://b")
