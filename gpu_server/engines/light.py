"""The light engine: faster-whisper with Silero's speech detector; no torch, at home on a laptop.

Also the parts that the WhisperX engine shares, since its recognizer is faster-whisper's too.
"""

import contextlib
import os
import re
from collections.abc import Iterator
from typing import Any, Literal

import ctranslate2
import numpy as np
from faster_whisper import WhisperModel
from faster_whisper.transcribe import restore_speech_timestamps
from faster_whisper.vad import VadOptions, collect_chunks, get_speech_timestamps

from gpu_server.engines import (
    UNDETERMINED,
    Audio,
    EngineFault,
    Options,
    Recognition,
    Segment,
    Word,
    check_options,
    models,
    timeline,
)

NAME = "faster-whisper"
SAMPLE_RATE = 16_000  # Hz
SHORTEST = SAMPLE_RATE // 10  # samples: less than 0.1 s holds no word and breaks detectors

# Whisper invents text where nobody speaks; these are its paper's thresholds.
LOOPING = 2.4  # text that compresses better than this repeats itself
UNSURE = -1.0  # mean log probability of a token
NOT_SPEECH = 0.6  # probability
UNINTELLIGIBLE = -1.5  # mean log probability; below it the text is made up
TEMPERATURES = (0.0, 0.2, 0.4, 0.8)
SPECIAL_TOKEN = re.compile(r"<\|.*?\|>")


class LightEngine:
    """One model in memory; not thread-safe: one thread makes every call."""

    name = NAME

    def __init__(self, recognizer: WhisperModel, *, model: str, vad: VadOptions) -> None:
        self.model = model
        self.device = recognizer.model.device
        self._recognizer = recognizer
        self._vad = vad

    @property
    def languages(self) -> frozenset[str]:
        """The language codes this model knows."""
        return frozenset(self._recognizer.supported_languages)

    def transcribe(self, audio: Audio, options: Options) -> Recognition:
        """Recognise speech in `audio` (float32, 16 kHz mono); silence gives no segments."""
        check_options(options, model=self.model, languages=self.languages)
        speech = [] if len(audio) < SHORTEST else get_speech_timestamps(audio, self._vad)
        if not speech:
            return self._recognition(silent_language(self._recognizer, options), [], options, 0.0)
        pieces, _ = collect_chunks(audio, speech)
        with faults():
            found, language = recognise(self._recognizer, np.concatenate(pieces), options)
            segments = restore_speech_timestamps(found, speech, SAMPLE_RATE)
            shaped = [shape(segment) for segment in segments]
        return self._recognition(language, shaped, options, len(audio) / SAMPLE_RATE)

    def detect_language(self, audio: Audio) -> tuple[str, float]:
        """The most likely language's code and its probability."""
        return detect_language(self._recognizer, audio)

    def _recognition(self, language: str, segments: list[Segment], options: Options, duration: float) -> Recognition:
        return Recognition(
            language=language,
            segments=timeline.tidy(segments, duration=duration),
            engine=self.name,
            model=self.model,
            alignment="attention" if options.word_timestamps else "none",
        )


def load(
    *,
    model: str,
    device: Literal["auto", "cpu", "cuda"],
    compute_type: str,
    threads: int,
    vad_onset: float | None,
) -> LightEngine:
    """Load recognizer and detector; see :func:`engines.load_engine`."""
    device = choose_device(device)
    with faults():
        recognizer = WhisperModel(
            str(models.resolve(model)),
            device=device,
            compute_type=choose_compute_type(compute_type, device=device),
            cpu_threads=threads or cores(),
            local_files_only=True,
        )
    vad = VadOptions() if vad_onset is None else VadOptions(threshold=vad_onset)
    engine = LightEngine(recognizer, model=models.display_name(model), vad=vad)
    get_speech_timestamps(np.zeros(SAMPLE_RATE, dtype=np.float32), vad)  # load the detector now
    return engine


def recognise(recognizer: WhisperModel, audio: Audio, options: Options) -> tuple[list[Any], str]:
    """faster-whisper's segments (times relative to `audio`) that pass as speech, and the language.

    Decodes again at rising temperatures what loops or is unsure.
    """
    found, info = recognizer.transcribe(
        audio,
        language=options.language,
        task=options.task,
        initial_prompt=clean_prompt(options.initial_prompt),
        hotwords=clean_prompt(options.hotwords),
        word_timestamps=options.word_timestamps,
        condition_on_previous_text=False,
        temperature=TEMPERATURES,
        compression_ratio_threshold=LOOPING,
        log_prob_threshold=UNSURE,
        no_speech_threshold=NOT_SPEECH,
    )
    heard = [
        segment for segment in found if segment.compression_ratio <= LOOPING and segment.avg_logprob >= UNINTELLIGIBLE
    ]
    return heard, info.language


def shape(segment: Any) -> Segment:
    """faster-whisper's segment as ours."""
    return Segment(
        start=segment.start,
        end=segment.end,
        text=segment.text,
        words=tuple(
            Word(word=word.word, start=word.start, end=word.end, score=word.probability) for word in segment.words or ()
        ),
        avg_logprob=segment.avg_logprob,
        no_speech_prob=segment.no_speech_prob,
    )


def detect_language(recognizer: WhisperModel, audio: Audio) -> tuple[str, float]:
    """The most likely language's code and its probability."""
    if not recognizer.model.is_multilingual:
        return "en", 1.0
    if len(audio) < SHORTEST:
        return UNDETERMINED, 0.0
    with faults():
        language, probability, _ = recognizer.detect_language(audio)
    return language, probability


def silent_language(recognizer: WhisperModel, options: Options) -> str:
    """What to call the language when nothing was said."""
    if options.language is not None:
        return options.language
    return UNDETERMINED if recognizer.model.is_multilingual else "en"


def clean_prompt(prompt: str | None) -> str | None:
    """A prompt without the model's control tokens, which its tokenizer obeys; None if empty."""
    return SPECIAL_TOKEN.sub("", prompt or "").strip() or None


def choose_device(device: Literal["auto", "cpu", "cuda"]) -> Literal["cpu", "cuda"]:
    """The GPU where there is one."""
    if device == "auto":
        return "cuda" if ctranslate2.get_cuda_device_count() > 0 else "cpu"
    return device


def choose_compute_type(compute_type: str, *, device: str) -> str:
    """CTranslate2's number format; "default" is the usual one of the device."""
    if compute_type == "default":
        return "float16" if device == "cuda" else "int8"
    return compute_type


def cores() -> int:
    """The processor cores this process may use."""
    return len(os.sched_getaffinity(0))


@contextlib.contextmanager
def faults() -> Iterator[None]:
    """Tell a broken device, which no later request survives, from an error of this one."""
    try:
        yield
    except RuntimeError as error:
        if re.search(r"cuda|cublas|cudnn", str(error), re.IGNORECASE):
            raise EngineFault("The GPU failed.") from error
        raise
