"""The local AWS as plain functions: start it, stop it, deploy to it, and who to be when talking to it."""

import configparser
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from infra.local import processes

ROOT = processes.ROOT
PYTHON = ROOT / ".venv-aws/bin/python"

ACCOUNT = "111111111111"  # MiniStack: an access key of twelve digits is the root user of that account
SECRET = "test"  # noqa: S105  MiniStack's own for the root user; presigned URLs are checked against it
PREFERRED_PORT = 4566
MODULE = "infra.local.emulator"

START_SECONDS = 120  # on a machine that has much else to do
STOP_SECONDS = 20  # a long poll of a worker that is still there holds the emulator's exit back that long

CORE_STEPS = (
    "step-000-setup-configuration",
    "step-001-validate-configuration",
    "step-010-setup-iam-permissions",
    "step-011-validate-iam-permissions",
    "step-020-create-sqs-resources",
    "step-021-validate-sqs-resources",
    "step-340-deploy-lambda-router",
    "step-341-configure-eventbridge-trigger",
    "step-342-test-lambda-router",
)


# What step-000 to 342 take from ENV_FILE, for which the environment would win.
SETTINGS = frozenset(
    {"API_KEY", "AUDIO_BUCKET", "EVENT_BUS_NAME", "FAST_API_SERVER_URL", "QUEUE_PREFIX"}
    | {"SQS_QUEUE_URL", "SQS_DLQ_URL", "SQS_FAILURES_QUEUE_URL"}
)


class StackError(Exception):
    """The local stack could not be started or deployed to; the message is for a person."""


@dataclass(frozen=True, slots=True)
class Emulator:
    pid: int
    endpoint: str
    log: Path


def start_emulator(home: Path, port: int | None = None) -> Emulator:
    """Start the emulator with its state in the folder `home`; returns when it answers.

    Raises:
        StackError: it is not installed, it exited, or it did not answer in time.
    """
    if not PYTHON.exists():
        raise StackError(f"{PYTHON} is missing: `make install` brings the local AWS")
    state, log = home / "aws", home / "log/emulator.log"
    shutil.rmtree(state / "tmp", ignore_errors=True)  # unpacked functions of a killed emulator
    for folder in (state / "state", state / "s3", state / "tmp"):
        folder.mkdir(parents=True, exist_ok=True)
    port = processes.free_port(port or PREFERRED_PORT)
    process = processes.start([PYTHON, "-m", MODULE], environment=_emulator_environment(state, port), log=log)
    emulator = Emulator(process.pid, f"http://127.0.0.1:{port}", log)
    try:
        _wait_until_healthy(process, emulator)
    except BaseException:  # also on Ctrl-C: no emulator is left behind
        stop(process.pid, grace_seconds=1)
        raise
    return emulator


def stop(pid: int, *, grace_seconds: float = STOP_SECONDS) -> bool:
    """End an emulator that we started; False if `pid` is not one (any more)."""
    return processes.stop(pid, MODULE, grace_seconds=grace_seconds)


def is_emulator(pid: int) -> bool:
    return processes.runs(pid, MODULE)


