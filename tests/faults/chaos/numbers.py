"""Speech that is fast and certain: a chunk says three numbers, and a recognizer that hears just those.

A transcript's text follows from its audio alone, so that one under another chunk's name, or of an older version, shows.
"""

import io
import wave
from collections.abc import Callable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from gpu_server.engines import SAMPLE_RATE, Audio, Engine, Features, Heard, Span, Window, Word

GREATEST = 999
LEVEL = 1000  # a number is as loud as its share of this
SAID = round(0.06 * SAMPLE_RATE)  # samples of one number
PAUSE = round(0.04 * SAMPLE_RATE)

Numbers = tuple[int, int, int]


def spoken(numbers: Numbers) -> bytes:
    """A WAV file that says `numbers`, each from 1 to GREATEST.

    The first one is below nought: where the server puts chunks together without the silence between them, it does not
    run into the last one of the chunk before.
    """
    assert all(1 <= number <= GREATEST for number in numbers)
    first, second, third = numbers
    pause = np.zeros(PAUSE)
    parts = [pause]
    for level in (-first, second, third):
        parts += [np.full(SAID, level / LEVEL), pause]
    file = io.BytesIO()
    with wave.open(file, "wb") as audio:
        audio.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        audio.writeframes((np.concatenate(parts) * 32767).astype("<i2").tobytes())
    return file.getvalue()


def text(numbers: Numbers) -> str:
    """What a transcript of it says."""
    return " ".join(map(str, numbers))


def detect(audio: Audio) -> list[Span]:
    """Every number is a stretch of speech."""
    levels = np.concatenate([[0], np.rint(audio * LEVEL).astype(int), [0]])
    edges: NDArray[np.int_] = np.flatnonzero(np.diff(levels))
    return [Span(int(start), int(end)) for start, end in pairwise(edges) if levels[start + 1]]


class Reader:
    """`before`: called with the size of each batch, before it is heard; `heard`: with each chunk's text, after."""

    model, device, languages = "numbers", "cpu", frozenset({"en"})

    def __init__(self, *, before: Callable[[int], None], heard: Callable[[str], None]) -> None:
        self._before = before
        self._heard = heard

    def key(self, window: Window) -> object:
        return window.temperature

    def prepare(self, window: Window) -> Features:
        return window.audio[None, :]

    def recognize(self, windows: Sequence[Window], features: Sequence[Features]) -> list[Heard]:
        self._before(len(windows))
        return [self._read(window.audio) for window in windows]

    def _read(self, audio: Audio) -> Heard:
        spans = detect(audio)
        levels = [round(float(audio[span.start]) * LEVEL) for span in spans]
        words = tuple(
            Word(word=f" {abs(level)}", start=span.start / SAMPLE_RATE, end=span.end / SAMPLE_RATE, score=1.0)
            for span, level in zip(spans, levels, strict=True)
        )
        for start in (place for place, level in enumerate(levels) if level < 0):
            self._heard(" ".join(str(abs(level)) for level in levels[start : start + 3]))
        return Heard(
            text="".join(word.word for word in words),
            words=words,
            language="en",
            language_probability=1.0,
            avg_logprob=-0.1,
            no_speech_prob=0.0,
        )


def engine(*, before: Callable[[int], None], heard: Callable[[str], None]) -> Engine:
    """The whole engine: `gpu_server` cannot tell it from a real one."""
    return Engine(name="numbers", detector=detect, recognizer=Reader(before=before, heard=heard))
