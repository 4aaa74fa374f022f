"""Waiting for what must come, on a machine that may have much else to do."""

import time
from collections.abc import Callable
from typing import TypeVar

PATIENCE_SECONDS = 600.0
POLL_SECONDS = 0.1
T = TypeVar("T")


def eventually(look: Callable[[], T | None], what: str, *, seconds: float = PATIENCE_SECONDS) -> T:
    """What `look` finds, once it finds something; fails after `seconds`."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := look():
            return found
        time.sleep(POLL_SECONDS)
    raise AssertionError(f"not within {seconds:.0f} s: {what}")
