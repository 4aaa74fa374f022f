"""Which names of the real modules the simulation replaces, and with what."""

import contextlib
from collections.abc import Iterator
from contextlib import nullcontext
from functools import lru_cache
from types import SimpleNamespace
from typing import Any

import batch_worker.batch
import batch_worker.drain
import batch_worker.lease
import batch_worker.letters
import batch_worker.stopping
import batch_worker.sweep
import batch_worker.unfinished
import batch_worker.work
import gpu_server.readiness
import gpu_server.service
import gpu_server.session_pass
import router_lambda.handler
import router_lambda.route
import shared.chunk_writer
import shared.combine
import shared.jobs
import shared.keys
import shared.outcomes
from tests.faults.simulation.server import SimChunks
from tests.faults.simulation.stage import (
    ASYNCIO,
    DICE,
    QUIET,
    TEMPFILE,
    THREADING,
    TIME,
    Clock,
    Folder,
    InlinePool,
    Pool,
    join,
    maybe_sweep,
    stage,
    wait,
    whole,
)

# A sixth of the time went into parsing the same few keys: a pure function from one string to a frozen value.
KEYS = {"parse_key": lru_cache(maxsize=1 << 12)(shared.keys.parse_key)}

PATCHES: list[tuple[Any, dict[str, Any]]] = [
    (shared.keys, KEYS),
    (shared.chunk_writer, {"tempfile": TEMPFILE, "Path": Folder}),
    (shared.combine, {"ThreadPoolExecutor": InlinePool, "threading": SimpleNamespace(Lock=nullcontext)}),
    (shared.combine, {"datetime": Clock}),
    (shared.outcomes, {"datetime": Clock}),
    (shared.jobs, {"datetime": Clock}),
    (router_lambda.route, {"ThreadPoolExecutor": InlinePool, "random": DICE}),
    (router_lambda.handler, {"logger": QUIET, "telemetry": QUIET, "time": TIME, "_router": lambda: stage.router}),
    (router_lambda.handler, {"_log": QUIET, "asdict": vars}),
    (batch_worker.work, {"ThreadPoolExecutor": InlinePool, "time": TIME, "logger": QUIET}),
    (batch_worker.drain, {"ThreadPoolExecutor": Pool, "wait": wait, "time": TIME, "logger": QUIET}),
    (batch_worker.drain, {"STOP_POLL_SECONDS": 5.0, "HEALTH_POLL_SECONDS": 20.0}),  # fewer idle looks
    (batch_worker.lease, {"threading": THREADING, "time": TIME, "logger": QUIET}),
    (batch_worker.letters, {"logger": QUIET}),
    (batch_worker.stopping, {"time": TIME}),
    (batch_worker.batch, {"random": DICE, "datetime": Clock, "sweep": maybe_sweep}),
    (batch_worker.sweep, {"ThreadPoolExecutor": InlinePool}),
    (batch_worker.unfinished, {"ThreadPoolExecutor": InlinePool}),
    (gpu_server.service, {"asyncio": ASYNCIO, "ThreadPoolExecutor": InlinePool, "time": TIME, "logger": QUIET}),
    (gpu_server.readiness, {"time": TIME}),
    (gpu_server.service, {"tempfile": TEMPFILE, "Path": Folder, "join": join, "whole": whole}),
    (gpu_server.session_pass, {"ThreadPoolExecutor": InlinePool, "tempfile": TEMPFILE, "Path": Folder, "join": join}),
    (gpu_server.session_pass, {"wait": wait}),
    (gpu_server.service, {"Chunks": SimChunks}),
]


@contextlib.contextmanager
def set_up() -> Iterator[None]:
    """Put the names in place; afterwards the modules are as they were."""
    before = [(module, {name: getattr(module, name) for name in names}) for module, names in PATCHES]
    try:
        for module, names in PATCHES:
            vars(module).update(names)
        yield
    finally:
        for module, names in reversed(before):
            vars(module).update(names)
