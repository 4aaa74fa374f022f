"""The EC2 instance that a worker runs on: what its metadata say, and what it tells its Auto Scaling group."""

from dataclasses import dataclass
from typing import Any

import httpx
from aws_lambda_powertools import Logger
from botocore.exceptions import BotoCoreError, ClientError

IMDS = "http://169.254.169.254"
IMDS_SECONDS = 2.0
TOKEN_SECONDS = 21_600  # the most there is

logger = Logger(service="batch-worker", child=True)


class Imds:
    """EC2's instance metadata service, version 2. Safe to share between threads.

    https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/instancedata-data-retrieval.html
    """

    def __init__(self, endpoint: str = IMDS) -> None:
        self._client = httpx.Client(base_url=f"{endpoint}/latest", timeout=IMDS_SECONDS, trust_env=False)
        self._token = ""

    def get(self, name: str) -> str | None:
        """The metadata's item `name`; None if there is none.

        Raises:
            httpx.HTTPError: the service does not answer, as everywhere but on an instance.
        """
        response = self._get(name)
        if response.status_code == httpx.codes.UNAUTHORIZED:  # no token yet, or it is too old
            lifetime = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_SECONDS)}
            self._token = self._client.put("/api/token", headers=lifetime).raise_for_status().text
            response = self._get(name)
        if response.status_code == httpx.codes.NOT_FOUND:
            return None
        return response.raise_for_status().text.strip()

    def _get(self, name: str) -> httpx.Response:
        return self._client.get(f"/meta-data/{name}", headers={"X-aws-ec2-metadata-token": self._token})


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
