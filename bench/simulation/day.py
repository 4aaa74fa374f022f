"""The uploads: a synthetic day of recordings, or a CSV of real ones, as lumps of chunks that share their fate."""

import csv
import math
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from bench.simulation.scenario import DAY, Scenario
from shared.errors import RefusedKey
from shared.keys import ChunkKey, Session, parse_key

# Recordings that begin in each hour from midnight on, in proportion: a working day with a lunch break and an evening.
PROFILE = (1, 1, 1, 1, 1, 2, 4, 8, 12, 14, 14, 12, 10, 12, 14, 13, 11, 8, 6, 5, 4, 3, 2, 1)
LENGTH_SPREAD = 0.8  # sigma of the recordings' log-normal lengths
LONGEST_LUMP = 60.0  # seconds of uploads that one lump stands for at most


@dataclass(frozen=True, slots=True)
class Lump:
    """`count` uploads in the `span` seconds before `at`, `audio` seconds long together.

    `sessions`: how many recordings went on then; 0 for a file that belongs to none.
    """

    at: float
    count: int
    audio: float
    span: float
    sessions: int


def uploads(scenario: Scenario) -> Iterator[Lump]:
    """In order of time, in seconds from the first midnight. Raises ValueError for a CSV that cannot be used."""
    return replayed(scenario.replay, scenario.grain) if scenario.replay else synthetic(scenario)


def synthetic(scenario: Scenario) -> Iterator[Lump]:
    """Recordings of log-normal lengths that begin by the day's profile; exactly `chunks` uploads come of each day.

    A recording uploads one chunk in every `chunk_seconds`: so a slice of that length has as many chunks as recordings.
    """
    rng = np.random.default_rng(scenario.seed)
    slices = math.ceil(DAY / scenario.chunk_seconds)
    change = np.zeros((scenario.days + 1) * slices + 1, dtype=np.int64)  # the last recordings go on after midnight
    mean = scenario.session_seconds / scenario.chunk_seconds
    for day in range(scenario.days):
        lengths = _lengths(scenario.chunks, mean, slices, rng)
        hours = rng.choice(len(PROFILE), size=len(lengths), p=np.array(PROFILE) / sum(PROFILE))
        begins = day * slices + ((hours + rng.random(len(lengths))) / len(PROFILE) * slices).astype(np.int64)
        np.add.at(change, begins, 1)
        np.subtract.at(change, begins + lengths, 1)
    pending, since = 0, 0.0
    for number, recordings in enumerate(np.cumsum(change).tolist()):
        start, end = number * scenario.chunk_seconds, (number + 1) * scenario.chunk_seconds
        since = since if pending else start
        pending += recordings
        if pending and (pending >= scenario.grain or end - since >= LONGEST_LUMP or not recordings):
            yield from _spread(pending, since, end, max(1, recordings), scenario)
            pending = 0


def _lengths(chunks: int, mean: float, longest: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Chunks of each recording, `chunks` in all."""
    found = np.zeros(0, dtype=np.int64)
    while found.sum() < chunks:
        more = rng.lognormal(math.log(mean) - LENGTH_SPREAD**2 / 2, LENGTH_SPREAD, size=2 + int(chunks / mean))
        found = np.concatenate([found, np.clip(more.round().astype(np.int64), 1, longest)])
    until = np.cumsum(found)
    found = found[: int(np.searchsorted(until, chunks)) + 1]
    found[-1] -= int(found.sum()) - chunks
    return found


def _spread(count: int, since: float, end: float, sessions: int, scenario: Scenario) -> Iterator[Lump]:
    """As few lumps as the grain allows, evenly over the time."""
    parts = math.ceil(count / scenario.grain)
    width = (end - since) / parts
    for part in range(1, parts + 1):
        size = count * part // parts - count * (part - 1) // parts
        span = width if size > 1 else 0.0
        yield Lump(since + part * width, size, size * scenario.chunk_seconds, span, sessions)


def replayed(path: Path, grain: int) -> Iterator[Lump]:
    """A CSV with the columns time (ISO 8601, UTC unless it says otherwise), key, audio_seconds, in order of time.

    It is read twice, and never held.
    """
    begins: dict[Session, float] = {}
    ends: dict[Session, float] = {}
    midnight = math.nan
    for at, _, session in _rows(path):
        midnight = at - at % DAY if math.isnan(midnight) else midnight
        if session:
            begins.setdefault(session, at)
            ends[session] = at
    first, last = sorted(begins.values()), sorted(ends.values())
    held, audio, since, until = 0, 0.0, 0.0, 0.0

    def lump() -> Lump:
        sessions = bisect_right(first, until) - bisect_left(last, since)
        return Lump(until - midnight, held, audio, until - since, max(1, sessions))

    for at, seconds, session in _rows(path):
        if held and (held >= grain or at - since >= LONGEST_LUMP or not session):
            yield lump()
            held, audio = 0, 0.0
        if not session:
            yield Lump(at - midnight, 1, seconds, 0.0, 0)
            continue
        since = since if held else at
        held, audio, until = held + 1, audio + seconds, at
    if held:
        yield lump()


def _rows(path: Path) -> Iterator[tuple[float, float, Session | None]]:
    """Time, seconds of audio, and the recording that it belongs to, if any."""
    latest = -math.inf
    with path.open(newline="") as file:
        for number, row in enumerate(csv.DictReader(file), start=2):
            try:
                time, key, seconds = datetime.fromisoformat(row["time"]), row["key"], float(row["audio_seconds"])
            except (KeyError, TypeError, ValueError) as error:
                raise ValueError(f"{path}, line {number}: wanted are time, key, audio_seconds ({error})") from error
            at = (time if time.tzinfo else time.replace(tzinfo=UTC)).timestamp()
            if at < latest or not seconds > 0:
                raise ValueError(f"{path}, line {number}: out of order, or no seconds of audio")
            latest = at
            yield at, seconds, _session(key)
    if math.isinf(latest):
        raise ValueError(f"{path} has no uploads")


def _session(key: str) -> Session | None:
    try:
        parsed = parse_key(key)
    except RefusedKey:
        return None
    return parsed.session if isinstance(parsed, ChunkKey) else None
