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


def patch(module: ModuleType, name: str, replacement: Any, *, because: str) -> None:
    """Replace a function, or a constant by one of its kind."""
    found = getattr(module, name, None)
    if not (callable(found) if callable(replacement) else isinstance(found, type(replacement))):
        raise SystemExit(f"{module.__name__}.{name} is gone from MiniStack: the patch for it has nothing to replace")
    setattr(module, name, replacement)
    log.info("%s.%s replaced: %s", module.__name__, name, because)


def patch_action(module: ModuleType, action: str, handler: Callable[..., Any], *, because: str) -> None:
    """Replace what answers an API action."""
    if action not in module._ACTION_MAP:
        raise SystemExit(f"{module.__name__} has no {action} any more: the patch for it has nothing to replace")
    module._ACTION_MAP[action] = handler
    log.info("%s %s replaced: %s", module.__name__, action, because)


def add_action(module: ModuleType, action: str, handler: Callable[..., Any]) -> None:
    """Answer an API action that MiniStack does not know."""
    if action in module._ACTION_MAP:
        raise SystemExit(f"{module.__name__} has its own {action} now: the one here is to be removed")
    module._ACTION_MAP[action] = handler
    log.info("%s %s added", module.__name__, action)
