"""From an audio file to a transcript: decode in a child process, recognise in the one thread that owns the model."""

import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from gpu_server.decode_pool import DecodePool, load_pcm
from gpu_server.decoding import MediaError
from gpu_server.engines import (
    UNDETERMINED,
    Audio,
    Engine,
    EngineFault,
    Options,
    Recognition,
    UnknownLanguage,
    UnsupportedOption,
)
from gpu_server.metrics import ServerMetrics
from shared import jobs
from shared.errors import InputRefused, TransientError
from shared.transcript import ObjectRef, Segment, Transcript, Word

Route = Literal["direct", "queue"]


class EngineBroken(TransientError):
    """The engine cannot go on; the process is about to exit."""


class Transcriber:
    """Safe to call from many threads. `on_fault` is told once the engine is broken for good."""

    def __init__(
        self, engine: Engine, decoders: DecodePool, metrics: ServerMetrics, *, on_fault: Callable[[], None]
    ) -> None:
        self.engine = engine
        self._decoders = decoders
        self._metrics = metrics
        self._on_fault = on_fault
        self._owner = ThreadPoolExecutor(1, thread_name_prefix="recognizer")

    def transcribe(
        self,
        audio: Path,
        options: jobs.Options,
        *,
        source: ObjectRef | None = None,
        route: Route | None = None,
    ) -> Transcript:
        """Transcribe a media file of any allowed format.

        Raises:
            InputRefused: the file or an option is at fault; words for the caller inside.
            EngineBroken: we are.
        """
        with tempfile.TemporaryDirectory() as folder:
            pcm = Path(folder, "pcm")
            try:
                decoded = self._decoders.decode(audio, pcm)
            except MediaError as error:
                raise InputRefused(str(error), type=error.type, status=error.status) from error
            samples = load_pcm(pcm) if decoded.samples else None
        self._metrics.audio_seconds.inc(decoded.duration)
        recognition = None
        if samples is not None:
            recognition = self._owner.submit(self._recognize, samples, options).result()
        return Transcript(
            text=recognition.text if recognition else "",
            language=_language(recognition),
            duration=decoded.duration,
            segments=_segments(recognition),
            source=source,
            model=self.engine.model,
            engine=self.engine.name,
            alignment=recognition.alignment if recognition else "none",
            route=route,
            created_at=datetime.now(UTC),
            reason=_reason(decoded.reason, decoded.truncated, recognition),
        )

    def close(self) -> None:
        self._owner.shutdown(wait=False, cancel_futures=True)
        self._decoders.close()

    def _recognize(self, samples: Audio, options: jobs.Options) -> Recognition:
        self._metrics.started.inc()
        began = time.monotonic()
        try:
            return self.engine.transcribe(samples, Options(**options.model_dump()))
        except (UnknownLanguage, UnsupportedOption) as error:
            raise InputRefused(str(error), type=error.type, status=error.status) from error
        except EngineFault as error:
            self._on_fault()
            raise EngineBroken(str(error)) from error
        finally:
            self._metrics.recognizer_seconds.inc(time.monotonic() - began)


def _language(recognition: Recognition | None) -> str | None:
    return recognition.language if recognition and recognition.language != UNDETERMINED else None


def _reason(undecoded: str | None, truncated: bool, recognition: Recognition | None) -> str | None:
    if undecoded:
        return undecoded
    if truncated:
        return "truncated"
    return None if recognition and recognition.segments else "no-speech"


def _segments(recognition: Recognition | None) -> tuple[Segment, ...]:
    return tuple(
        Segment(
            id=id,
            start=segment.start,
            end=segment.end,
            text=segment.text,
            avg_logprob=segment.avg_logprob,
            no_speech_prob=segment.no_speech_prob,
            words=tuple(
                Word(word=word.word, start=word.start, end=word.end, score=word.score) for word in segment.words
            ),
        )
        for id, segment in enumerate(recognition.segments if recognition else ())
    )
