"""From a track of audio to what was said in it: find speech, have windows of it recognised, doubt, align, shape."""

import threading
import time
from collections import deque
from collections.abc import Callable, Collection, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from itertools import chain, islice

import numpy as np

from gpu_server.engines import (
    SAMPLE_RATE,
    Alignment,
    Audio,
    Engine,
    EngineFault,
    Heard,
    Options,
    OutOfMemory,
    Recognition,
    Segment,
    Span,
    Window,
    Word,
    check_options,
    timeline,
)
from gpu_server.engines.recognizer import silent_language
from gpu_server.guards import Unheard, Verdict, best_of, judge, retries, runs_and_holes
from gpu_server.metrics import ServerMetrics
from gpu_server.scheduler import Observer, Place, Scheduler
from gpu_server.stitching import give_back, with_words
from gpu_server.track import Track
from gpu_server.windows import padded_frames, speech_windows

AHEAD = 16  # windows of one track in the scheduler at once: memory stays bounded, and other tracks get their turn
ALIGNED_TOGETHER = 16  # windows
ROOM = 0.2  # seconds around words that are aligned: attention is not exact
SURE = 0.5  # probability at which a language is settled
LANGUAGE_TRIES = 3  # windows that are asked for the language


@dataclass(frozen=True)
class Seat:
    """A chunk's place in its session: it may share a window with the chunks next to it."""

    session: Hashable
    index: int


@dataclass(frozen=True)
class _Asked:
    span: Span
    window: Window
    future: Future[Heard]


@dataclass(frozen=True)
class _Said:
    """Words in a row, on the track's time line; `span` is the audio in which they were heard."""

    span: Span
    segment: Segment


