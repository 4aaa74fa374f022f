"""The Auto Scaling group of the instances, as AWS tells of it, and the two things that the launcher does to it."""

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from aws_lambda_powertools import Logger
from botocore.exceptions import ClientError

from batch_worker.reaper import Activity, Instance

# https://docs.aws.amazon.com/autoscaling/ec2/userguide/ec2-auto-scaling-lifecycle.html
ALIVE = frozenset({"Pending", "Pending:Wait", "Pending:Proceed", "InService"})
ACTIVITIES = 100  # the newest; the most that one request gives

logger = Logger(service="launcher", child=True)


@dataclass(frozen=True)
class Standing:
    """How the group stands. `smallest`, `largest`: its own limits."""

    desired: int
    smallest: int
    largest: int
    instances: list[Instance]
    activities: list[Activity]


@dataclass(frozen=True)
class Group:
    """`autoscaling`, `ec2`: boto3's clients, whose errors pass."""

    autoscaling: Any
    ec2: Any
    name: str

    def look(self, now: datetime) -> Standing:
        """An instance that EC2 does not know yet was launched just `now`.

        Raises:
            LookupError: there is no such group.
        """
        found = self.autoscaling.describe_auto_scaling_groups(AutoScalingGroupNames=[self.name])["AutoScalingGroups"]
        if not found:
            raise LookupError(f"there is no Auto Scaling group {self.name}: infra/scripts/step-320 makes it")
        alive = [one for one in found[0]["Instances"] if one["LifecycleState"] in ALIVE]
        launched = self._launched() if alive else {}
        activities = self.autoscaling.describe_scaling_activities(
            AutoScalingGroupName=self.name, MaxRecords=ACTIVITIES
        )["Activities"]
        return Standing(
            desired=found[0]["DesiredCapacity"],
            smallest=found[0]["MinSize"],
            largest=found[0]["MaxSize"],
            instances=[
                Instance(one["InstanceId"], launched.get(one["InstanceId"], now), one["ProtectedFromScaleIn"])
                for one in alive
            ],
            activities=[Activity(one["StartTime"], one["Cause"]) for one in activities],
        )

    def set_desired(self, capacity: int) -> None:
        self.autoscaling.set_desired_capacity(
            AutoScalingGroupName=self.name, DesiredCapacity=capacity, HonorCooldown=False
        )

    def end(self, instance: Instance) -> bool:
        """End it, and nobody takes its place; False if it has ended itself meanwhile, or the group cannot lose it."""
        try:
            self.autoscaling.terminate_instance_in_auto_scaling_group(
                InstanceId=instance.id, ShouldDecrementDesiredCapacity=True
            )
        except ClientError as error:
            if error.response["Error"]["Code"] != "ValidationError":
                raise
            logger.info("not ended", extra={"instance": instance.id, "reason": str(error)})
            return False
        return True

    def _launched(self) -> dict[str, datetime]:
        """By instance id. Asked for by tag: to ask for one that EC2 does not know yet would be an error."""
        ours = [{"Name": "tag:aws:autoscaling:groupName", "Values": [self.name]}]
        pages = self.ec2.get_paginator("describe_instances").paginate(Filters=ours)
        return {
            one["InstanceId"]: one["LaunchTime"]
            for page in pages
            for reservation in page["Reservations"]
            for one in reservation["Instances"]
        }
