"""Processes of the bench: ways that run in a process of their own and hand back their times, and servers."""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import httpx

from bench.measure import Timed, timed
from gpu_server.settings import ServerSettings
from infra.local import processes, stack

START_S = 300.0  # large weights from a cold disk
STOP_S = 30.0
POLL_S = 0.1

Recognize = Callable[[Path], str]


class ChildError(Exception):
    """A process did not do its work; has its last words."""


@dataclass(frozen=True)
class Model:
    """What all ways load: a folder with a CTranslate2 model, where to run it, in what precision, by which engine."""

    path: str
    device: str
    compute_type: str
    engine: str = "auto"


@dataclass(frozen=True)
class Work:
    """One run of a child: these files, so many at once."""

    name: str
    files: list[str]
    in_flight: int = 1


@dataclass(frozen=True)
class Server:
    """A server of ours that is ready."""

    pid: int
    url: str


def run_child(module: str, model: Model, works: Sequence[Work], logs: Path) -> dict[str, Timed]:
    """Run `python -m module`, which loads `model` and does all `works`; their times, by name.

    Raises ChildError.
    """
    log = logs / f"{module}.log"
    with tempfile.TemporaryDirectory() as folder:
        job, result = Path(folder, "job.json"), Path(folder, "result.json")
        job.write_text(json.dumps({"model": asdict(model), "works": [asdict(work) for work in works]}))
        process = processes.start([sys.executable, "-m", module, job, result], environment=environment({}), log=log)
        try:
            status = process.wait()
        finally:
            _stop(process)
        if status:
            raise ChildError(_last_words(f"{module} ended with status {status}", log))
        return {name: Timed(**times) for name, times in json.loads(result.read_text()).items()}


def child_main(load: Callable[[Model], AbstractContextManager[Recognize]]) -> None:
    """The child's side of `run_child`: `load` gives the function from a file to its text."""
    job, result = Path(sys.argv[1]), Path(sys.argv[2])
    order = json.loads(job.read_text())
    times = {}
    with load(Model(**order["model"])) as recognize:
        for work in (Work(**work) for work in order["works"]):
            groups = [[partial(recognize, Path(file))] for file in work.files]
            timed(groups[-work.in_flight :], in_flight=work.in_flight, pid=os.getpid())  # warm
            times[work.name] = asdict(timed(groups, in_flight=work.in_flight, pid=os.getpid()))
    result.write_text(json.dumps(times))


@contextmanager
def serve(module: str, settings: Mapping[str, str], logs: Path, *, name: str) -> Iterator[Server]:
    """`python -m module` as a server, from when its /health says 200 until the end of the block.

    Raises ChildError when it does not start.
    """
    port, log = processes.free_port(0), logs / f"{name}.log"
    values = {"FAST_API_HOST": "127.0.0.1", "FAST_API_PORT": str(port), **settings}
    process = processes.start([sys.executable, "-m", module], environment=environment(values), log=log)
    try:
        server = Server(process.pid, f"http://127.0.0.1:{port}")
        _await_health(process, server, log)
        yield server
    finally:
        _stop(process)


def environment(settings: Mapping[str, str]) -> dict[str, str]:
    """This process's, without what a person set for their own server or AWS, and with `settings`."""
    theirs = {name.upper() for name in ServerSettings.model_fields}
    inherited = {name: value for name, value in stack.without_aws(os.environ).items() if name.upper() not in theirs}
    return {**inherited, "PYTHONUNBUFFERED": "1", **settings}


def _await_health(process: subprocess.Popen[bytes], server: Server, log: Path) -> None:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise ChildError(_last_words(f"the server ended with status {process.returncode}", log))
        try:
            if httpx.get(f"{server.url}/health", timeout=5).status_code == httpx.codes.OK:
                return
        except httpx.TransportError:
            pass
        time.sleep(POLL_S)
    raise ChildError(_last_words(f"the server is not ready after {START_S:.0f} s", log))


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End a process that we started, if it still runs."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(STOP_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _last_words(what: str, log: Path) -> str:
    return f"{what}: {processes.tail(log, 3)}"
