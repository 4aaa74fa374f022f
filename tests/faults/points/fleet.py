"""Instances in memory, as boto3 tells of them: those of one Auto Scaling group, and a server that is always there.

Simpler than AWS: one starts, and one ends, at once. The scenes need one at a time; what several do with each other
(`batch_worker.surplus`, the reaper) has tests of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from typing import Any, NamedTuple, TypeVar
from uuid import uuid4

import httpx
from botocore.exceptions import ClientError, ConnectionClosedError

from tests.faults.points.plan import Life

T = TypeVar("T")
GROUP_TAG = "tag:aws:autoscaling:groupName"
SERVER_TAG = "role=gpu-server"
KEY_PARAMETER = "/points/api-key"
LARGEST = 3  # instances of the group


class Clients(NamedTuple):
    """boto3's, or what stands for them."""

    autoscaling: Any
    ec2: Any
    cloudwatch: Any
    ssm: Any


def new_template(ec2: Any) -> str:
    """A launch template of a real or local AWS; its name."""
    name = f"points-{uuid4().hex}"
    image = ec2.describe_images()["Images"][0]["ImageId"]
    ec2.create_launch_template(
        LaunchTemplateName=name, LaunchTemplateData={"ImageId": image, "InstanceType": "g4dn.xlarge"}
    )
    return name


def new_group(autoscaling: Any, template: str) -> str:
    """A group of a real or local AWS, as empty as `MemoryFleet`; its name."""
    name = f"points-{uuid4().hex}"
    autoscaling.create_auto_scaling_group(
        AutoScalingGroupName=name,
        MinSize=0,
        MaxSize=LARGEST,
        AvailabilityZones=[f"{autoscaling.meta.region_name}a"],
        LaunchTemplate={"LaunchTemplateName": template},
    )
    return name


@dataclass
class MemoryFleet:
    """The group. `wrong`: that it was made smaller than it is. `members`: whether they are protected, by their ids."""

    wrong: list[str] = field(default_factory=list)
    desired: int = 0
    members: dict[str, bool] = field(default_factory=dict)
    _started: int = 0

    def set_desired(self, capacity: int) -> None:
        if capacity < len(self.members):
            self.wrong.append(f"{capacity} instances wanted of {len(self.members)}: nobody says which are to end")
        if capacity > LARGEST:
            raise _refused(f"{capacity} is above max value {LARGEST}")
        self.desired = capacity
        while len(self.members) < capacity:
            self._started += 1
            self.members[f"i-{self._started}"] = False

    def end(self, id: str) -> None:
        self._refuse_strangers(id)
        del self.members[id]
        self.desired -= 1

    def protect(self, ids: Sequence[str], protected: bool) -> None:
        for id in ids:
            self._refuse_strangers(id)
            self.members[id] = protected

    def _refuse_strangers(self, id: str) -> None:
        if id not in self.members:
            raise _refused(f"{id} is not in the group")

    def clients_for(self, life: Life) -> Clients:
        client = _Client(self, life)
        return Clients(client, client, client, client)


def _refused(why: str) -> ClientError:
    return ClientError({"Error": {"Code": "ValidationError", "Message": why}}, "Auto Scaling")


@dataclass
class _Client:
    """One life's way to the fleet: what our programs call of Auto Scaling, EC2 and CloudWatch."""

    fleet: MemoryFleet
    life: Life

    def describe_auto_scaling_groups(self, **_: Any) -> Any:
        return self._call("DescribeAutoScalingGroups", lambda: {"AutoScalingGroups": [self._group()]})

    def describe_scaling_activities(self, **_: Any) -> Any:
        return self._call("DescribeScalingActivities", lambda: {"Activities": []})

    def describe_auto_scaling_instances(self, *, InstanceIds: Sequence[str] = ()) -> Any:
        def described() -> Any:
            return [one for one in self._group()["Instances"] if not InstanceIds or one["InstanceId"] in InstanceIds]

        return self._call("DescribeAutoScalingInstances", lambda: {"AutoScalingInstances": described()})

    def set_desired_capacity(self, *, DesiredCapacity: int, **_: Any) -> None:
        self._call("SetDesiredCapacity", lambda: self.fleet.set_desired(DesiredCapacity))

    def set_instance_protection(self, *, InstanceIds: Sequence[str], ProtectedFromScaleIn: bool, **_: Any) -> None:
        self._call("SetInstanceProtection", lambda: self.fleet.protect(InstanceIds, ProtectedFromScaleIn))

    def terminate_instance_in_auto_scaling_group(self, *, InstanceId: str, **_: Any) -> None:
        self._call("TerminateInstanceInAutoScalingGroup", lambda: self.fleet.end(InstanceId))

    def describe_instances(self, *, Filters: Sequence[Mapping[str, Any]]) -> Any:
        def described() -> Any:
            if Filters[0]["Name"] == GROUP_TAG:
                instances = [{"InstanceId": id, "LaunchTime": datetime.now(UTC)} for id in self.fleet.members]
            else:
                instances = [{"InstanceId": "i-server", "PrivateIpAddress": "10.0.0.1"}]
            return {"Reservations": [{"Instances": instances}]}

        return self._call("DescribeInstances", described)

    def get_metric_data(self, *, EndTime: datetime, **_: Any) -> Any:
        age = {"Timestamps": [EndTime], "Values": [60.0]}
        return self._call("GetMetricData", lambda: {"MetricDataResults": [age]})

    def get_parameter(self, *, Name: str, **_: Any) -> Any:
        return self._call("GetParameter", lambda: {"Parameter": {"Name": Name, "Value": "key"}})

    def get_paginator(self, name: str) -> "_OnePage":
        return _OnePage(getattr(self, name))

    def _group(self) -> dict[str, Any]:
        members = [
            {
                "InstanceId": id,
                "AutoScalingGroupName": "group",
                "LifecycleState": "InService",
                "ProtectedFromScaleIn": protected,
            }
            for id, protected in self.fleet.members.items()
        ]
        return {"DesiredCapacity": self.fleet.desired, "MinSize": 0, "MaxSize": LARGEST, "Instances": members}

    def _call(self, name: str, do: Callable[[], T]) -> T:
        return self.life.call(name, do, partial(ConnectionClosedError, endpoint_url="memory://aws"))


@dataclass(frozen=True)
class _OnePage:
    call: Callable[..., Any]

    def paginate(self, **arguments: Any) -> Iterator[Any]:
        yield self.call(**arguments)


@dataclass(frozen=True)
class Metadata:
    """What EC2's metadata service tells an instance, as `shared.imds.Imds` asks it."""

    life: Life
    instance: str

    def get(self, name: str) -> str | None:
        items = {"instance-id": self.instance, "instance-type": "g4dn.xlarge", "instance-life-cycle": "spot"}
        return self.life.call(f"Metadata {name}", lambda: items.get(name), partial(httpx.ConnectError, "no answer"))
