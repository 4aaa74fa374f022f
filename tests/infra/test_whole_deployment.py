"""`make deploy` and `make destroy` as a person runs them, against a local AWS with the real server beside it."""

import os
import subprocess
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

from cli.local import QUEUE_PREFIX, LocalStack
from infra.local import stack
from shared.keys import Session
from tests.infra.test_destroy import everything
from tests.integration.conftest import DATA, System
from tests.patience import eventually

pytestmark = pytest.mark.integration

# What needs more than a machine has: a container engine, and instances that run.
ELSEWHERE = "312 313 352"


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[System]:
    """A stack of its own, since it is destroyed; the core of it is deployed already."""
    monkeypatch.setenv("HEALTH_CHECK_TIMEOUT", "10")  # for whatever deploys the router, as in the integration tests
    local = LocalStack(tmp_path / "stack", server_port=8102)
    try:
        local.up(server=True, on_step=lambda step, seconds: None)
        yield System(local)
    finally:
        local.down()


Make = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def make(own: System, cli: dict[str, str]) -> Make:
    return partial(run_make, own, cli)


def run_make(system: System, cli: dict[str, str], target: str, **settings: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **stack.without_aws(os.environ),
        **stack.lambda_settings(),
        **{name: system.settings[name] for name in system.settings if name.startswith("AWS_")},
        **cli,
        "ENV_FILE": str(system.local._env_file),
        "YES": "1",
        **settings,
    }
    return subprocess.run(
        ["make", "--no-print-directory", target],
        cwd=stack.ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_make_deploy_goes_through_an_upload_comes_back_and_make_destroy_leaves_nothing(own: System, make: Make) -> None:
    before = {"bus default", *(name for name in everything(own.local.client) if name.startswith("security group"))}
    ecr = own.local.client("ecr")
    repository = f"{QUEUE_PREFIX}-server"
    ecr.create_repository(repositoryName=repository, tags=[{"Key": "Project", "Value": QUEUE_PREFIX}])
    ecr.put_image(repositoryName=repository, imageManifest='{"schemaVersion": 2}', imageTag="elsewhere")

    deployed = make("deploy", SKIP=ELSEWHERE, FAST_API_TAG="elsewhere", MONTHLY_BUDGET="50")

    assert deployed.returncode == 0, deployed.stderr[-4000:]
    assert "make deploy: 19 steps" in deployed.stderr

    session = Session("u", "whole deployment")
    own.put(f"{session.audio_prefix}chunk-1.webm", (DATA / "session-a/chunk-001.webm").read_bytes())
    own.manifest(session, 1)
    transcript = eventually(lambda: own.transcript(session), "the session's transcript")
    assert transcript.text

    again = make("deploy", SKIP=ELSEWHERE, FAST_API_TAG="elsewhere", MONTHLY_BUDGET="50")
    assert again.returncode == 0, again.stderr[-4000:]

    destroyed = make("destroy", DELETE_AUDIO="yes")
    assert destroyed.returncode == 0, destroyed.stderr[-4000:]
    assert destroyed.stdout == "left: nothing\n"
    assert everything(own.local.client) == before
