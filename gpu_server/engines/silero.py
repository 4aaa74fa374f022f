"""Silero's speech detector, as faster-whisper ships it: a few milliseconds for a chunk, on any processor."""

import numpy as np
from faster_whisper.vad import VadOptions, get_speech_timestamps

from gpu_server.engines import LONGEST_SECONDS, SAMPLE_RATE, Audio, Span

SHORTEST = SAMPLE_RATE // 10  # samples: less than 0.1 s holds no word and breaks detectors
# Cut at every pause: windows are made of the pieces, and end where somebody takes a breath.
OPTIONS = VadOptions(max_speech_duration_s=LONGEST_SECONDS, min_silence_duration_ms=160, speech_pad_ms=200)


class SileroDetector:
    """See :class:`engines.Detector`."""

    def __init__(self) -> None:
        self(np.zeros(SAMPLE_RATE, dtype=np.float32))  # load it now

    def __call__(self, audio: Audio) -> list[Span]:
        if len(audio) < SHORTEST:
            return []
        return [Span(found["start"], found["end"]) for found in get_speech_timestamps(audio, OPTIONS)]
