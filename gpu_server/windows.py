"""Which stretches of audio the recognizer hears at a time: pure functions over spans, in samples.

Whisper was trained on 30 s and its cost grows with what it is given, so pieces of speech are put together to windows of
nearly that length, and a window is padded no further than its content needs.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import pairwise
from typing import Protocol, TypeVar

from gpu_server.engines import FRAME_RATE, FULL_FRAMES, LONGEST_SECONDS, SAMPLE_RATE, SHORT_FRAMES, Audio, Span
from gpu_server.track import Track

LONGEST = LONGEST_SECONDS * SAMPLE_RATE
EARLIEST_CUT = LONGEST // 2  # a window that has to be cut is at least this long, where there is a pause
LONGEST_SILENCE = 2 * SAMPLE_RATE  # inside a window: the recognizer fills longer ones with fancies
BLOCK = 240 * SAMPLE_RATE  # of audio in memory while speech is searched
# Silence after a window's end, without which Whisper repeats itself; a short one has more of it from memory.
SHORT_MARGIN_FRAMES = FRAME_RATE
MARGIN_FRAMES = 2 * FRAME_RATE
STEP_FRAMES = FRAME_RATE // 2  # lengths are rounded up to this
LEAST_FRAMES = 6 * FRAME_RATE  # all of a 5-second chunk: what is heard in it hangs little on the company in its batch

Detect = Callable[[Audio], list[Span]]


def padded_frames(samples: int) -> int:
    """How long a window of so many samples is made, in mel frames."""
    content = samples * FRAME_RATE // SAMPLE_RATE
    short = max(LEAST_FRAMES, _rounded(content + SHORT_MARGIN_FRAMES))
    return short if short <= SHORT_FRAMES else min(FULL_FRAMES, _rounded(content + MARGIN_FRAMES))


def _rounded(frames: int) -> int:
    return -(-frames // STEP_FRAMES) * STEP_FRAMES


def speech_windows(track: Track, detect: Detect, *, block: int = BLOCK) -> Iterator[Span]:
    """The track's windows, in order, found block by block as they are asked for."""
    for stretch in track.stretches():
        yield from merge(_speech(track, stretch, detect, block))


def merge(speech: Iterable[Span]) -> Iterator[Span]:
    """Put neighbouring spans together, silence between them included, as far as a window goes."""
    held: list[Span] = []
    for span in speech:
        if held and span.start - held[-1].end > LONGEST_SILENCE:
            yield _around(held)
            held = []
        while held and span.end - held[0].start > LONGEST:
            cut = _longest_pause([*held, span])
            yield _around(held[:cut])
            held = held[cut:]
        held.append(span)
    if held:
        yield _around(held)


def _around(spans: Sequence[Span]) -> Span:
    return Span(spans[0].start, max(span.end for span in spans))


def _longest_pause(spans: Sequence[Span]) -> int:
    """The place of the span before which to cut: sentences end in long pauses, and hear better whole."""
    filled = [place for place in range(1, len(spans)) if spans[place - 1].end - spans[0].start >= EARLIEST_CUT]
    return max(filled or [len(spans) - 1], key=lambda place: spans[place].start - spans[place - 1].end)


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
