"""A fresh local AWS for this folder's tests, what talks to it, and the scripts deployed to it once."""

import io
import os
import subprocess
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.config import Config

from infra.local import processes, stack
from tests.infra import cli_server

REGION = "us-east-2"
SCRIPTS = stack.ROOT / "infra/scripts"

# How a stand-in for the AWS CLI begins: `words` is the call, without the options that every call has.
WORDS_OF_CALL = """#!/usr/bin/env bash
words=()
while (($#)); do
  case $1 in
    --region | --endpoint-url | --cli-connect-timeout | --cli-read-timeout) shift 2 ;;
    *) words+=("$1"); shift ;;
  esac
done
"""

Aws = Callable[[str], Any]


def until(condition: Callable[[], Any], *, seconds: float = 120) -> Any:
    """What `condition` returns once it is true."""
    deadline = time.monotonic() + seconds
    while True:
        if result := condition():
            return result
        if time.monotonic() > deadline:
            raise AssertionError(f"not within {seconds} s: {condition}")
        time.sleep(0.05)


@pytest.fixture(scope="session")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if not stack.PYTHON.exists():
        if os.environ.get("CI"):
            pytest.fail(".venv-aws is missing: make install")
        pytest.skip(".venv-aws is missing: make install")
    return tmp_path_factory.mktemp("stack")


@pytest.fixture(scope="session")
def emulator(root: Path) -> Iterator[stack.Emulator]:
    # Of two that start at one moment both find the usual port free, and one would be taken for the other.
    emulator = stack.start_emulator(root, processes.free_port(0))
    yield emulator
    stack.stop(emulator.pid, grace_seconds=5)


@pytest.fixture(scope="session")
def cli(root: Path) -> Iterator[dict[str, str]]:
    """Makes the scripts' AWS CLI one that is started already."""
    with tempfile.TemporaryDirectory() as folder:  # a socket's path must be short
        client, path = cli_server.install(stack.PYTHON, Path(folder))
        log, environment = root / "log/cli.log", {**stack.without_aws(os.environ), "PYTHONUTF8": "1"}
        server = processes.start([stack.PYTHON, cli_server.__file__, path], environment=environment, log=log)
        try:
            until(lambda: path.exists() or server.poll() is not None)
            assert server.poll() is None, processes.tail(log)
            yield {"AWS_CLI": str(client)}
        finally:
            server.terminate()
            server.wait()


@pytest.fixture(scope="session")
def environment(emulator: stack.Emulator, cli: dict[str, str]) -> dict[str, str]:
    return {**stack.root_environment(emulator.endpoint, REGION), **cli}


@pytest.fixture(scope="session")
def aws(emulator: stack.Emulator) -> Aws:
    """The account's root user; IAM does not hold it back."""
    session = boto3.Session(
        aws_access_key_id=stack.ACCOUNT, aws_secret_access_key=stack.SECRET, region_name=REGION, botocore_session=None
    )
    config = Config(retries={"total_max_attempts": 1})
    return lambda service: session.client(service, endpoint_url=emulator.endpoint, config=config)


class Step:
    """Runs deploy scripts against the emulator, with a configuration file of their own."""

    def __init__(self, env_file: Path, environment: dict[str, str]) -> None:
        self.env_file = env_file
        self.environment = environment

    def __call__(self, number: str, *arguments: str, **settings: str) -> subprocess.CompletedProcess[str]:
        (script,) = SCRIPTS.glob(f"step-{number}-*.sh")
        environment = {**stack.without_aws(os.environ), **stack.lambda_settings(), **self.environment, **settings}
        return subprocess.run(
            ["bash", script, "--yes", *arguments],
            env={**environment, "ENV_FILE": str(self.env_file)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )

    def settings(self) -> dict[str, str]:
        lines = self.env_file.read_text().splitlines()
        return dict(line.split("=", 1) for line in lines if "=" in line and not line.startswith("#"))


@pytest.fixture(scope="session")
def deployed(root: Path, environment: dict[str, str]) -> Step:
    step = Step(root / "deployed.env", environment)
    stack.deploy(step.env_file, environment)
    return step


@pytest.fixture(scope="session")
def function_role(aws: Aws) -> str:
    trust = (
        '{"Version":"2012-10-17","Statement":[{"Effect":"Allow","Action":"sts:AssumeRole",'
        '"Principal":{"Service":"lambda.amazonaws.com"}}]}'
    )
    role = aws("iam").create_role(RoleName="test-function", AssumeRolePolicyDocument=trust)
    return str(role["Role"]["Arn"])


@pytest.fixture
def function(aws: Aws, function_role: str, request: pytest.FixtureRequest) -> Callable[..., str]:
    """Deploys source code as a function named after the test; returns its ARN."""

    def deploy(source: str, **environment: str) -> str:
        content = io.BytesIO()
        with zipfile.ZipFile(content, "w") as archive:
            archive.writestr("app.py", source)
        created = aws("lambda").create_function(
            FunctionName=request.node.name[:60],
            Runtime=stack.lambda_settings()["LAMBDA_RUNTIME"],
            Role=function_role,
            Handler="app.handler",
            Timeout=20,
            Code={"ZipFile": content.getvalue()},
            Environment={"Variables": environment},
        )
        return str(created["FunctionArn"])

    return deploy


@pytest.fixture
def queue(aws: Aws, request: pytest.FixtureRequest) -> tuple[str, str]:
    """URL and ARN of an empty queue named after the test."""
    sqs = aws("sqs")
    url = sqs.create_queue(QueueName=request.node.name[:80])["QueueUrl"]
    attributes = sqs.get_queue_attributes(QueueUrl=url, AttributeNames=["QueueArn"])
    return url, attributes["Attributes"]["QueueArn"]
