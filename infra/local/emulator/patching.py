"""Replacing a part of MiniStack: only a part that exists, only in the version it was written for, never silently."""

import logging
from collections.abc import Callable
from importlib.metadata import version
from types import ModuleType
from typing import Any

VERSION = "1.5.33"

log = logging.getLogger(__name__)


def require_version() -> None:
    found = version("ministack")
    if found != VERSION:
        raise SystemExit(
            f"MiniStack {found} is installed, the patches are for {VERSION}: "
            "install requirements/emulator.txt into .venv-aws"
        )


def patch(module: ModuleType, name: str, replacement: Callable[..., Any], *, because: str) -> None:
    if not callable(getattr(module, name, None)):
        raise SystemExit(f"{module.__name__}.{name} is gone from MiniStack: the patch for it has nothing to replace")
    setattr(module, name, replacement)
    log.info("%s.%s replaced: %s", module.__name__, name, because)
