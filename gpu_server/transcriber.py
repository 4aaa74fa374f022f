"""From media files to transcripts: decode in child processes, listen, and give what was heard its form."""

import time
from collections.abc import Callable, Collection
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from gpu_server.decode_pool import DecodePool
from gpu_server.decoding import Decoded, MediaError
from gpu_server.engines import (
    UNDETERMINED,
    Engine,
    EngineError,
    EngineFault,
    Options,
    Recognition,
    UnknownLanguage,
    UnsupportedOption,
)
from gpu_server.listener import Listener, Seat
from gpu_server.metrics import ServerMetrics
from gpu_server.track import Track
from shared import jobs
from shared.errors import InputRefused, TransientError
from shared.transcript import ObjectRef, Segment, Transcript, Word

Route = Literal["direct", "queue"]
Pass = Literal["live", "stitched"]


class EngineBroken(TransientError):
    """The engine cannot go on; the process is about to exit."""


class EngineOverloaded(TransientError):
    """The device has no memory for the work, now."""


class Transcriber:
    """Safe to call from many threads. `on_fault` is told once the engine is broken for good."""

    def __init__(
        self,
        engine: Engine,
        decoders: DecodePool,
        metrics: ServerMetrics,
        *,
        detectors: int,
        on_fault: Callable[[], None],
    ) -> None:
        self.engine = engine
        self.listener = Listener(engine, metrics, detectors=detectors, on_fault=on_fault)
        self._decoders = decoders
        self._metrics = metrics

    def decode(self, audio: Path, pcm: Path) -> Decoded:
        """Decode a media file of any allowed format to `pcm`. Raises InputRefused, with words for the caller."""
        began = time.monotonic()
        try:
            decoded = self._decoders.decode(audio, pcm)
        except MediaError as error:
            raise InputRefused(str(error), type=error.type, status=error.status) from error
        finally:
            self._metrics.stage_seconds.labels("decode").inc(time.monotonic() - began)
        self._metrics.audio_seconds.inc(decoded.duration)
        return decoded

    def listen(
        self,
        track: Track,
        options: jobs.Options,
        *,
        wanted: Collection[int] | None = None,
        seat: Seat | None = None,
        arrived: Callable[[], None] = lambda: None,
    ) -> list[Recognition]:
        """What was said in each piece of the track; see `Listener.listen`.

        Raises:
            InputRefused: an option is at fault; words for the caller inside.
            EngineBroken, EngineOverloaded: we are.
        """
        wishes = Options(**options.model_dump())
        try:
            return self.listener.listen(track, wishes, wanted=wanted, seat=seat, arrived=arrived)
        except (UnknownLanguage, UnsupportedOption) as error:
            raise InputRefused(str(error), type=error.type, status=error.status) from error
        except EngineFault as error:
            raise EngineBroken(str(error)) from error
        except EngineError as error:
            raise EngineOverloaded(str(error)) from error

    def transcript(
        self,
        decoded: Decoded,
        recognition: Recognition | None,
        options: jobs.Options,
        *,
        source: ObjectRef | None = None,
        route: Route | None = None,
        pass_: Pass | None = None,
    ) -> Transcript:
        """The document. No recognition: there was no audio to hear."""
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
            pass_=pass_,
            options=options if source and options != jobs.Options() else None,
            created_at=datetime.now(UTC),
            reason=_reason(decoded.reason, decoded.truncated, recognition),
        )

    def close(self) -> None:
        self.listener.close()
        self._decoders.close()


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
