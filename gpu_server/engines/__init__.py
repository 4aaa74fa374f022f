"""Speech engines: audio in, words with times out, one shape whichever engine is behind.

An engine is three stages behind small ports: a `Detector` says where speech is, a `Recognizer` turns windows of it into
text and words, and an `Aligner`, where there is one, gives the words better times. Who batches windows, of which
requests, is none of their business: see :mod:`gpu_server.scheduler`.

    EngineError
    ├── UnknownLanguage    the request names a language the model does not know
    ├── UnsupportedOption  the request asks for what this model cannot do
    ├── ModelMissing       the model is not on this machine (found at start)
    ├── OutOfMemory        the device has no room for even one window now
    └── EngineFault        the device or the engine is broken for good: exit and be restarted

The first two are the client's fault and permanent (400); the others are ours.
"""

import importlib.util
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

Audio = NDArray[np.float32]  # shape (samples,), mono, 16 kHz, in [-1, 1]
Features = NDArray[np.float32]  # shape (mel bands, frames): a log-mel spectrogram, 100 frames a second
Task = Literal["transcribe", "translate"]
Alignment = Literal["attention", "wav2vec2", "none"]
Vad = Literal["auto", "silero", "pyannote"]

SAMPLE_RATE = 16_000  # Hz
FRAME_RATE = 100  # mel frames a second
FULL_FRAMES = 3000  # the 30 s that Whisper was trained on
LONGEST_SECONDS = 18  # of a window: longer ones are dearer and heard hardly better (docs/performance.md)
SHORT_FRAMES = 15 * FRAME_RATE  # windows up to this get the silence behind them from memory: `encodings.SilentEnd`
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


class OutOfMemory(EngineError):
    """The device had no room for the work: less at once may fit."""

    type = "out-of-memory"
    status = 503


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
    """``start`` and ``end`` in seconds from the audio's start; ``score`` in [0, 1].

    A recognizer's words keep the space in front of them: joined, they spell the text in any language.
    """

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


@dataclass(frozen=True)
class Span:
    """A stretch of audio, in samples; ``end`` is exclusive."""

    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True, kw_only=True)
class Window:
    """What the recognizer hears at a time: at most 30 s of audio, padded with silence to `frames`.

    ``temperature``: 0 searches the most likely text; above, text is sampled.
    """

    audio: Audio
    options: Options
    frames: int = FULL_FRAMES
    temperature: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Heard:
    """What the recognizer made of a window.

    ``words``: times in seconds from the window's start. ``avg_logprob``: mean log probability of a token.
    ``looping``: the text repeats itself as speech does not. ``heard_from``: seconds of the window before that are
    another's, and not in the text. ``shared``: others had a part in the window, and have the rest of its words.
    """

    text: str
    words: tuple[Word, ...]
    language: str
    language_probability: float
    avg_logprob: float
    no_speech_prob: float
    looping: bool = False
    heard_from: float = 0.0
    shared: bool = False


class Detector(Protocol):
    """Says where speech is. Safe to call from many threads."""

    def __call__(self, audio: Audio) -> list[Span]:
        """Stretches of speech in order, none longer than 30 s; `audio` may hold minutes."""
        ...


class Recognizer(Protocol):
    """One loaded model. One thread makes every call to `recognize`; the rest is safe from any."""

    model: str
    device: str

    @property
    def languages(self) -> frozenset[str]:
        """The language codes this model knows."""
        ...

    def key(self, window: Window) -> Hashable:
        """Windows with equal keys may be recognised in one batch, whatever their length."""
        ...

    def prepare(self, window: Window) -> Features:
        """The window's features, padded to its frames."""
        ...

    def recognize(self, windows: Sequence[Window], features: Sequence[Features]) -> list[Heard]:
        """Recognise one batch; results in its order. Features shorter than the longest are padded.

        Raises OutOfMemory and EngineFault.
        """
        ...


class Aligner(Protocol):
    """Gives words better times than the recognizer's. One thread makes every call to `align`."""

    def covers(self, language: str) -> bool:
        """Whether there is a model for this language on this machine. From any thread; may load it."""
        ...

    def align(self, pieces: Sequence[tuple[Audio, str]], language: str) -> list[tuple[Word, ...] | None]:
        """For each audio and its text the words with times in it; None where they cannot be found."""
        ...


@dataclass(frozen=True, kw_only=True)
class Engine:
    """The stages of one engine, loaded."""

    name: str
    detector: Detector
    recognizer: Recognizer
    aligner: Aligner | None = None

    @property
    def model(self) -> str:
        return self.recognizer.model

    @property
    def device(self) -> str:
        return self.recognizer.device


def load_engine(
    kind: Literal["auto", "whisperx", "faster-whisper"],
    *,
    model: str,
    device: Literal["auto", "cpu", "cuda"] = "auto",
    compute_type: str = "default",
    threads: int = 0,
    beam_size: int = 5,
    vad: Vad = "auto",
    align_model_dir: Path | None = None,
) -> Engine:
    """Load a model for good; seconds of work, no network.

    kind: "auto" is WhisperX where it is installed, else faster-whisper.
    model: "tiny.en" and the other Whisper names, or a directory; see :mod:`engines.models`.
    compute_type: CTranslate2's; "default" is float16 on a GPU and int8 on a CPU.
    threads: CPU threads; 0 is all there are.
    beam_size: of the search, 5 is WhisperX's own; on a CPU it is used where a greedy search is unsure.
    vad: the speech detector; "auto" is Silero's, pyannote's needs WhisperX.
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
                beam_size=beam_size,
                vad=vad,
                align_model_dir=align_model_dir,
            )
        from gpu_server.engines import light

        if vad == "pyannote":
            raise ValueError("pyannote's detector comes with the whisperx engine")
        return light.load(model=model, device=device, compute_type=compute_type, threads=threads, beam_size=beam_size)
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
