"""The local stack's processes are found again by their command lines, from their first moment on."""

import os
import sys
from pathlib import Path

from infra.local import processes

ROUNDS = 60  # of the starts on an idle machine, a quarter were not found at once before `start` waited


def test_a_process_is_found_as_soon_as_it_is_started(tmp_path: Path) -> None:
    for _ in range(ROUNDS):
        process = processes.start([sys.executable, "-m", "http.server", "0"], environment={}, log=tmp_path / "log")
        found = processes.runs(process.pid, "http.server")
        process.kill()
        process.wait()
        assert found


def test_one_that_ends_at_once_is_not_waited_for(tmp_path: Path) -> None:
    process = processes.start(["true"], environment=os.environ, log=tmp_path / "log")
    process.wait()
    assert not processes.runs(process.pid, "true")
