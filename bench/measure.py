"""What is measured: wall clock and latency of calls, processor time and memory of a process, words that are wrong."""

import os
import re
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import jiwer

from cli.demo import NORMALIZE

Call = Callable[[], str]
TICKS = os.sysconf("SC_CLK_TCK")  # per second, in /proc/<pid>/stat
GONE = (FileNotFoundError, ProcessLookupError)  # a process that ended while it was looked at; all else is no number


@dataclass(frozen=True)
class Timed:
    """One run. `latencies` and `texts`: of each call, in the order given. None: this system does not tell."""

    wall: float
    latencies: list[float]
    texts: list[str]
    cpu_seconds: float | None = None
    peak_bytes: int | None = None
    busy_seconds: float | None = None


@dataclass(frozen=True)
class Row:
    """One line of the table. `failed`: why there are no numbers. `wer`: None where words mean nothing.

    `idle_bytes`: the process's memory before it began, where that is asked.
    """

    id: str
    way: str
    in_flight: int
    audio_seconds: float = 0.0
    wall: float = 0.0
    p50: float = 0.0
    p95: float = 0.0
    wer: float | None = None
    cpu_seconds: float | None = None
    peak_bytes: int | None = None
    idle_bytes: int | None = None
    busy_share: float | None = None
    failed: str | None = None

    @property
    def speed(self) -> float:
        """Audio seconds per second."""
        return self.audio_seconds / self.wall if self.wall else 0.0


def timed(
    groups: Sequence[Sequence[Call]], *, in_flight: int, pid: int, busy: Callable[[], float] | None = None
) -> Timed:
    """Make all calls, those of one group one after the other, `in_flight` groups at once. The first error ends it.

    pid: the process that works for it; its children count. busy: reads the recognizer's busy seconds.
    """

    def run(group: Sequence[Call]) -> list[tuple[float, str]]:
        done = []
        for call in group:
            call_began = time.perf_counter()
            text = call()
            done.append((time.perf_counter() - call_began, text))
        return done

    reset_peak(pid)
    cpu_before, busy_before = cpu_seconds(pid), busy() if busy else 0.0
    pool = ThreadPoolExecutor(in_flight, thread_name_prefix="load")
    began = time.perf_counter()
    try:
        done = [one for group in pool.map(run, groups) for one in group]
        wall = time.perf_counter() - began
    finally:
        pool.shutdown(cancel_futures=True)
    cpu_after = cpu_seconds(pid)
    return Timed(
        wall=wall,
        latencies=[seconds for seconds, _ in done],
        texts=[text for _, text in done],
        cpu_seconds=None if cpu_before is None or cpu_after is None else cpu_after - cpu_before,
        peak_bytes=peak_bytes(pid),
        busy_seconds=busy() - busy_before if busy else None,
    )


def percentile(values: Sequence[float], share: float) -> float:
    """The smallest value that at least `share` of all do not exceed (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, -int(-share * len(ordered) // 1) - 1)]


def wer(references: Sequence[str], hypotheses: Sequence[str]) -> float:
    """Wrong words over all references' words; punctuation and hyphens do not count."""
    plain = [[text.replace("-", " ").replace("—", " ") for text in texts] for texts in (references, hypotheses)]
    return float(jiwer.process_words(plain[0], plain[1], NORMALIZE, NORMALIZE).wer)


def join(texts: Sequence[str], order: Sequence[tuple[int, int]], count: int) -> list[str]:
    """The texts of (recording, chunk) as one text for each of `count` recordings, in the chunks' order."""
    parts: list[list[tuple[int, str]]] = [[] for _ in range(count)]
    for (recording, chunk), text in zip(order, texts, strict=True):
        parts[recording].append((chunk, text))
    return [" ".join(text.strip() for _, text in sorted(part)) for part in parts]


def busy_seconds(metrics: str) -> float:
    """The recognizer's busy seconds so far, from a server's Prometheus page."""
    found = re.search(r"^recognizer_busy_seconds_total (\S+)", metrics, re.MULTILINE)
    return float(found.group(1)) if found else 0.0


def cpu_seconds(pid: int) -> float | None:
    """Processor time of a process and its descendants, those that ended included."""
    ticks = [sum(int(field) for field in stat[11:15]) for _, stat in _tree(pid)]
    return sum(ticks) / TICKS if ticks else None


def rss_bytes(pid: int) -> int | None:
    """Resident memory of a process and its descendants now."""
    return _status(pid, "VmRSS")


def peak_bytes(pid: int) -> int | None:
    """The sum of the peaks of a process and its descendants since `reset_peak`: never less than their peak together."""
    return _status(pid, "VmHWM")


def reset_peak(pid: int) -> None:
    for process, _ in _tree(pid):
        with suppress(*GONE):
            Path(f"/proc/{process}/clear_refs").write_text("5")  # proc(5): resets VmHWM


def _status(pid: int, field: str) -> int | None:
    total = 0
    for process, _ in _tree(pid):
        with suppress(*GONE):
            found = re.search(rf"^{field}:\s+(\d+) kB", Path(f"/proc/{process}/status").read_text(), re.MULTILINE)
            total += int(found.group(1)) * 1024 if found else 0
    return total or None


def _tree(root: int) -> Iterator[tuple[int, list[str]]]:
    """A process and its descendants: number, and the fields of `stat` behind the name."""
    stats: dict[int, list[str]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # gone meanwhile, or a stranger's that this user may not look at
            stats[int(path.parent.name)] = path.read_text().rpartition(")")[2].split()
    wanted = [root]
    while wanted:
        pid = wanted.pop()
        if pid in stats:
            yield pid, stats[pid]
            wanted += [child for child, stat in stats.items() if stat[1] == str(pid)]
