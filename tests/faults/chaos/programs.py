"""Our programs as processes: started, killed at any moment, and started again as a supervisor does."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from infra.local import processes
from tests.patience import PATIENCE_SECONDS, POLL_SECONDS


class Program:
    """`python -m module …`. While it is `wanted` it is started again whenever it ends."""

    def __init__(self, module: str, *arguments: str, environment: Mapping[str, str], log: Path) -> None:
        self.log = log
        self._command = [sys.executable, "-m", module, *arguments]
        self._environment = dict(environment)
        self._process: subprocess.Popen[bytes] | None = None
        self._wanted = False
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._keeper = threading.Thread(target=self._keep, daemon=True)

    def start(self) -> None:
        with self._lock:
            self._wanted = True
            self._ensure()
        if not self._keeper.is_alive():
            self._keeper.start()

    def run(self, *, seconds: float = PATIENCE_SECONDS) -> int:
        """Once, to its end; the exit status."""
        process = processes.start(self._command, environment=self._environment, log=self.log)
        try:
            return process.wait(seconds)
        finally:
            process.kill()
            process.wait()

    def kill(self, number: signal.Signals = signal.SIGKILL) -> bool:
        """A signal at whatever it does now; False if it does not run. It is started again if it ends of it."""
        with self._lock:
            runs = self._process is not None and self._process.poll() is None
            if self._process and runs:
                self._process.send_signal(number)
            return runs

    @property
    def pid(self) -> int:
        """Of the process that runs, or ran last."""
        with self._lock:
            assert self._process
            return self._process.pid

    def stop(self, *, grace_seconds: float = 30.0) -> int | None:
        """SIGTERM, and SIGKILL if that is not heeded; it stays away. The exit status."""
        with self._lock:
            self._wanted = False
            process, self._process = self._process, None
        if process is None:
            return None
        process.terminate()
        try:
            return process.wait(grace_seconds)
        except subprocess.TimeoutExpired:
            process.kill()
            return process.wait()

    def close(self) -> None:
        self._stop.set()
        self.stop(grace_seconds=5)

    def _keep(self) -> None:
        while not self._stop.wait(POLL_SECONDS):
            with self._lock:
                if self._wanted:
                    self._ensure()

    def _ensure(self) -> None:
        if self._process is None or self._process.poll() is not None:
            self._process = processes.start(self._command, environment=self._environment, log=self.log)


def children(pid: int) -> list[int]:
    """The processes that `pid` started, whichever of its threads did."""
    listed = Path(f"/proc/{pid}/task").glob("*/children")
    with suppress(OSError):  # a thread, or all of it, is gone meanwhile
        return [int(child) for file in listed for child in file.read_text().split()]
    return []


def is_busy(pid: int) -> bool:
    """Whether its main thread does anything but wait for the next line of a pipe, as far as the kernel tells."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        waits_in = Path(f"/proc/{pid}/wchan").read_text()
    except OSError:  # it is gone
        return False
    return state == "R" or ("pipe_read" not in waits_in and waits_in != "0")


def signal_quietly(pid: int, number: signal.Signals) -> bool:
    """False when there is no such process any more."""
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True
