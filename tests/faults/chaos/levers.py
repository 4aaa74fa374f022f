"""Faults that wait in a folder for whoever they are meant for, one file each: taken once, and counted when taken."""

import contextlib
import itertools
from pathlib import Path

SLOW_SECONDS = 1.0  # that a batch takes with "gpu slow"


class Levers:
    """Shared by processes: the file system says who takes a fault."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._numbers = itertools.count()
        folder.mkdir(parents=True, exist_ok=True)

    def pull(self, name: str, times: int = 1) -> None:
        """The next `times` that somebody asks for this fault, it happens."""
        for _ in range(times):
            (self.folder / f"{name}.{next(self._numbers)}").touch()

    def take(self, name: str) -> bool:
        """Whether this fault is to happen here and now; nobody else gets it then."""
        for lever in self.folder.glob(f"{name}.*"):
            with contextlib.suppress(FileNotFoundError):
                lever.unlink()
                return True
        return False

    def left(self, name: str) -> int:
        """How many nobody took."""
        return len(list(self.folder.glob(f"{name}.*")))

    def clear(self) -> None:
        for lever in self.folder.iterdir():
            lever.unlink(missing_ok=True)
