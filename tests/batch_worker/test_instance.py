"""What an instance knows of itself, and what it tells its Auto Scaling group."""

from collections.abc import Iterator
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber
from moto import mock_aws

from batch_worker.instance import Instance, Member, membership, this_instance
from shared.imds import Imds
from tests.imds import FakeImds

GROUP = "smart-transcription-gpu"
SPOT = Instance("i-0123", "g5.xlarge", "spot")


@pytest.fixture
def metadata() -> Iterator[FakeImds]:
    items = {"instance-id": SPOT.id, "instance-type": SPOT.type, "instance-life-cycle": SPOT.market}
    with FakeImds(**items) as imds:
        yield imds


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Any:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    return boto3.client("autoscaling", region_name="us-east-2")


def test_an_instance_knows_what_it_is(metadata: FakeImds) -> None:
    assert this_instance(Imds(metadata.url)) == SPOT


def test_elsewhere_there_is_no_instance(metadata: FakeImds) -> None:
    with FakeImds() as other:
        assert this_instance(Imds(other.url)) is None
    assert this_instance(Imds(other.url)) is None  # nobody answers


def test_an_instance_of_a_group_is_protected_and_ends_without_a_successor(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with mock_aws():
        client = boto3.client("autoscaling", region_name="us-east-2")
        client.create_launch_configuration(
            LaunchConfigurationName="l", ImageId="ami-12c6146b", InstanceType="g5.xlarge", KeyName="k"
        )
        sizes = {"MinSize": 0, "MaxSize": 2, "DesiredCapacity": 2}
        zones = ["us-east-2a"]
        client.create_auto_scaling_group(
            AutoScalingGroupName=GROUP, LaunchConfigurationName="l", AvailabilityZones=zones, **sizes
        )

        def group() -> dict[str, Any]:
            return dict(client.describe_auto_scaling_groups(AutoScalingGroupNames=[GROUP])["AutoScalingGroups"][0])

        first, second = (one["InstanceId"] for one in group()["Instances"])
        member = membership(client, Instance(first, "g5.xlarge", "spot"))
        assert member == Member(client, first, GROUP)
        member.protect(True)
        assert {one["InstanceId"]: one["ProtectedFromScaleIn"] for one in group()["Instances"]} == {
            first: True,
            second: False,
        }
        assert member.working() == {first}
        member.protect(False)
        assert member.working() == frozenset()
        assert member.end()
        assert group()["DesiredCapacity"] == 1
        assert [one["InstanceId"] for one in group()["Instances"]] == [second]
        assert membership(client, Instance("i-00000000000000000", "", "")) is None


def _described(id: str, *, group: str = GROUP, state: str = "InService", protected: bool = True) -> dict[str, Any]:
    return {
        "InstanceId": id,
        "AutoScalingGroupName": group,
        "AvailabilityZone": "us-east-2a",
        "LifecycleState": state,
        "HealthStatus": "HEALTHY",
        "ProtectedFromScaleIn": protected,
    }


def test_those_of_the_group_that_are_at_work_are_found_on_all_pages(client: Any) -> None:
    first = [_described("i-1"), _described("i-2", protected=False), _described("i-3", group="another's")]
    second = [_described("i-4", state="Terminating"), _described("i-5")]
    with Stubber(client) as stub:
        stub.add_response("describe_auto_scaling_instances", {"AutoScalingInstances": first, "NextToken": "more"}, {})
        stub.add_response("describe_auto_scaling_instances", {"AutoScalingInstances": second}, {"NextToken": "more"})
        assert Member(client, "i-1", GROUP).working() == {"i-1", "i-5"}


def test_an_instance_that_the_group_must_have_stays(client: Any) -> None:
    with Stubber(client) as stub:
        words = "Terminating instance without replacement will violate group's min size constraint."
        stub.add_client_error("terminate_instance_in_auto_scaling_group", "ValidationError", words)
        assert not Member(client, SPOT.id, GROUP).end()


def test_when_the_group_does_not_answer_the_work_goes_on(client: Any) -> None:
    with Stubber(client) as stub:
        stub.add_client_error("set_instance_protection", "Throttling")
        Member(client, SPOT.id, GROUP).protect(True)
        stub.add_client_error("describe_auto_scaling_instances", "AccessDenied")
        assert membership(client, SPOT) is None
        stub.add_client_error("describe_auto_scaling_instances", "Throttling")
        assert Member(client, SPOT.id, GROUP).working() == frozenset()
        stub.assert_no_pending_responses()
