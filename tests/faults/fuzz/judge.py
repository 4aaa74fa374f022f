"""Puts broken media through the real decoder, in its pool of children, and says what must not have happened."""

import ctypes
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from bench.measure import peak_bytes
from gpu_server.decoding import BYTES_PER_SAMPLE, Decoded, Limits, MediaError
from tests.faults.chaos.programs import children
from tests.faults.fuzz.broken import Case, samples

LIMITS = Limits(max_seconds=600)
TIMEOUT_S = 20.0
MEMORY_BYTES = 400 << 20  # of a decoder's address space; 150 of it are there before the first file
LONGER = 0.25  # seconds by which a cut file may be longer than the whole: its end is not said any more
STATUSES = {413, 415, 422}

IN_ACCESS, IN_OPEN, IN_NONBLOCK = 0x1, 0x20, 0o4000  # linux/inotify.h


Decode = Callable[[Path, Path], Decoded]


@dataclass
class Verdicts:
    """What the cases came to, by name; whatever broke a rule; `peak_bytes` of this process's children together."""

    outcomes: Counter[str] = field(default_factory=Counter)
    violations: list[str] = field(default_factory=list)
    slowest: tuple[float, str] = (0.0, "")
    peak_bytes: int = 0

    @property
    def cases(self) -> int:
        return self.outcomes.total()


def judge(decode: Decode, cases: Iterable[Case], folder: Path) -> Verdicts:
    """Each case ends in audio that can be transcribed or in a typed refusal, in time; then `decode` works as before."""
    verdicts = Verdicts()
    source, pcm = folder / "media", folder / "pcm"
    lengths = {name: _seconds(decode, body, folder) for name, body in samples().items()}
    for case in cases:
        source.write_bytes(case.content)
        began = time.monotonic()
        try:
            decoded = decode(source, pcm)
        except MediaError as error:
            outcome = error.type
            if error.status not in STATUSES or pcm.exists():
                verdicts.violations.append(f"{case.name}: status {error.status}, or samples left behind")
        except Exception as error:  # whatever it is, it is a finding
            outcome = type(error).__name__
            verdicts.violations.append(f"{case.name}: {error!r}")
        else:
            outcome = decoded.reason or ("truncated" if decoded.truncated else "audio")
            most = lengths[case.like] + LONGER if case.like else LIMITS.max_seconds
            if decoded.duration > most or pcm.stat().st_size != decoded.samples * BYTES_PER_SAMPLE:
                verdicts.violations.append(f"{case.name}: {decoded.duration:.2f} s of at most {most:.2f}")
        seconds = time.monotonic() - began
        verdicts.outcomes[outcome] += 1
        verdicts.slowest = max(verdicts.slowest, (seconds, case.name))
    if _seconds(decode, samples()["webm"], folder) != lengths["webm"]:
        verdicts.violations.append("genuine files are not decoded as before")
    verdicts.peak_bytes = sum(peak_bytes(child) or 0 for child in children(os.getpid()))
    assert verdicts.peak_bytes, "no decoder whose memory can be read"
    return verdicts


def _seconds(decode: Decode, body: bytes, folder: Path) -> float:
    (folder / "genuine").write_bytes(body)
    return decode(folder / "genuine", folder / "genuine.pcm").duration


@dataclass
class Trap:
    """`url` of a server that nobody may ask, `file` that nobody may open; what happened to either is in `sprung`."""

    url: str
    file: Path
    sprung: list[str]


@contextmanager
def trap(folder: Path) -> Iterator[Trap]:
    """Until the end of the block; only then all is in `sprung`."""
    file = folder / "secret.wav"
    file.write_bytes(samples()["wav"])
    sprung: list[str] = []
    with socket.create_server(("127.0.0.1", 0)) as door, _watched(file, sprung):
        yield Trap(f"http://127.0.0.1:{door.getsockname()[1]}/secret.wav", file, sprung)
        door.setblocking(False)
        with suppress(BlockingIOError):  # nobody else has called
            while True:
                door.accept()[0].close()
                sprung.append("connection")


@contextmanager
def _watched(file: Path, sprung: list[str]) -> Iterator[None]:
    """inotify(7): the kernel notes whoever opens or reads the file, in whichever process."""
    libc = ctypes.CDLL(None, use_errno=True)
    watch = libc.inotify_init1(IN_NONBLOCK)
    if watch < 0 or libc.inotify_add_watch(watch, os.fsencode(file), IN_ACCESS | IN_OPEN) < 0:
        raise OSError(ctypes.get_errno(), "inotify")
    try:
        yield
        with suppress(BlockingIOError):  # nobody has touched it
            if os.read(watch, 4096):
                sprung.append("file opened")
    finally:
        os.close(watch)
