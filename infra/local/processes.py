"""Background processes of the local stack: start, find again, stop. Only ever our own."""

import contextlib
import os
import signal
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
POLL_SECONDS = 0.05


def start(command: Sequence[str | Path], *, environment: Mapping[str, str], log: Path) -> subprocess.Popen[bytes]:
    """Start `command` in the project's folder, its output going to `log`.

    In a session of its own: Ctrl-C in the terminal is for whoever started it, who stops things in order.
    Returns when its command line shows, since `runs` goes by that: the kernel writes it a little after Popen returns.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            list(command),
            cwd=ROOT,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    while process.poll() is None and not _command_line(process.pid):
        time.sleep(0.001)
    return process


def runs(pid: int, module: str) -> bool:
    """Whether process `pid` is `python -m module`: numbers are reused, and a stale one must not kill a stranger."""
    with contextlib.suppress(ChildProcessError):  # not our child
        os.waitpid(pid, os.WNOHANG)  # a child of ours that ended is a zombie until someone looks
    return module in _command_line(pid)


def stop(pid: int, module: str, *, grace_seconds: float) -> bool:
    """End the process: SIGTERM, then SIGKILL after a grace period; False if `pid` is not ours (any more)."""
    if not runs(pid, module):
        return False
    for number, seconds in ((signal.SIGTERM, grace_seconds), (signal.SIGKILL, 5.0)):
        try:
            os.kill(pid, number)
        except ProcessLookupError:
            return True
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if not runs(pid, module):
                return True
            time.sleep(POLL_SECONDS)
    return not runs(pid, module)


def free_port(preferred: int) -> int:
    """`preferred`, or any other free port on 127.0.0.1."""
    for port in (preferred, 0):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return int(probe.getsockname()[1])
    raise OSError("no free port on 127.0.0.1")


def tail(log: Path, lines: int = 20) -> str:
    return "\n".join(log.read_text(errors="replace").splitlines()[-lines:]) if log.exists() else ""


def _command_line(pid: int) -> str:
    if Path("/proc/self").exists():
        try:
            return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            return ""
    command = ["ps", "-o", "command=", "-p", str(pid)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout
