"""The scripts work with both versions of the AWS CLI: all tests use 1, this one uses 2 where the machine has it."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.infra.conftest import Step


def cli_2() -> str | None:
    for folder in os.environ.get("PATH", "").split(os.pathsep):
        program = Path(folder) / "aws"
        if os.access(program, os.X_OK):
            said = subprocess.run([program, "--version"], capture_output=True, text=True, check=False).stdout
            if said.startswith("aws-cli/2"):
                return str(program)
    return None


@pytest.mark.integration
def test_the_other_cli_is_as_good(deployed: Step) -> None:
    program = cli_2()
    if not program:
        pytest.skip("no AWS CLI 2 on PATH")
    done = deployed("342", AWS_CLI=program)  # a binary payload, JSON documents in and out, lists as text
    assert done.returncode == 0, done.stderr
