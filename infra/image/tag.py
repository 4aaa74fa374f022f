"""The image's tag, printed: a hash of all that goes into the image, so that nothing changed means nothing is built."""

# ruff: noqa: T201  printing is what the step runs this for

import hashlib
import sys
from collections.abc import Sequence
from pathlib import Path

DOCKERFILE = "Dockerfile.gpu"
LENGTH = 16  # of 64 hex digits: enough to tell images of one repository apart


def main() -> None:
    root, *build_arguments = sys.argv[1:]
    print(tag(Path(root), build_arguments))


def tag(root: Path, build_arguments: Sequence[str]) -> str:
    content = hashlib.sha256()
    for argument in build_arguments:
        content.update(f"{argument}\0".encode())
    for path in context(root):
        data = (root / path).read_bytes()
        content.update(f"{path}\0{len(data)}\0".encode())
        content.update(data)
    return content.hexdigest()[:LENGTH]


def context(root: Path) -> list[str]:
    """What .dockerignore lets in, and the Dockerfile: paths below `root`, in an order that is the same everywhere."""
    lines = (root / ".dockerignore").read_text().splitlines()
    named = [root / DOCKERFILE, *(root / line[1:] for line in lines if line.startswith("!"))]
    files = (path for start in named for path in (start, *start.rglob("*")) if path.is_file())
    paths = (path.relative_to(root) for path in files)
    return sorted(path.as_posix() for path in paths if not any(map(is_left_out, path.parts)))


def is_left_out(part: str) -> bool:
    return part == "__pycache__" or part.startswith(".")


if __name__ == "__main__":
    main()
