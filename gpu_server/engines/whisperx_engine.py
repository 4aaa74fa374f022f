"""The WhisperX engine: its recognizer, its speech detector, its word alignment; what the GPU image runs.

The recognizer is WhisperX's model in our batches. Word times come from wav2vec2 where a model for the language is on
disk, otherwise from the recognizer's own attention. Nothing is downloaded.

The only module that imports whisperx or torch; itself imported only when this engine is chosen.
"""

import contextlib
import logging
import os
import threading
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

# pyannote.audio reports usage over the network unless told otherwise before it is imported.
os.environ["PYANNOTE_METRICS_ENABLED"] = "false"
os.environ["OTEL_SDK_DISABLED"] = "true"
os.environ.setdefault("HF_HUB_OFFLINE", "1")

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    # WhisperX would write its log to stdout, unless its logger has a handler.
    logging.getLogger("whisperx").addHandler(logging.NullHandler())
    import torch
    import whisperx.alignment
    import whisperx.asr
    import whisperx.vads

from gpu_server.engines import LONGEST_SECONDS, SAMPLE_RATE, Audio, Detector, Engine, Span, Vad, Word, light
from gpu_server.engines.recognizer import faults
from gpu_server.engines.silero import SHORTEST, SileroDetector

NAME = "whisperx"
ONSET, OFFSET = 0.5, 0.363  # probabilities; WhisperX's own
LEAST_SAMPLES = 400  # a wav2vec2 frame


