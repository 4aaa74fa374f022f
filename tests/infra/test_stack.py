"""The local AWS: starts, keeps its state, stops, and lets no one mistake another process for it."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import boto3
import pytest

from infra.local import processes, stack
from tests.infra.conftest import REGION, Step


@pytest.mark.integration
def test_state_survives_a_restart_and_a_taken_port_is_no_obstacle(root: Path, tmp_path: Path) -> None:

    def sqs(emulator: stack.Emulator):  # type: ignore[no-untyped-def]
        return boto3.client(
            "sqs",
            endpoint_url=emulator.endpoint,
            region_name=REGION,
            aws_access_key_id=stack.ACCOUNT,
            aws_secret_access_key=stack.SECRET,
        )

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        first = stack.start_emulator(tmp_path, port)
        assert first.endpoint != f"http://127.0.0.1:{port}"
        url = sqs(first).create_queue(QueueName="kept")["QueueUrl"]
        sqs(first).send_message(QueueUrl=url, MessageBody="still here")
        assert stack.stop(first.pid)

    second = stack.start_emulator(tmp_path)
    try:
        (message,) = sqs(second).receive_message(QueueUrl=sqs(second).get_queue_url(QueueName="kept")["QueueUrl"])[
            "Messages"
        ]
        assert message["Body"] == "still here"
    finally:
        assert stack.stop(second.pid)
    assert not stack.is_emulator(second.pid)


@pytest.mark.integration
def test_what_another_emulator_answers_is_not_taken_for_our_own(
    emulator: stack.Emulator, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = int(emulator.endpoint.rpartition(":")[2])
    monkeypatch.setattr(processes, "free_port", lambda preferred: port)  # as it was when both looked for one
    with pytest.raises(stack.StackError, match="already in use"):
        stack.start_emulator(tmp_path)


def test_only_an_emulator_is_stopped() -> None:
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as stranger:
        assert not stack.stop(stranger.pid)
        assert stranger.poll() is None
        stranger.kill()


def test_a_machine_without_the_emulator_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stack, "PYTHON", tmp_path / "missing")
    with pytest.raises(stack.StackError, match="make install"):
        stack.start_emulator(tmp_path)


@pytest.mark.integration
def test_the_instance_profile_makes_boto3_the_instances_role(
    root: Path, emulator: stack.Emulator, deployed: Step
) -> None:
    profile = stack.instance_role_profile(root, endpoint=emulator.endpoint, region=REGION)
    script = "import boto3; print(boto3.client('sts').get_caller_identity()['Arn'])"

    answer = subprocess.run(
        [sys.executable, "-c", script],
        env={**stack.without_aws(os.environ), **profile},
        capture_output=True,
        text=True,
        check=True,
    )

    assert answer.stdout.startswith(f"arn:aws:sts::{stack.ACCOUNT}:assumed-role/smart-transcription-gpu-instance/")


@pytest.mark.integration
def test_a_step_that_fails_says_why(tmp_path: Path, environment: dict[str, str]) -> None:
    env_file = tmp_path / "env"
    env_file.write_text("QUEUE_PREFIX=Not_A_Prefix\n")

    with pytest.raises(stack.StackError, match="step-001-validate-configuration failed") as error:
        stack.deploy(env_file, environment)

    assert "QUEUE_PREFIX is 'Not_A_Prefix'" in str(error.value)