class Listener:
    """An engine at everyone's service. Safe to call from many threads.

    detectors: threads that may search for speech at once, so that they do not crowd out the recognizer.
    on_fault: told once the engine is broken for good.
    """

    def __init__(self, engine: Engine, metrics: ServerMetrics, *, detectors: int, on_fault: Callable[[], None]) -> None:
        self.engine = engine
        self._metrics = metrics
        self._on_fault = on_fault
        self._scheduler = Scheduler(
            engine.recognizer, on_fault=on_fault, observer=Observer(metrics.recognized, metrics.waiting.set)
        )
        self._detecting = threading.BoundedSemaphore(detectors)
        self._aligning = ThreadPoolExecutor(1, thread_name_prefix="aligner")

    def close(self) -> None:
        """What still waits fails with EngineFault."""
        self._scheduler.close()
        self._aligning.shutdown(wait=False, cancel_futures=True)

    def warm_up(self) -> None:
        """Have the recognizer hear a second of silence: it allocates now what it will need, or fails now."""
        silence = Window(audio=np.zeros(SAMPLE_RATE, dtype=np.float32), options=Options())
        self._scheduler.submit(silence, owner=self).result()

    def coming(self) -> AbstractContextManager[Callable[[], None]]:
        """Announce audio that is being fetched or decoded; its `arrived` goes to `listen`."""
        return self._scheduler.coming()

    def listen(
        self,
        track: Track,
        options: Options,
        *,
        wanted: Collection[int] | None = None,
        seat: Seat | None = None,
        arrived: Callable[[], None] = lambda: None,
    ) -> list[Recognition]:
        """What was said in each of the track's pieces; of those that are not `wanted`, perhaps nothing.

        seat: of the last piece, when that is a chunk on its own, with or without what came before it.

        Raises UnknownLanguage, UnsupportedOption, OutOfMemory, EngineFault.
        """
        recognizer = self.engine.recognizer
        check_options(options, model=self.engine.model, languages=recognizer.languages)
        self._metrics.started.inc()
        pieces = [track.pieces[place] for place in sorted(wanted)] if wanted is not None else list(track.pieces)
        spans = _touching(speech_windows(track, self._detect), pieces)
        hearing = _Hearing(self._scheduler, track, pieces)
        language, said = hearing.run(spans, _settled(options, recognizer.languages), seat, arrived)
        arrived()
        language = language or silent_language(recognizer.languages, options)
        alignment: Alignment = "attention" if options.word_timestamps else "none"
        aligner = self.engine.aligner
        # A translation's words are not in the audio's language: only attention finds them.
        if aligner and alignment == "attention" and options.task == "transcribe" and aligner.covers(language):
            said = self._aligning.submit(self._align, track, said, language).result()
            alignment = "wav2vec2"
        return [
            Recognition(
                language=language,
                segments=_shaped(own, duration=len(piece) / SAMPLE_RATE, words=options.word_timestamps),
                engine=self.engine.name,
                model=self.engine.model,
                alignment=alignment,
            )
            for own, piece in zip(give_back([one.segment for one in said], track.pieces), track.pieces, strict=True)
        ]

    def _detect(self, audio: Audio) -> list[Span]:
        with self._detecting:
            began = time.monotonic()
            try:
                return self.engine.detector(audio)
            finally:
                self._metrics.stage_seconds.labels("detect").inc(time.monotonic() - began)

    def _align(self, track: Track, said: Sequence[_Said], language: str) -> list[_Said]:
        """Better word times where the aligner finds them; the recognizer's own where not."""
        began = time.monotonic()
        aligned = []
        for start in range(0, len(said), ALIGNED_TOGETHER):
            some = said[start : start + ALIGNED_TOGETHER]
            found = self._word_times([(track.read(one.span), one.segment.text) for one in some], language)
            for one, words in zip(some, found, strict=True):
                if words:
                    timed = timeline.shift(replace(one.segment, words=words), one.span.start / SAMPLE_RATE)
                    one = replace(one, segment=replace(one.segment, words=timed.words))
                aligned.append(one)
        self._metrics.stage_seconds.labels("align").inc(time.monotonic() - began)
        return aligned

    def _word_times(self, pieces: Sequence[tuple[Audio, str]], language: str) -> list[tuple[Word, ...] | None]:
        """A device that is full gets them in halves; what does not fit alone does without."""
        assert self.engine.aligner
        try:
            return self.engine.aligner.align(pieces, language)
        except OutOfMemory:
            if len(pieces) == 1:
                return [None]
        except EngineFault:
            self._on_fault()
            raise
        half = len(pieces) // 2
        return self._word_times(pieces[:half], language) + self._word_times(pieces[half:], language)


