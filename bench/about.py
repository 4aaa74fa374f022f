"""What a reader must know to judge the numbers: machine, versions, speech."""

import importlib.metadata
import os
import platform
import re
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

from bench.children import Model
from bench.speech import Recording

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("whisperx", "faster-whisper", "ctranslate2", "torch", "av", "jiwer")


def notes(model: Model, name: str, recordings: Sequence[Recording]) -> list[str]:
    """One line each."""
    minutes = sum(recording.seconds for recording in recordings) / 60
    chunks = sum(len(recording.chunks) for recording in recordings)
    versions = [f"{name} {found}" for name in PACKAGES if (found := _version(name))]
    return [
        f"{datetime.now(UTC):%Y-%m-%d}, {machine(model.device)}",
        f"Python {platform.python_version()}, {', '.join(versions)}",
        f"{name}, {model.compute_type}; our engine: {model.engine}",
        f"{minutes:.1f} minutes of speech in {len(recordings)} recordings, {chunks} WebM/Opus chunks of 5 seconds",
        "one run, one way after the other; each warmed up, loading of models not counted",
        "stock WhisperX decodes with PyAV, where by itself it starts an ffmpeg for each file; batch size 8",
        "beams: 5 in the stock ways; ours too, but on a CPU only where a greedy search is unsure",
        "CPU s/min: processor seconds of the serving process, children included, for a minute of audio",
        "peak MB: the sum of the peaks of a process and its children; busy: the recognizer's share of the time",
    ]


def machine(device: str = "cpu") -> str:
    cores = f"{os.cpu_count()} cores {platform.machine()}"
    if device == "cuda":
        command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        with suppress(OSError):  # no nvidia-smi
            gpu = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603  no input
            return f"{' + '.join(gpu.splitlines())}, {cores}"
    with suppress(OSError):  # not Linux
        if found := re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE):
            return f"{found.group(1)}, {cores}"
    return cores


def revision() -> str:
    """The commit that is checked out, "" without git; "+" when files differ from it, results apart."""
    with suppress(OSError):
        changed = _git("diff", "--name-only", "HEAD", "--", ".", ":!bench/results")
        return _git("rev-parse", "--short", "HEAD") + ("+" if changed else "")
    return ""


def _git(*arguments: str) -> str:
    command = ["git", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()  # noqa: S603  no input


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
