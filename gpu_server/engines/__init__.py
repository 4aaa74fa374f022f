"""Speech engines: audio in, words with times out, one shape whichever engine is behind.

    EngineError
    ├── UnknownLanguage    the request names a language the model does not know
    ├── UnsupportedOption  the request asks for what this model cannot do
    ├── ModelMissing       the model is not on this machine (found at start)
    └── EngineFault        the device or the engine is broken for good: exit and be restarted

The first two are the client's fault and permanent (400); the others are ours.
"""

import importlib.util
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Audio = NDArray[np.float32]  # shape (samples,), mono, 16 kHz, in [-1, 1]
Task = Literal["transcribe", "translate"]
Alignment = Literal["attention", "wav2vec2", "none"]
UNDETERMINED = "und"  # ISO 639-2 for "there is no telling": nothing was said


class EngineError(Exception):
    """``str()`` is fit for a client's eyes."""

    type: ClassVar[str] = "engine-error"
    status: ClassVar[int] = 500


class UnknownLanguage(EngineError):
    """The language code is none of the model's."""

    type = "language-unknown"
    status = 400


class UnsupportedOption(EngineError):
    """The loaded model cannot do this, for any audio."""

    type = "option-unsupported"
    status = 400


class ModelMissing(EngineError):
    """The model `name` is not on this machine; `how` says how to put it there."""

    type = "model-missing"
    status = 503

    def __init__(self, name: str, how: str) -> None:
        super().__init__(name, how)
        self.name = name
        self.how = how

    def __str__(self) -> str:
        return f"The model {self.name!r} is not on this machine. {self.how}"


class EngineFault(EngineError):
    """The engine cannot go on (a sticky CUDA error): the process should exit and be restarted."""

    type = "engine-fault"
    status = 503


@dataclass(frozen=True, kw_only=True)
class Options:
    """What one request asks for. ``language``: ISO 639-1 code, or None to detect it."""

    language: str | None = None
    task: Task = "transcribe"
    initial_prompt: str | None = None
    hotwords: str | None = None
    word_timestamps: bool = True


@dataclass(frozen=True, kw_only=True)
class Word:
    """``start`` and ``end`` in seconds from the audio's start; ``score`` in [0, 1]."""

    word: str
    start: float
    end: float
    score: float


@dataclass(frozen=True, kw_only=True)
class Segment:
    """About a sentence. Times in seconds; the words lie inside and do not overlap."""

    start: float
    end: float
    text: str
    words: tuple[Word, ...] = ()
    avg_logprob: float | None = None
    no_speech_prob: float | None = None


@dataclass(frozen=True, kw_only=True)
class Recognition:
    """What was said; no segments when nothing was. ``alignment``: where word times come from."""

    language: str
    segments: tuple[Segment, ...]
    engine: str
    model: str
    alignment: Alignment

    @property
    def text(self) -> str:
        """All segments' text in one line."""
        return " ".join(segment.text for segment in self.segments)


class Engine(Protocol):
    """One loaded model. Not thread-safe: one thread owns it and makes every call."""

    name: str
    model: str
    device: str

    @property
    def languages(self) -> frozenset[str]:
        """The language codes this model knows."""
        ...

    def transcribe(self, audio: Audio, options: Options) -> Recognition:
        """Recognise speech in `audio` (float32, 16 kHz mono); silence gives no segments."""
        ...

    def detect_language(self, audio: Audio) -> tuple[str, float]:
        """The most likely language's code and its probability."""
        ...


def load_engine(
    kind: Literal["auto", "whisperx", "faster-whisper"],
    *,
    model: str,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    compute_type: str = "default",
    threads: int = 0,
    batch_size: int = 8,
    vad_onset: float | None = None,
    align_model_dir: Path | None = None,
) -> Engine:
    """Load a model for good; seconds of work, no network.

    kind: "auto" is WhisperX where it is installed, else faster-whisper.
    model: "tiny.en" and the other Whisper names, or a directory; see :mod:`engines.models`.
    compute_type: CTranslate2's; "default" is float16 on a GPU and int8 on a CPU.
    threads: CPU threads; 0 is all there are. batch_size: windows at once (WhisperX).
    vad_onset: how sure the speech detector must be, in (0, 1); None is its own default.
    align_model_dir: wav2vec2 models, one folder per language code (WhisperX).

    Raises :class:`ModelMissing` or :class:`EngineFault`.
    """
    if kind == "auto":
        kind = "whisperx" if importlib.util.find_spec("whisperx") else "faster-whisper"
    try:
        if kind == "whisperx":
            from gpu_server.engines import whisperx_engine

            return whisperx_engine.load(
                model=model,
                device=device,
                compute_type=compute_type,
                threads=threads,
                batch_size=batch_size,
                vad_onset=vad_onset,
                align_model_dir=align_model_dir,
            )
        from gpu_server.engines import light

        return light.load(model=model, device=device, compute_type=compute_type, threads=threads, vad_onset=vad_onset)
    except (ImportError, OSError, RuntimeError, ValueError) as error:
        # Not installed, damaged files, a compute type the device lacks: only people can help.
        raise EngineFault(f"The engine {kind!r} cannot load the model {model!r}: {error}") from error


def check_options(options: Options, *, model: str, languages: frozenset[str]) -> None:
    """Raise :class:`UnknownLanguage` or :class:`UnsupportedOption` when the model cannot do it."""
    if languages == {"en"}:
        if options.task == "translate":
            raise UnsupportedOption(f"The model {model!r} understands English only and cannot translate.")
        if options.language not in (None, "en"):
            raise UnsupportedOption(f"The model {model!r} understands English only, not {options.language!r}.")
    elif options.language is not None and options.language not in languages:
        raise UnknownLanguage(f"The language {options.language!r} is not known; give a code such as 'en' or 'de'.")
