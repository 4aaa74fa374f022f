"""`python -m tests.faults.load.server`: the real GPU server, with an engine that takes LOAD_SECONDS for every window.

All else is `python -m gpu_server`: its settings, its HTTP, its decoders, its scheduler, its way to end.
"""

import os
import time
from typing import Any

from gpu_server.engines import Engine
from tests.faults.chaos.numbers import engine
from tests.faults.chaos.server import serve


def load_engine(*_: Any, **__: Any) -> Engine:
    seconds = float(os.environ["LOAD_SECONDS"])
    return engine(before=lambda windows: time.sleep(seconds * windows), heard=lambda line: None)


if __name__ == "__main__":
    serve(load_engine)
