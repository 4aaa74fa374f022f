"""From a track to what was said in it, with a recognizer that says what the test has written down for it."""

import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from gpu_server.engines import (
    FULL_FRAMES,
    SAMPLE_RATE,
    Audio,
    Engine,
    EngineFault,
    Features,
    Heard,
    Options,
    OutOfMemory,
    Span,
    Window,
    Word,
)
from gpu_server.listener import Listener, Seat
from gpu_server.metrics import ServerMetrics
from gpu_server.scheduler import Scheduler
from gpu_server.track import Track, join
from gpu_server.windows import padded_frames
from tests.gpu_server.ears import track_of

Hear = Callable[[Window], Heard]


class Scripted:
    """A recognizer that answers with `hear`, and remembers what it was asked."""

    model, device = "scripted", "cpu"

    def __init__(self, hear: Hear, languages: frozenset[str]) -> None:
        self.hear = hear
        self.languages = languages
        self.asked: list[Window] = []
        self.busy, self.gate = threading.Event(), threading.Event()
        self.gate.set()

    def key(self, window: Window) -> object:
        return window.temperature

    def prepare(self, window: Window) -> Features:
        return np.zeros((1, 1), dtype=np.float32)

    def recognize(self, windows: Sequence[Window], features: Sequence[Features]) -> list[Heard]:
        self.busy.set()
        assert self.gate.wait(timeout=20)
        self.asked += windows
        return [self.hear(window) for window in windows]

    def lengths(self) -> list[float]:
        return [round(len(window.audio) / SAMPLE_RATE, 2) for window in self.asked]


def heard(
    *words: tuple[str, float, float],
    logprob: float = -0.1,
    looping: bool = False,
    language: str = "en",
    sure: float = 1,
) -> Heard:
    timed = tuple(Word(word=" " + word, start=start, end=end, score=1.0) for word, start, end in words)
    return Heard(
        text="".join(word.word for word in timed),
        words=timed,
        language=language,
        language_probability=sure,
        avg_logprob=logprob,
        no_speech_prob=0.0,
        looping=looping,
    )


def loud(audio: Audio) -> list[Span]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], (np.abs(audio) > 0.05).astype(int), [0]])))
    return [Span(int(start), int(end)) for start, end in zip(edges[::2], edges[1::2], strict=True)]


class Room:
    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.listeners: list[Listener] = []
        self.faults = 0

    def listener(self, recognizer: Scripted, aligner: object = None) -> Listener:
        engine = Engine(name="test", detector=loud, recognizer=recognizer, aligner=aligner)  # type: ignore[arg-type]
        made = Listener(engine, ServerMetrics(), detectors=1, on_fault=self._fault)
        self.listeners.append(made)
        return made

    def _fault(self) -> None:
        self.faults += 1

    def track(self, *loudness: tuple[float, float]) -> Track:
        """Stretches of (loudness, seconds)."""
        parts = [np.full(round(seconds * SAMPLE_RATE), value, dtype=np.float32) for value, seconds in loudness]
        return track_of(self.folder / f"pcm{len(list(self.folder.iterdir()))}", np.concatenate(parts))


@pytest.fixture
def room(tmp_path: Path) -> Iterator[Room]:
    room = Room(tmp_path)
    yield room
    for listener in room.listeners:
        listener.close()


ENGLISH = frozenset({"en"})
MANY = frozenset({"en", "de"})


def test_speech_that_got_no_words_is_heard_again_and_stands_where_it_was_said(room: Room) -> None:
    def hear(window: Window) -> Heard:
        if len(window.audio) > 15 * SAMPLE_RATE:  # the first part and the last one are passed over
            return heard(("middle", 8, 8.5), ("part.", 8.6, 9))
        return heard(("first.", 0.1, 7.5)) if len(window.audio) == 8 * SAMPLE_RATE else heard(("last.", 0.2, 10.5))

    recognizer = Scripted(hear, ENGLISH)
    (recognition,) = room.listener(recognizer).listen(room.track((0.5, 20)), Options())
    assert recognition.text == "first. middle part. last."
    assert recognizer.lengths() == [20, 8, 11]
    assert [round(segment.start, 1) for segment in recognition.segments] == [0.1, 8.0, 9.2]


def test_only_the_doubtful_window_is_tried_again_at_its_full_length(room: Room) -> None:
    def hear(window: Window) -> Heard:
        if window.audio[0] > 0.4:
            return heard(("fine.", 0.1, 4))
        return heard(("loop", 0, 1), looping=True) if window.frames < FULL_FRAMES else heard(("sane.", 0.1, 4))

    recognizer = Scripted(hear, ENGLISH)
    track = room.track((0.5, 5), (0, 3), (0.3, 5))
    assert room.listener(recognizer).listen(track, Options())[0].text == "fine. sane."
    own = padded_frames(5 * SAMPLE_RATE)
    assert sorted(window.frames for window in recognizer.asked) == [own, own, FULL_FRAMES]


def test_what_stays_nonsense_is_left_out(room: Room) -> None:
    recognizer = Scripted(lambda window: heard(("blah", 0, 4), logprob=-2), ENGLISH)
    (recognition,) = room.listener(recognizer).listen(room.track((0.5, 5)), Options())
    assert recognition.segments == ()
    assert [window.temperature for window in recognizer.asked] == [0, 0, 0.2, 0.4, 0.8]


