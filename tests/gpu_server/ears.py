"""Engines for tests: a real one behind a plain call, and one that can be held still, at the recognizer's own port."""

import itertools
import threading
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from gpu_server.engines import (
    SAMPLE_RATE,
    Audio,
    Engine,
    Features,
    Heard,
    Options,
    OutOfMemory,
    Recognition,
    Span,
    Window,
    Word,
)
from gpu_server.listener import Listener
from gpu_server.metrics import ServerMetrics
from gpu_server.track import Track, whole


class Ears:
    """Listens to arrays with an engine."""

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.listener = Listener(engine, ServerMetrics(), detectors=1, on_fault=lambda: None)

    def hear(self, audio: Audio, options: Options | None = None) -> Recognition:
        with TemporaryDirectory() as folder:
            return self.listener.listen(track_of(Path(folder, "pcm"), audio), options or Options())[0]


def track_of(pcm: Path, audio: Audio) -> Track:
    (np.clip(audio, -1, 1) * 32767).astype("<i2").tofile(pcm)
    return whole(pcm)


def all_of_it(audio: Audio) -> list[Span]:
    """A detector that takes everything for speech, in pieces of at most 10 s."""
    step = 10 * SAMPLE_RATE
    return [Span(start, min(len(audio), start + step)) for start in range(0, len(audio), step)]


TAG = 1000  # a sample's value times this is the number it stands for


def tagged(number: int, seconds: float = 1.0) -> Audio:
    return np.full(round(seconds * SAMPLE_RATE), number / TAG, dtype=np.float32)


class Reader:
    """A recognizer that reads numbers out of the audio: a word for each stretch of equal samples.

    `room`: windows that fit into its memory. `odd`: the number it cannot read. `gate`: held while it works.
    """

    model, languages = "reader", frozenset({"en", "de"})

    def __init__(self, device: str = "cpu", room: int = 1000, odd: int | None = None) -> None:
        self.device = device
        self.odd = odd
        self.room = room
        self.batches: list[list[Window]] = []
        self.gate = threading.Event()
        self.gate.set()
        self.busy = threading.Event()
        self.error: Exception | None = None

    def key(self, window: Window) -> object:
        return window.temperature, window.options.initial_prompt

    def prepare(self, window: Window) -> Features:
        return window.audio[None, :]

    def recognize(self, windows: Sequence[Window], features: Sequence[Features]) -> list[Heard]:
        self.busy.set()
        assert self.gate.wait(timeout=20)
        if self.error:
            raise self.error
        if len(windows) > self.room:
            raise OutOfMemory("no room")
        if any(self.odd == round(float(window.audio[0]) * TAG) for window in windows):
            raise ValueError("odd")
        self.batches.append(list(windows))
        assert len({self.key(window) for window in windows}) == 1
        for window, feature in zip(windows, features, strict=True):
            assert np.array_equal(window.audio, feature[0])
        return [read(window) for window in windows]


def read(window: Window) -> Heard:
    numbers = np.rint(window.audio * TAG).astype(int)
    edges = [0, *(np.flatnonzero(np.diff(numbers)) + 1), len(numbers)]
    words = tuple(
        Word(word=f" {numbers[start]}", start=start / SAMPLE_RATE, end=end / SAMPLE_RATE, score=1.0)
        for start, end in itertools.pairwise(edges)
    )
    return Heard(
        text=f" {window.options.language}" + "".join(word.word for word in words),
        words=words,
        language=window.options.language or "en",
        language_probability=1.0,
        avg_logprob=-0.1,
        no_speech_prob=0.0,
    )


class HeldRecognizer:
    """Says "word" for every second of audio, and waits until `released` before it does."""

    model, device, languages = "none", "cpu", frozenset({"en"})

    def __init__(self) -> None:
        self.started = threading.Semaphore(0)
        self.released = threading.Event()
        self.released.set()
        self.calls = 0
        self.error: Exception | None = None

    def key(self, window: Window) -> object:
        return None

    def prepare(self, window: Window) -> Features:
        return np.zeros((80, 1), dtype=np.float32)

    def recognize(self, windows: Sequence[Window], features: Sequence[Features]) -> list[Heard]:
        self.calls += 1
        self.started.release()
        assert self.released.wait(timeout=20)
        if self.error:
            raise self.error
        return [self._heard(window) for window in windows]

    def _heard(self, window: Window) -> Heard:
        seconds = len(window.audio) // SAMPLE_RATE
        words = tuple(Word(word=" word", start=n, end=n + 0.5, score=0.9) for n in range(seconds))
        return Heard(
            text=" word" * seconds,
            words=words,
            language="en",
            language_probability=1.0,
            avg_logprob=-0.1,
            no_speech_prob=0.0,
        )


def held_engine(recognizer: HeldRecognizer | Reader) -> Engine:
    return Engine(name="held", detector=all_of_it, recognizer=recognizer)
