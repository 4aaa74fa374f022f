"""The EC2 instance that a worker runs on: what its metadata say, and what it tells its Auto Scaling group."""

from dataclasses import dataclass
from typing import Any

import httpx
from aws_lambda_powertools import Logger
from botocore.exceptions import BotoCoreError, ClientError

from shared.imds import Imds

logger = Logger(service="batch-worker", child=True)


@dataclass(frozen=True)
class Instance:
    """`market`: "on-demand" or "spot"."""

    id: str
    type: str
    market: str


def this_instance(imds: Imds) -> Instance | None:
    """None where there is no metadata service, as on a laptop."""
    try:
        id, machine, market = (imds.get(name) for name in ("instance-id", "instance-type", "instance-life-cycle"))
    except httpx.HTTPError as error:
        logger.info("not on an instance", extra={"reason": type(error).__name__})
        return None
    return Instance(id, machine or "", market or "") if id else None


@dataclass(frozen=True)
class Member:
    """An instance's place in its Auto Scaling group. `client`: boto3's of Auto Scaling."""

    client: Any
    id: str
    group: str

    def protect(self, protected: bool) -> None:
        """From scale-in. Nothing is lost without it but time, so a failure is only logged."""
        try:
            self.client.set_instance_protection(
                AutoScalingGroupName=self.group, InstanceIds=[self.id], ProtectedFromScaleIn=protected
            )
        except (ClientError, BotoCoreError) as error:
            logger.warning("scale-in protection not set", extra={"protected": protected, "reason": str(error)})

    def working(self) -> frozenset[str]:
        """The ids of the group's instances that have a worker at work which means to stay; none if nobody says.

        Those that are protected: a worker is so from its server's start until it has had nothing to do for long.
        """
        # All of the account's, since a filter would need their ids.
        # https://docs.aws.amazon.com/autoscaling/ec2/APIReference/API_DescribeAutoScalingInstances.html
        try:
            pages = self.client.get_paginator("describe_auto_scaling_instances").paginate()
            found = [one for page in pages for one in page["AutoScalingInstances"]]
        except (ClientError, BotoCoreError) as error:
            logger.warning("the group's instances are not known", extra={"reason": str(error)})
            return frozenset()
        return frozenset(
            one["InstanceId"]
            for one in found
            if one["AutoScalingGroupName"] == self.group
            and one["LifecycleState"] == "InService"
            and one["ProtectedFromScaleIn"]
        )

    def end(self) -> bool:
        """End this instance, and nobody takes its place. False if it stays, as the group's smallest size may want."""
        try:
            self.client.terminate_instance_in_auto_scaling_group(
                InstanceId=self.id, ShouldDecrementDesiredCapacity=True
            )
        except (ClientError, BotoCoreError) as error:
            logger.info("this instance stays", extra={"instance": self.id, "reason": str(error)})
            return False
        logger.info("this instance ends", extra={"instance": self.id, "group": self.group})
        return True


def membership(client: Any, instance: Instance) -> Member | None:
    """None for an instance of no group; also when nobody says: whoever started it then has to end it."""
    try:
        found = client.describe_auto_scaling_instances(InstanceIds=[instance.id])["AutoScalingInstances"]
    except (ClientError, BotoCoreError) as error:
        logger.warning("the instance's group is not known", extra={"reason": str(error)})
        return None
    return Member(client, instance.id, found[0]["AutoScalingGroupName"]) if found else None
