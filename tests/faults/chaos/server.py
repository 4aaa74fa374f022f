"""`python -m tests.faults.chaos.server`: the real GPU server, with an engine that hears numbers and fails on demand.

All else is `python -m gpu_server`: its settings, its HTTP, its decoders, its scheduler, its way to end.
FAULTS_LEVERS: a folder; see `levers`. FAULTS_HEARD: a file that gets the words of every chunk that is recognised.
"""

import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from gpu_server import __main__ as server
from gpu_server.engines import Engine, EngineFault, OutOfMemory
from tests.faults.chaos.levers import SLOW_SECONDS, Levers
from tests.faults.chaos.numbers import engine


def load_engine(*_: Any, **__: Any) -> Engine:
    levers = Levers(Path(os.environ["FAULTS_LEVERS"]))
    heard = os.open(os.environ["FAULTS_HEARD"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def before(windows: int) -> None:
        if levers.take("gpu slow"):
            time.sleep(SLOW_SECONDS)
        if windows > 1 and levers.take("gpu full with a batch"):
            raise OutOfMemory("no room for a batch")
        if levers.take("gpu full"):
            raise OutOfMemory("no room for one window")
        if levers.take("gpu error"):
            raise RuntimeError("an odd window")
        if levers.take("gpu broken"):
            raise EngineFault("CUDA error: an illegal memory access was encountered")

    return engine(before=before, heard=lambda line: _append(heard, line))


def _append(file: int, line: str) -> None:
    os.write(file, f"{line}\n".encode())


def serve(load: Callable[..., Engine]) -> NoReturn:
    """Be `python -m gpu_server` but for the recognizer's door, and end as it does."""
    server.load_engine = load
    status = server.main()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    serve(load_engine)
