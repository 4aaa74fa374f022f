"""A local AWS for this folder's tests: nothing is deployed to it."""

import os
from collections.abc import Iterator

import pytest

from infra.local import processes, stack


@pytest.fixture(scope="session")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    if not stack.PYTHON.exists():
        if os.environ.get("CI"):
            pytest.fail(".venv-aws is missing: make install")
        pytest.skip(".venv-aws is missing: make install")
    emulator = stack.start_emulator(tmp_path_factory.mktemp("stack"), processes.free_port(0))
    yield emulator.endpoint
    stack.stop(emulator.pid, grace_seconds=2)