class _Hearing:
    """One track's way through the scheduler."""

    def __init__(self, scheduler: Scheduler, track: Track, pieces: Sequence[Span]) -> None:
        self._scheduler = scheduler
        self._track = track
        self._pieces = pieces

    def run(
        self, spans: Iterator[Span], options: Options, seat: Seat | None, arrived: Callable[[], None]
    ) -> tuple[str | None, list[_Said]]:
        """The language, None when nothing was said, and what was said."""
        said: list[_Said] = []
        if seat and options.language:
            first = list(islice(spans, 2))
            if len(first) == 1:  # a chunk of several windows has no place beside others
                asked_one = self._ask(first[0], options, self._place(first[0], seat))
                arrived()
                return options.language, list(self._answer(asked_one))
            spans = chain(first, spans)
        if options.language is None:
            options, tried, spans = self._settle(spans, options)
            said += tried
        asked: deque[_Asked] = deque()
        for span in spans:
            asked.append(self._ask(span, options))
            arrived()
            if len(asked) >= AHEAD:
                said += self._answer(asked.popleft())
        while asked:
            said += self._answer(asked.popleft())
        return (options.language if said else None), said

    def _settle(self, spans: Iterator[Span], options: Options) -> tuple[Options, list[_Said], Iterator[Span]]:
        """Ask the first windows for the language, until one is sure; then all are heard in that one."""
        tried: list[tuple[_Asked, Heard]] = []
        for span in spans:
            asked = self._ask(span, options)
            tried.append((asked, asked.future.result()))
            if tried[-1][1].language_probability >= SURE or len(tried) >= LANGUAGE_TRIES:
                break
        if not tried:
            return options, [], spans
        settled = replace(options, language=max(tried, key=lambda one: one[1].language_probability)[1].language)
        again = [asked.span for asked, heard in tried if heard.language != settled.language]
        kept = [asked for asked, heard in tried if heard.language == settled.language]
        if not again:
            return settled, list(chain.from_iterable(self._answer(asked) for asked in kept)), spans
        return settled, [], chain((asked.span for asked, _ in tried), spans)

    def _ask(self, span: Span, options: Options, place: Place | None = None) -> _Asked:
        audio = self._track.read(span)
        window = Window(audio=audio, options=options, frames=padded_frames(len(audio)))
        return _Asked(span, window, self._scheduler.submit(window, owner=self, place=place))

    def _place(self, span: Span, seat: Seat) -> Place:
        """What stands in the window of the chunk before is its lead."""
        return Place(seat.session, seat.index, lead=max(0, self._track.pieces[-1].start - span.start))

    def _answer(self, asked: _Asked) -> Iterator[_Said]:
        """Nothing when nobody spoke, or when nobody can tell what was said."""
        heard: Heard | None = asked.future.result()
        assert heard
        verdict = judge(heard)
        if verdict is Verdict.DOUBTFUL:
            heard = self._again(asked.window, heard)
        if heard is None or verdict is Verdict.SILENCE:
            return
        if heard.shared and not heard.words:  # others have all the words: perhaps this was passed over
            yield from self._answer(self._ask(asked.span, asked.window.options))
            return
        whole = len(asked.span) / SAMPLE_RATE
        if not heard.words and heard.text.strip():
            yield _said(asked.span, heard, Segment(start=0.0, end=whole, text=heard.text))
            return
        for part in runs_and_holes(heard, whole):
            if isinstance(part, Unheard):
                hole = _within(asked.span, part.start, part.end)
                if hole != asked.span and any(_touching(iter([hole]), self._pieces)):
                    yield from self._answer(self._ask(hole, asked.window.options))
            else:
                yield _said(asked.span, heard, with_words(Segment(start=0.0, end=0.0, text=""), part))

    def _again(self, window: Window, heard: Heard) -> Heard | None:
        """Only this window, alone and at its full length, is tried once more, and then with more daring."""
        tries = [heard]
        for retry in retries(window):
            tries.append(self._scheduler.submit(retry, owner=self).result())
            verdict = judge(tries[-1])
            if verdict is Verdict.SILENCE:
                return None
            if verdict is Verdict.GOOD:
                return tries[-1]
        return best_of(tries)


def _within(span: Span, start: float, end: float) -> Span:
    """A part of `span`, given in seconds from its start."""
    return Span(span.start + round(start * SAMPLE_RATE), min(span.end, span.start + round(end * SAMPLE_RATE)))


def _said(span: Span, heard: Heard, segment: Segment) -> _Said:
    segment = replace(segment, avg_logprob=heard.avg_logprob, no_speech_prob=heard.no_speech_prob)
    audible = _within(span, max(0.0, segment.start - ROOM), segment.end + ROOM)
    return _Said(audible, timeline.shift(segment, span.start / SAMPLE_RATE))


def _settled(options: Options, languages: frozenset[str]) -> Options:
    return replace(options, language="en") if languages == {"en"} else options


def _touching(spans: Iterator[Span], pieces: Sequence[Span]) -> Iterator[Span]:
    """The windows in which something of `pieces` can be heard; both are in order."""
    waiting = deque(pieces)
    for span in spans:
        while waiting and waiting[0].end <= span.start:
            waiting.popleft()
        if waiting and waiting[0].start < span.end:
            yield span


def _shaped(segments: Sequence[Segment], *, duration: float, words: bool) -> tuple[Segment, ...]:
    sentences = [sentence for segment in segments for sentence in timeline.split_sentences(segment)]
    tidied = timeline.tidy(sentences, duration=duration)
    return tidied if words else tuple(replace(segment, words=()) for segment in tidied)
