"""What is to be reached, and whether the rows reach it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from bench.measure import Row

Rows = Mapping[str, Row]

# Rows' ids.
STOCK, STOCK_WHOLE, PLAIN, BARE, SESSION, LONG = "stock", "stock-whole", "plain-4", "bare-16", "session-4", "long-1"
LONE, LONE_16, LONE_S3, LIVE = "upload-1", "upload-16", "s3-16", "live-4"


@dataclass(frozen=True)
class Target:
    """`reached`: None when a row it needs has no numbers."""

    what: str
    wanted: str
    measured: str
    reached: bool | None


def targets(rows: Rows, *, with_wer: bool = True) -> list[Target]:
    """All targets; without those on words where the model says what it likes."""

    def speed_ratio(ours: str, theirs: str) -> float | None:
        a, b = _row(rows, ours), _row(rows, theirs)
        return a.speed / b.speed if a and b else None

    found = [
        _at_least("16 in flight / stock, file by file", 4, speed_ratio(LONE_16, STOCK)),
        _at_least("16 in flight / plain server", 5, speed_ratio(LONE_16, PLAIN)),
        _at_least("stitched session / stock, file by file", 4, speed_ratio(SESSION, STOCK)),
        _at_least("stitched session / stock, uncut", 1.5, speed_ratio(SESSION, STOCK_WHOLE)),
    ]
    if with_wer:
        found += [
            _wer("WER, lone chunks one by one", LONE, lambda stock, whole: stock + 0.01, rows),
            _wer("WER, live session with 15 s of context", LIVE, lambda stock, whole: (stock + whole) / 2, rows),
            _wer("WER, stitched session", SESSION, lambda stock, whole: whole + 0.005, rows),
        ]
    lone, stock = _row(rows, LONE), _row(rows, STOCK)
    ratio = lone.p50 / stock.p50 if lone and stock else None
    found.append(_at_most("latency of one chunk, idle server / stock", 0.5, ratio))
    return [*found, _overhead(rows), *_memory(rows)]


def _row(rows: Rows, id: str) -> Row | None:
    row = rows.get(id)
    return row if row and not row.failed else None


def _at_least(what: str, wanted: float, ratio: float | None) -> Target:
    return Target(what, f">= {wanted:g}x", _times(ratio), None if ratio is None else ratio >= wanted)


def _at_most(what: str, wanted: float, ratio: float | None) -> Target:
    return Target(what, f"<= {wanted:g}x", _times(ratio), None if ratio is None else ratio <= wanted)


def _times(ratio: float | None) -> str:
    return "-" if ratio is None else f"{ratio:.2f}x"


def _wer(what: str, id: str, limit: Callable[[float, float], float], rows: Rows) -> Target:
    """`limit`: the highest WER allowed, from stock's on the chunks and stock's on the uncut recording."""
    stock, whole, ours = (row.wer if (row := _row(rows, id)) else None for id in (STOCK, STOCK_WHOLE, id))
    if stock is None or (whole is None and id != LONE):
        return Target(what, "-", "-" if ours is None else f"{ours:.2%}", None)
    wanted = limit(stock, stock if whole is None else whole)
    if ours is None:
        return Target(what, f"<= {wanted:.2%}", "-", None)
    return Target(what, f"<= {wanted:.2%}", f"{ours:.2%}", ours <= wanted)


def _overhead(rows: Rows) -> Target:
    """By processor time of the server where the system tells: the local S3 takes from the wall clock."""
    what, wanted = "service overhead over the bare engine, 16 in flight, from S3", "< 10 %"
    service, bare = _row(rows, LONE_S3), _row(rows, BARE)
    if not service or not bare:
        return Target(what, wanted, "-", None)
    wall = (service.wall / service.audio_seconds) / (bare.wall / bare.audio_seconds) - 1
    if not service.cpu_seconds or not bare.cpu_seconds:
        return Target(what, wanted, f"{wall:.1%} by wall clock", wall < 0.1)
    cpu = (service.cpu_seconds / service.audio_seconds) / (bare.cpu_seconds / bare.audio_seconds) - 1
    return Target(what, wanted, f"{cpu:.1%} by CPU seconds, {wall:.1%} by wall clock", cpu < 0.1)


def _memory(rows: Rows) -> list[Target]:
    """Nothing when the long file was not asked for."""
    if LONG not in rows:
        return []
    long = _row(rows, LONG)
    above = long.peak_bytes - long.idle_bytes if long and long.peak_bytes and long.idle_bytes else None
    what, wanted = "memory for a 3-hour file above the idle server", "< 1 GB"
    if above is None:
        return [Target(what, wanted, "-", None)]
    return [Target(what, wanted, f"{above / 1e6:.0f} MB", above < 1e9)]
