"""A small disk of memory that can be full: who writes to it then gets ENOSPC, whichever process that is."""

import subprocess
from contextlib import suppress
from pathlib import Path

SIZE = 4 << 20  # bytes
PAGE = 4096  # bytes: tmpfs gives room by the page


class Disk:
    """Use as a context manager; mounted at `folder` until its end. To mount, root's rights are needed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._filler = folder / "filler"

    def __enter__(self) -> "Disk":
        self.folder.mkdir(parents=True, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", self.folder], check=True)
        return self

    def __exit__(self, *_: object) -> None:
        subprocess.run(["umount", "--lazy", self.folder], check=True)  # somebody may have a file open there

    def fill(self, *, room: int = 0) -> None:
        """Up to the last page; and then leave `room` bytes, rounded up to pages."""
        with self._filler.open("wb", buffering=0) as filler:
            with suppress(OSError):
                while filler.write(bytes(PAGE)) == PAGE:
                    pass
            filler.truncate(max(0, filler.tell() // PAGE - -(-room // PAGE)) * PAGE)

    def heal(self) -> None:
        self._filler.unlink(missing_ok=True)
