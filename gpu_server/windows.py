"""Which stretches of audio the recognizer hears at a time: pure functions over spans, in samples.

Whisper was trained on 30 s and its cost grows with what it is given, so pieces of speech are put together to windows of
nearly that length, and a window is padded no further than its content needs.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Protocol, TypeVar

from gpu_server.engines import FRAME_RATE, FULL_FRAMES, SAMPLE_RATE, Audio, Span
from gpu_server.track import Track

# A second of audio is cheapest in windows of 10 to 20 s, and heard best in the longest.
LONGEST = 22 * SAMPLE_RATE
LONGEST_SILENCE = 2 * SAMPLE_RATE  # inside a window: the recognizer fills longer ones with fancies
BLOCK = 240 * SAMPLE_RATE  # of audio in memory while speech is searched
# Silence after a window's end without which Whisper loops: short windows need most of it.
MARGIN_FRAMES = 4 * FRAME_RATE
STEP_FRAMES = 2 * FRAME_RATE  # lengths are rounded up to this, so that windows of a batch are alike
LEAST_FRAMES = 12 * FRAME_RATE

Detect = Callable[[Audio], list[Span]]


def padded_frames(samples: int) -> int:
    """How long a window of so many samples is made, in mel frames."""
    wanted = samples * FRAME_RATE // SAMPLE_RATE + MARGIN_FRAMES
    rounded = -(-wanted // STEP_FRAMES) * STEP_FRAMES
    return min(FULL_FRAMES, max(LEAST_FRAMES, rounded))


def speech_windows(track: Track, detect: Detect, *, block: int = BLOCK) -> Iterator[Span]:
    """The track's windows, in order, found block by block as they are asked for."""
    for stretch in track.stretches():
        yield from merge(_speech(track, stretch, detect, block))


def merge(speech: Iterable[Span]) -> Iterator[Span]:
    """Put neighbouring spans together, silence between them included, as far as a window goes."""
    window: Span | None = None
    for span in speech:
        if window and span.end - window.start <= LONGEST and span.start - window.end <= LONGEST_SILENCE:
            window = Span(window.start, max(window.end, span.end))
            continue
        if window:
            yield window
        window = span
    if window:
        yield window


def _speech(track: Track, stretch: Span, detect: Detect, block: int) -> Iterator[Span]:
    """Speech in one stretch. What touches the end of a block is looked at again, with what follows."""
    start = stretch.start
    while start < stretch.end:
        end = min(start + block, stretch.end)
        found = [Span(start + span.start, start + span.end) for span in detect(track.read(Span(start, end)))]
        next_start = end
        if end < stretch.end and found and found[-1].end >= end - LONGEST_SILENCE:
            *found, open_span = found
            # Speech that fills a whole block has to be cut somewhere.
            next_start = open_span.start if open_span.start > start else end
            if next_start == end:
                found.append(open_span)
        yield from found
        start = next_start


class Placed(Protocol):
    """A chunk that waits for the recognizer. `lead`: samples at its start that are not its own."""

    @property
    def session(self) -> object: ...
    @property
    def index(self) -> int: ...
    @property
    def samples(self) -> int: ...
    @property
    def lead(self) -> int: ...


P = TypeVar("P", bound=Placed)


def run_around(head: P, waiting: Sequence[P]) -> list[P]:
    """`head` and the chunks next to it in its session that wait too, in order, as many as one window holds.

    Only the first brings its lead; the others' is in the chunks before them.
    """
    neighbours = {item.index: item for item in waiting if item.session == head.session}
    neighbours[head.index] = head
    run = [head]
    for step in (1, -1):
        index = head.index + step
        while (item := neighbours.get(index)) and _length(extended := _extend(run, item, step)) <= LONGEST:
            run = extended
            index += step
    return run


def _extend(run: list[P], item: P, step: int) -> list[P]:
    return [*run, item] if step > 0 else [item, *run]


def _length(run: Sequence[Placed]) -> int:
    return run[0].samples + sum(item.samples - item.lead for _, item in pairwise(run))