class PyannoteDetector:
    """WhisperX's own speech detector: slower than Silero's, and less easily taken in by music."""

    def __init__(self, device: str) -> None:
        self._lock = threading.Lock()
        self._pipeline = whisperx.vads.Pyannote(torch.device(device), token=None, vad_onset=ONSET, vad_offset=OFFSET)
        self(np.zeros(SAMPLE_RATE, dtype=np.float32))

    def __call__(self, audio: Audio) -> list[Span]:
        if len(audio) < SHORTEST:
            return []
        with self._lock, faults(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pooling over very short audio
            scores = self._pipeline({"waveform": torch.from_numpy(audio).unsqueeze(0), "sample_rate": SAMPLE_RATE})
        binarize = whisperx.vads.pyannote.Binarize(max_duration=LONGEST_SECONDS, onset=ONSET, offset=OFFSET)
        spans = [
            Span(max(0, int(turn.start * SAMPLE_RATE)), min(len(audio), int(turn.end * SAMPLE_RATE)))
            for turn in binarize(scores).get_timeline()
        ]
        return [span for span in spans if len(span) > 0]


@dataclass(frozen=True)
class Aligner:
    """A wav2vec2 model and what WhisperX knows about it."""

    model: Any
    metadata: dict[str, Any]


class Wav2Vec2Aligner:
    """WhisperX's word alignment, the network run once for a batch of windows instead of for each."""

    def __init__(self, device: str, directory: Path | None) -> None:
        self._device = device
        self._directory = directory
        self._aligners: dict[str, Aligner | None] = {}
        self._loading = threading.Lock()

    def covers(self, language: str) -> bool:
        return self._aligner(language) is not None

    def align(self, pieces: Sequence[tuple[Audio, str]], language: str) -> list[tuple[Word, ...] | None]:
        aligner = self._aligner(language)
        assert aligner
        with faults(), torch.inference_mode():
            emissions = _emissions(aligner, [audio for audio, _ in pieces], self._device)
        return [
            self._words(aligner, audio, text.strip(), emission, language)
            for (audio, text), emission in zip(pieces, emissions, strict=True)
        ]

    def _words(
        self, aligner: Aligner, audio: Audio, text: str, emission: Any, language: str
    ) -> tuple[Word, ...] | None:
        result = whisperx.alignment.align(
            [{"start": 0.0, "end": len(audio) / SAMPLE_RATE, "text": text}],
            _Ready(emission, aligner.metadata["type"]),
            aligner.metadata,
            audio,
            "cpu",
        )
        found = [word for segment in result["segments"] for word in segment["words"]]
        if not found or not all("start" in word and "end" in word for word in found):
            return None
        space = "" if language in whisperx.alignment.LANGUAGES_WITHOUT_SPACES else " "
        return tuple(
            Word(word=space + word["word"], start=word["start"], end=word["end"], score=word.get("score", 0.0))
            for word in found
        )

    def _aligner(self, language: str) -> Aligner | None:
        with self._loading:
            if language not in self._aligners:
                with faults():
                    self._aligners[language] = load_aligner(language, device=self._device, directory=self._directory)
            return self._aligners[language]


class _Ready:
    """In the place of the network: what it said about one audio."""

    def __init__(self, emission: Any, kind: str) -> None:
        self.logits = emission.unsqueeze(0)
        self._kind = kind

    def __call__(self, *_: Any, **__: Any) -> Any:
        return (self.logits, None) if self._kind == "torchaudio" else self


def _emissions(aligner: Aligner, audios: Sequence[Audio], device: str) -> list[Any]:
    """The network's output for each audio, shape (frames, letters), from one padded batch."""
    lengths = torch.tensor([max(LEAST_SAMPLES, len(audio)) for audio in audios])
    padded = torch.zeros(len(audios), int(lengths.max()))
    for row, audio in zip(padded, audios, strict=True):
        row[: len(audio)] = torch.from_numpy(audio)
    if aligner.metadata["type"] == "torchaudio":
        output, frames = aligner.model(padded.to(device), lengths=lengths.to(device))
    else:
        # Models that normalise each audio as a whole were trained on zeros without a mask:
        # https://huggingface.co/docs/transformers/model_doc/wav2vec2#transformers.Wav2Vec2Processor
        mask = None
        if aligner.model.config.feat_extract_norm != "group":
            mask = (torch.arange(padded.shape[1])[None] < lengths[:, None]).long().to(device)
        output = aligner.model(padded.to(device), attention_mask=mask).logits
        frames = aligner.model._get_feat_extract_output_lengths(lengths)
    return [row[: int(count)].cpu() for row, count in zip(output, frames, strict=True)]


def load(
    *,
    model: str,
    device: Literal["auto", "cpu", "cuda"],
    compute_type: str,
    threads: int,
    beam_size: int,
    vad: Vad,
    align_model_dir: Path | None,
) -> Engine:
    """Load recognizer, detector and aligner; see :func:`engines.load_engine`."""
    device = light.choose_device(device)
    with faults(), warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        torch.set_num_threads(threads or light.cores())
        recognizer = light.load_recognizer(
            whisperx.asr.WhisperModel,
            model=model,
            device=device,
            compute_type=compute_type,
            threads=threads,
            beam_size=beam_size,
        )
        detector: Detector = PyannoteDetector(device) if vad == "pyannote" else SileroDetector()
    return Engine(name=NAME, detector=detector, recognizer=recognizer, aligner=Wav2Vec2Aligner(device, align_model_dir))


def load_aligner(language: str, *, device: str, directory: Path | None) -> Aligner | None:
    """The wav2vec2 model of `language`, if it is on this machine.

    Looked for as ``directory/<language>`` (a model in Hugging Face's format), then under its
    WhisperX default name in `directory` or the libraries' own caches.
    """
    name = str(directory / language) if directory and (directory / language).is_dir() else None
    if name is None:
        bundle = whisperx.alignment.DEFAULT_ALIGN_MODELS_TORCH.get(language)
        if bundle is not None and not _bundle_file(bundle, directory).is_file():
            return None
        if bundle is None and language not in whisperx.alignment.DEFAULT_ALIGN_MODELS_HF:
            return None
    # WhisperX splits sentences with data that NLTK would download; we split them ourselves.
    whisperx.alignment.nltk_load = lambda _: _OneSentence()
    try:
        with contextlib.redirect_stdout(None):
            model, metadata = whisperx.alignment.load_align_model(
                language,
                device,
                model_name=name,
                model_dir=None if directory is None else str(directory),
                model_cache_only=True,
            )
    except ValueError:  # not in the hub's cache
        return None
    return Aligner(model.eval(), metadata)


def _bundle_file(bundle: str, directory: Path | None) -> Path:
    """Where torchaudio keeps the weights of `bundle`: it would download what is not there."""
    checkpoint = Path(getattr(whisperx.alignment.torchaudio.pipelines, bundle)._path).name
    return (directory or Path(torch.hub.get_dir()) / "checkpoints") / checkpoint


class _OneSentence:
    """In the place of NLTK's sentence splitter: the whole text."""

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [(0, len(text))]


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the libraries' greetings out of the log; errors still come as exceptions."""
    chatty = [logging.getLogger(name) for name in ("lightning.pytorch", "pytorch_lightning", "pyannote")]
    levels = [logger.level for logger in chatty]
    for logger in chatty:
        logger.setLevel(logging.ERROR)
    try:
        with contextlib.redirect_stdout(None):
            yield
    finally:
        for logger, level in zip(chatty, levels, strict=True):
            logger.setLevel(level)
