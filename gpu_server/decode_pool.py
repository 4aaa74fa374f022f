"""A pool of confined child processes that decode media: a poisoned file kills its child, not us.

The children come from a fork server, which starts as a fresh interpreter: nothing of the parent's
threads, CUDA context or memory is inherited, and a child that died is replaced in milliseconds.
They import PyAV and nothing heavier, forget the environment (credentials), and may use only so much
memory, processor time, file size and so many open files.
"""

import contextlib
import ctypes
import multiprocessing
import os
import resource
import threading
import time
from collections.abc import Callable
from concurrent.futures import CancelledError
from concurrent.futures import TimeoutError as FutureTimeout
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

import pebble

from gpu_server import decoding
from gpu_server.decoding import BYTES_PER_SAMPLE, SAMPLE_RATE, Decoded, Limits, MediaError

if TYPE_CHECKING:
    import numpy as np

OPEN_FILES = 64
TASKS_PER_CHILD = 1_000  # then a fresh one: slow leaks in codecs stay harmless
GRACE_S = 5.0  # for the pool's own bookkeeping, on top of a task's time limit
CLONE_NEWNET = 0x40000000  # linux/sched.h

Work = Callable[[Path, Path, Limits, float], Decoded]


class DecoderCrashed(MediaError):
    """The file made the decoder die: by a signal, or by asking for more than it may use."""

    type: ClassVar[str] = "media-crashes-decoder"


class DecodeTimeout(MediaError):
    """Decoding took longer than allowed."""

    type: ClassVar[str] = "media-decode-timeout"


class DecodePool:
    """`workers` decoder processes; safe to call from many threads, each call blocks its own.

    timeout_s: for one file, from the moment a child starts on it.
    memory_bytes: address space of one child (about 150 MiB of it are the interpreter and FFmpeg).
    work: what a child does with a file; for tests of what happens when it dies.
    """

    def __init__(
        self,
        *,
        workers: int,
        limits: Limits,
        timeout_s: float = 120.0,
        memory_bytes: int = 1 << 30,
        work: Work | None = None,
    ) -> None:
        self._workers = workers
        self._limits = limits
        self._timeout_s = timeout_s
        self._memory_bytes = memory_bytes
        self._work = work or decode_here
        self._slots = threading.BoundedSemaphore(workers)  # so a scheduled task starts at once
        self._lock = threading.Lock()
        self._pool: pebble.ProcessPool | None = None
        self._closed = False

    def decode(self, source: Path, pcm: Path) -> Decoded:
        """Decode `source` to raw 16 kHz mono s16le at `pcm`; see :func:`decoding.decode`.

        Raises :class:`MediaError`, permanent for these bytes. Other exceptions are ours.
        """
        with self._slots:
            try:
                return self._run(source, pcm)
            except BrokenProcessPool:
                # An idle child's death (the kernel's OOM killer, say) ends the whole pool and
                # fails what other children were doing: do it again in a new one, once.
                return self._run(source, pcm)

    def warm_up(self) -> None:
        """Start all children now, so that the first file does not wait for them."""
        pool = self._current()
        started = [pool.schedule(_linger, timeout=60.0) for _ in range(self._workers)]
        for future in started:
            future.result()

    def close(self) -> None:
        """Stop all children; what they were decoding fails."""
        with self._lock:
            self._closed = True
            pool, self._pool = self._pool, None
        _stop(pool)

    def _run(self, source: Path, pcm: Path) -> Decoded:
        pool = self._current()
        try:
            future = pool.schedule(
                self._work,
                args=(source, pcm, self._limits, self._timeout_s),
                timeout=self._timeout_s,
            )
        except RuntimeError as error:  # it broke since we looked
            self._discard(pool)
            raise BrokenProcessPool("the decoder pool broke") from error
        try:
            return future.result(timeout=self._timeout_s + GRACE_S)
        except pebble.ProcessExpired as error:
            pcm.unlink(missing_ok=True)
            raise DecoderCrashed("The file makes the audio decoder crash.") from error
        except MemoryError as error:
            pcm.unlink(missing_ok=True)
            raise DecoderCrashed("Decoding the file takes too much memory.") from error
        except FutureTimeout as error:
            if not future.done():  # the pool lost track of the task: its child died too early
                self._discard(pool)
                raise BrokenProcessPool("the decoder pool lost a task") from error
            pcm.unlink(missing_ok=True)
            raise DecodeTimeout(f"Decoding the file takes longer than {self._timeout_s:g} seconds.") from error
        except (BrokenProcessPool, CancelledError) as error:
            self._discard(pool)
            raise BrokenProcessPool("the decoder pool broke") from error

    def _current(self) -> pebble.ProcessPool:
        with self._lock:
            if self._closed:
                raise RuntimeError("the decoder pool is closed")
            if self._pool is None:
                context = multiprocessing.get_context("forkserver")
                context.set_forkserver_preload([decoding.__name__, __name__])
                output_bytes = int(self._limits.max_seconds + 60) * SAMPLE_RATE * BYTES_PER_SAMPLE
                self._pool = pebble.ProcessPool(
                    max_workers=self._workers,
                    max_tasks=TASKS_PER_CHILD,
                    initializer=_confine,
                    initargs=(self._memory_bytes, output_bytes),
                    context=context,
                )
            return self._pool

    def _discard(self, pool: pebble.ProcessPool) -> None:
        with self._lock:
            if self._pool is pool:
                self._pool = None
        _stop(pool)


def load_pcm(pcm: Path) -> "np.ndarray":
    """The samples of a decoded file: float32 in [-1, 1), shape (samples,), 16 kHz mono."""
    import numpy as np  # not at the top: the children import this module

    if pcm.stat().st_size == 0:  # cannot be mapped
        return np.zeros(0, dtype=np.float32)
    return np.memmap(pcm, dtype="<i2", mode="r").astype(np.float32) / np.float32(32768)


def _stop(pool: pebble.ProcessPool | None) -> None:
    if pool is not None:
        pool.stop()  # type: ignore[no-untyped-call]
        pool.join()


def _confine(memory_bytes: int, output_bytes: int) -> None:
    """In the child, once: give up what a decoder does not need."""
    os.environ.clear()
    for limit, value in (
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_FSIZE, output_bytes),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
    ):
        resource.setrlimit(limit, (value, value))
    with contextlib.suppress(OSError, AttributeError):  # not allowed, or no such call on this system
        # No network at all where the container lets us; the demuxer allow-list is the first wall.
        ctypes.CDLL(None).unshare(CLONE_NEWNET)


def decode_here(source: Path, pcm: Path, limits: Limits, seconds: float) -> Decoded:
    """In the child: the kernel ends a loop that never comes back, even if the parent is gone."""
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (int(time.process_time() + seconds) + 2, hard))
    return decoding.decode(source, pcm, limits=limits)


def _linger() -> None:
    time.sleep(0.05)