def test_a_language_is_settled_by_the_surest_window_and_all_are_heard_in_it(room: Room) -> None:
    def hear(window: Window) -> Heard:
        if window.options.language:
            return heard((window.options.language, 0.1, 4), language=window.options.language)
        german = window.audio[0] > 0.4
        return heard(("?", 0.1, 4), language="de" if german else "en", sure=0.9 if german else 0.3)

    recognizer = Scripted(hear, MANY)
    track = room.track((0.2, 5), (0, 3), (0.5, 5), (0, 3), (0.2, 5))
    (recognition,) = room.listener(recognizer).listen(track, Options())
    assert (recognition.language, recognition.text) == ("de", "de de de")


def test_windows_without_anything_wanted_are_not_heard(room: Room) -> None:
    recognizer = Scripted(lambda window: heard(("word", 0.1, 4)), ENGLISH)
    parts = []
    for number, part in enumerate((room.track((0.5, 5), (0, 5)), room.track((0.5, 5), (0, 5)), room.track((0.5, 5)))):
        parts.append(part.pcm)
        assert number < 3
    track = join(room.folder / "joined", parts)
    found = room.listener(recognizer).listen(track, Options(), wanted=[1])
    assert [one.text for one in found] == ["", "word", ""]
    assert recognizer.lengths() == [5]


def test_a_chunk_of_several_windows_shares_none_of_them(room: Room) -> None:
    def hear(window: Window) -> Heard:
        return heard((str(round(float(window.audio[0]) * 10)), 0.1, len(window.audio) / SAMPLE_RATE))

    recognizer = Scripted(hear, ENGLISH)
    listener = room.listener(recognizer)
    tracks = [room.track((0.1, 4), (0, 4), (0.2, 4)), room.track((0.3, 4), (0, 4), (0.4, 4)), room.track((0.5, 4))]

    def listen(index: int) -> str:
        return listener.listen(tracks[index], Options(), seat=Seat("s", index + 1))[0].text

    with ThreadPoolExecutor(3) as pool:
        assert list(pool.map(listen, range(3))) == ["1 2", "3 4", "5"]


class Aligned:
    """An aligner that has room for one piece at a time, and finds nothing in the quiet ones."""

    def __init__(self) -> None:
        self.error: Exception | None = None

    def covers(self, language: str) -> bool:
        return language == "en"

    def align(self, pieces: Sequence[tuple[Audio, str]], language: str) -> list[tuple[Word, ...] | None]:
        if self.error:
            raise self.error
        if len(pieces) > 1:
            raise OutOfMemory("no room")
        ((audio, text),) = pieces
        if np.abs(audio).max() < 0.3:
            raise OutOfMemory("not even for one")
        return [tuple(Word(word=" " + word, start=1.0, end=1.5, score=0.5) for word in text.split())]


def test_word_times_come_from_the_aligner_as_far_as_it_has_room(room: Room) -> None:
    recognizer = Scripted(lambda window: heard(("word.", 0.5, 4)), ENGLISH)
    listener = room.listener(recognizer, Aligned())
    (recognition,) = listener.listen(room.track((0.5, 5), (0, 3), (0.2, 5)), Options())
    assert recognition.alignment == "wav2vec2"
    first, second = (segment.words[0] for segment in recognition.segments)
    assert first.start == pytest.approx(0.3 + 1.0)  # in the audio around the words
    assert second.start == pytest.approx(8.5)


def test_a_broken_device_under_the_aligner_is_told_too(room: Room) -> None:
    aligner = Aligned()
    aligner.error = EngineFault("CUDA error")
    listener = room.listener(Scripted(lambda window: heard(("word.", 0.5, 4)), ENGLISH), aligner)
    with pytest.raises(EngineFault):
        listener.listen(room.track((0.5, 5)), Options())
    assert room.faults == 1


def test_a_translation_keeps_the_recognizers_times(room: Room) -> None:
    listener = room.listener(Scripted(lambda window: heard(("word.", 0.5, 4)), MANY), Aligned())
    (recognition,) = listener.listen(room.track((0.5, 5)), Options(language="en", task="translate"))
    assert (recognition.alignment, recognition.segments[0].start) == ("attention", 0.5)


def waiting(scheduler: Scheduler) -> int:
    with scheduler._changed:
        return sum(map(len, scheduler._queues.values()))


def test_a_chunk_that_got_no_words_of_a_shared_window_is_heard_alone(room: Room) -> None:
    """The recognizer stops after the first chunk's sentence."""

    def hear(window: Window) -> Heard:
        said = "first." if window.audio[0] < 0.3 else "second."
        return heard((said, 0.1, 3.9))

    recognizer = Scripted(hear, ENGLISH)
    recognizer.gate.clear()
    listener = room.listener(recognizer)
    tracks = [room.track((0.5, 4)), room.track((0.2, 4)), room.track((0.4, 4))]
    with ThreadPoolExecutor(3) as pool:
        busy = pool.submit(listener.listen, tracks[0], Options())
        assert recognizer.busy.wait(timeout=20)
        both = [pool.submit(listener.listen, tracks[n], Options(), seat=Seat("s", n)) for n in (1, 2)]
        while waiting(listener._scheduler) < 2:
            assert not any(future.done() for future in both)
        recognizer.gate.set()
        busy.result(timeout=20)
        assert [future.result(timeout=20)[0].text for future in both] == ["first.", "second."]
    assert recognizer.lengths() == [4, 8, 4]