def root_environment(endpoint: str, region: str) -> dict[str, str]:
    """The environment of the account's root user: for deploying and for a person's shell."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": ACCOUNT,
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_REGION": region,
        "AWS_DEFAULT_REGION": region,
    }


def instance_role_profile(
    home: Path, *, endpoint: str, region: str, queue_prefix: str = "smart-transcription"
) -> dict[str, str]:
    """The environment in which boto3 is the GPU instance's role, renewed by boto3 as on an instance.

    It goes into a process without AWS_ACCESS_KEY_ID, which would win over the profile: see `without_aws`.
    """
    config = configparser.ConfigParser()
    config["profile root"] = {
        "aws_access_key_id": ACCOUNT,
        "aws_secret_access_key": SECRET,
        "region": region,
    }
    config["profile gpu-instance"] = {
        "role_arn": f"arn:aws:iam::{ACCOUNT}:role/{queue_prefix}-gpu-instance",
        "role_session_name": "local",
        "source_profile": "root",
        "region": region,
    }
    path = home / "aws-config"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        config.write(file)
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_CONFIG_FILE": str(path),
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_PROFILE": "gpu-instance",
        "AWS_REGION": region,
        "AWS_DEFAULT_REGION": region,
        "AWS_EC2_METADATA_DISABLED": "true",
    }


def without_aws(environment: Mapping[str, str]) -> dict[str, str]:
    """An environment without what a person set for their own AWS: keys, profile, endpoint, CA bundle."""
    return {name: value for name, value in environment.items() if not name.startswith("AWS_")}


def deploy(
    env_file: Path, environment: Mapping[str, str], on_step: Callable[[str, float | None], None] | None = None
) -> None:
    """Run the core deploy scripts in order.

    Args:
        env_file: what the scripts use as `.env`.
        environment: the AWS_* variables, and settings that win over `env_file`.
        on_step: called with the step's name and None when it starts, its seconds when it is done.

    Raises:
        StackError: a step failed; has the step's own words.
    """
    # What a person's shell has from an earlier `source .local/env` must not win over `env_file`.
    inherited = {name: value for name, value in without_aws(os.environ).items() if name not in SETTINGS}
    settings = {**inherited, **lambda_settings(), **environment, "ENV_FILE": str(env_file)}
    for step in CORE_STEPS:
        if on_step:
            on_step(step, None)
        started = time.monotonic()
        done = subprocess.run(
            ["bash", ROOT / f"infra/scripts/{step}.sh", "--yes"],
            cwd=ROOT,
            env=settings,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
        )
        if done.returncode:
            raise StackError(f"{step} failed (status {done.returncode}):\n{done.stderr.strip()}")
        if on_step:
            on_step(step, time.monotonic() - started)


def lambda_settings() -> dict[str, str]:
    """The function must run here: on the emulator's Python and this machine's wheels."""
    settings = {
        "LAMBDA_RUNTIME": f"python{_version_of(ROOT / '.venv-aws')}",
        "LAMBDA_ARCHITECTURE": "arm64" if platform.machine() in ("arm64", "aarch64") else "x86_64",
    }
    if sys.platform != "linux":
        settings["LAMBDA_WHEELS"] = "native"
    return settings


def _version_of(virtual_environment: Path) -> str:
    for line in (virtual_environment / "pyvenv.cfg").read_text().splitlines():
        name, _, value = line.partition("=")
        if name.strip() in ("version", "version_info"):
            return ".".join(value.strip().split(".")[:2])
    raise StackError(f"{virtual_environment}/pyvenv.cfg names no Python version: remove it and run `make install`")


def _emulator_environment(state: Path, port: int) -> dict[str, str]:
    """A clean one: functions inherit the emulator's, and e.g. a CA bundle or proxy of this machine would break them."""
    return {
        "PATH": os.environ.get("PATH", os.defpath),
        "HOME": os.environ.get("HOME", str(state)),
        "LANG": "C.UTF-8",
        "PYTHONUTF8": "1",
        "TMPDIR": str(state / "tmp"),
        "GATEWAY_PORT": str(port),
        "BIND_HOST": "127.0.0.1",
        "AUTH": "true",
        "PERSIST_STATE": "1",
        "S3_PERSIST": "1",
        "STATE_DIR": str(state / "state"),
        "S3_DATA_DIR": str(state / "s3"),
        "IOT_MTLS_ENABLED": "0",
        "SFTP_ENABLED": "0",
        "LAMBDA_ACCOUNT_CONCURRENCY": "8",
        "LAMBDA_WARM_TTL_SECONDS": "30",
    }


def _wait_until_healthy(process: subprocess.Popen[bytes], emulator: Emulator) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise StackError(f"the local AWS exited (status {process.returncode}):\n{processes.tail(emulator.log)}")
        if _answers(emulator):
            return
        time.sleep(processes.POLL_SECONDS)
    raise StackError(f"the local AWS did not answer within {START_SECONDS} s:\n{processes.tail(emulator.log)}")


def _answers(emulator: Emulator) -> bool:
    """Whether it does: not a stranger, nor another emulator that was faster to the same port."""
    try:
        with urllib.request.urlopen(f"{emulator.endpoint}/_ministack/health", timeout=2) as answer:  # noqa: S310  loopback
            return bool(json.load(answer)["ready_scripts"]["pid"] == emulator.pid)
    except (OSError, ValueError, LookupError, TypeError):
        return False
