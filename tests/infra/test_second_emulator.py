"""The deploy scripts against moto's server: another's idea of AWS, which refuses what MiniStack lets through."""

import os
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from infra.local import processes, stack
from tests.infra.conftest import REGION, Aws, Step, until

PREFIX = "second"
MODULE = "moto.server"


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    port = processes.free_port(5055)
    url = f"http://127.0.0.1:{port}"
    environment = {
        **stack.without_aws(os.environ),
        "MOTO_ACCOUNT_ID": stack.ACCOUNT,
        "MOTO_IAM_LOAD_MANAGED_POLICIES": "true",
    }
    log = tmp_path_factory.mktemp("moto") / "log"
    server = processes.start([sys.executable, "-m", MODULE, "-p", str(port)], environment=environment, log=log)

    def answers() -> bool:
        assert server.poll() is None, processes.tail(log)
        try:
            with urllib.request.urlopen(f"{url}/moto-api/data.json", timeout=2):
                return True
        except OSError:
            return False

    try:
        until(answers)
        yield url
    finally:
        processes.stop(server.pid, MODULE, grace_seconds=1)


@pytest.fixture(scope="module")
def aws(endpoint: str) -> Aws:
    session = boto3.Session(stack.ACCOUNT, stack.SECRET, region_name=REGION)
    return lambda service: session.client(service, endpoint_url=endpoint)


@pytest.mark.integration
def test_another_aws_takes_the_scripts_too(endpoint: str, aws: Aws, cli: dict[str, str], tmp_path: Path) -> None:
    repository = aws("ecr").create_repository(repositoryName=f"{PREFIX}-server")["repository"]["repositoryUri"]
    manifest = '{"schemaVersion": 2, "mediaType": "application/vnd.docker.distribution.manifest.v2+json"}'
    aws("ecr").put_image(repositoryName=f"{PREFIX}-server", imageManifest=manifest, imageTag="v1")
    aws("ec2").create_launch_template(
        LaunchTemplateName=f"{PREFIX}-gpu", LaunchTemplateData={"ImageId": "ami-12345678", "InstanceType": "t3.micro"}
    )
    aws("autoscaling").create_auto_scaling_group(
        AutoScalingGroupName=f"{PREFIX}-gpu",
        MinSize=0,
        MaxSize=1,
        AvailabilityZones=[f"{REGION}a"],
        LaunchTemplate={"LaunchTemplateName": f"{PREFIX}-gpu"},
    )
    step = Step(
        tmp_path / "env",
        {
            **stack.root_environment(endpoint, REGION),
            **cli,
            "QUEUE_PREFIX": PREFIX,
            "FAST_API_ECR_REPOSITORY_URI": repository,
            "FAST_API_TAG": "v1",
        },
    )

    for number in ("010", "020", "345", "350", "351"):
        done = step(number)
        assert done.returncode == 0, f"{number}: {done.stderr}"

    tags = aws("ssm").list_tags_for_resource(ResourceType="Parameter", ResourceId=f"/{PREFIX}/worker-env")["TagList"]
    assert tags == [{"Key": "Project", "Value": PREFIX}]
