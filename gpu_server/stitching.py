"""Gives what was heard on a joined time line back to the pieces it was made of: pure functions."""

from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import groupby

from gpu_server.engines import SAMPLE_RATE, Segment, Span, Word
from gpu_server.engines.timeline import shift


def give_back(segments: Iterable[Segment], pieces: Sequence[Span]) -> list[list[Segment]]:
    """For each piece the segments of its own, on its own time line.

    A word belongs to the piece that holds its midpoint; a segment that goes across an edge is cut in two there. A
    segment without words goes whole to the piece that holds its own midpoint.
    """
    starts = [piece.start / SAMPLE_RATE for piece in pieces]
    given: list[list[Segment]] = [[] for _ in pieces]
    for segment in segments:
        for owner, part in _cut(segment, starts):
            given[owner].append(shift(part, -starts[owner]))
    return given


def _cut(segment: Segment, starts: Sequence[float]) -> Iterator[tuple[int, Segment]]:
    if not segment.words:
        yield _owner(segment, starts), segment
    for owner, group in groupby(segment.words, key=lambda word: _owner(word, starts)):
        yield owner, with_words(segment, tuple(group))


def _owner(what: Segment | Word, starts: Sequence[float]) -> int:
    """The piece that holds its midpoint. Of empty pieces at one place the last: it is the one that goes on."""
    return max(0, bisect_right(starts, (what.start + what.end) / 2) - 1)


def with_words(segment: Segment, words: tuple[Word, ...]) -> Segment:
    """A part of `segment`: its text is what the words spell."""
    return replace(
        segment, start=words[0].start, end=words[-1].end, text="".join(word.word for word in words), words=words
    )
