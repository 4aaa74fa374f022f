"""The GPU image's engine: WhisperX's pipeline, with word times for every language.

Speech detection (pyannote, from WhisperX's own package) and batched recognition are WhisperX's, so
the words are those of ``whisperx.transcribe``. Word times come from wav2vec2 where a model for the
language is on disk; otherwise from the recognizer's cross-attention, whose encoder output is
caught as the pipeline goes, so that they cost no second pass. Nothing is downloaded.

The only module that imports whisperx or torch; itself imported only when this engine is chosen.
"""

import contextlib
import dataclasses
import logging
import os
import warnings
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

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

from faster_whisper.transcribe import get_compression_ratio

from gpu_server.engines import (
    Alignment,
    Audio,
    Options,
    Recognition,
    Segment,
    Word,
    check_options,
    light,
    models,
    timeline,
)

NAME = "whisperx"
SAMPLE_RATE = light.SAMPLE_RATE
FRAMES_PER_SECOND = 100  # of the mel spectrogram
DEFAULT_ONSET = 0.5  # WhisperX's own


class Recognizer(whisperx.asr.WhisperModel):  # type: ignore[misc]
    """WhisperX's model that also notes each window's words while its encoder output is at hand."""

    def start(self, *, word_timestamps: bool) -> None:
        """Forget the last audio's windows."""
        self.word_timestamps = word_timestamps
        self.lengths: deque[int] = deque()  # samples of the windows not yet recognised
        self.words: list[tuple[Word, ...]] = []  # per window; times in seconds from its start
        self.encoded: Any = None

    def encode(self, features: Any) -> Any:
        """As ever, but remembered."""
        self.encoded = super().encode(features)
        return self.encoded

    def generate_segment_batched(
        self, features: Any, tokenizer: Any, options: Any, encoder_output: Any = None
    ) -> dict[str, Any]:
        """As ever, and the batch's word times."""
        result: dict[str, Any] = super().generate_segment_batched(features, tokenizer, options)
        lengths = [self.lengths.popleft() for _ in result["text"]]
        if self.word_timestamps:
            self.words += self._times(result["text"], lengths, tokenizer, options)
        self.encoded = None
        return result

    def _times(self, texts: list[str], lengths: list[int], tokenizer: Any, options: Any) -> list[tuple[Word, ...]]:
        windows: list[list[dict[str, Any]]] = [
            [
                {
                    "seek": 0,
                    "start": 0.0,
                    "end": length / SAMPLE_RATE,
                    "tokens": tokenizer.encode(text),
                }
            ]
            for text, length in zip(texts, lengths, strict=True)
        ]
        self.add_word_timestamps(
            windows,
            tokenizer,
            self.encoded,
            [max(1, length * FRAMES_PER_SECOND // SAMPLE_RATE) for length in lengths],
            options.prepend_punctuations,
            options.append_punctuations,
            0.0,
        )
        return [
            tuple(
                Word(
                    word=word["word"],
                    start=word["start"],
                    end=word["end"],
                    score=word["probability"],
                )
                for word in window["words"]
            )
            for (window,) in windows
        ]


@dataclass(frozen=True)
class Aligner:
    """A wav2vec2 model and what WhisperX knows about it."""

    model: Any
    metadata: dict[str, Any]


class WhisperXEngine:
    """One pipeline in memory; not thread-safe: one thread makes every call.

    The pipeline keeps the request's tokenizer and options in itself while it works.
    """

    name = NAME

    def __init__(
        self,
        pipeline: Any,
        recognizer: Recognizer,
        *,
        model: str,
        device: str,
        batch_size: int,
        align_model_dir: Path | None,
    ) -> None:
        self.model = model
        self.device = device
        self._pipeline = pipeline
        self._recognizer = recognizer
        self._batch_size = batch_size
        self._align_model_dir = align_model_dir
        self._aligners: dict[str, Aligner | None] = {}
        preprocess = pipeline.preprocess

        def noting(window: dict[str, Audio]) -> Any:
            recognizer.lengths.append(len(window["inputs"]))
            return preprocess(window)

        pipeline.preprocess = noting

    @property
    def languages(self) -> frozenset[str]:
        """The language codes this model knows."""
        return frozenset(self._recognizer.supported_languages)

    def detect_language(self, audio: Audio) -> tuple[str, float]:
        """The most likely language's code and its probability."""
        return light.detect_language(self._recognizer, audio)

    def transcribe(self, audio: Audio, options: Options) -> Recognition:
        """Recognise speech in `audio` (float32, 16 kHz mono); silence gives no segments."""
        check_options(options, model=self.model, languages=self.languages)
        alignment: Alignment = "attention" if options.word_timestamps else "none"
        if len(audio) < light.SHORTEST:
            return self._recognition(self._silent(options), [], alignment, audio)
        with light.faults(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pooling over very short windows
            result = self._recognise(audio, options)
            if not result["segments"]:
                return self._recognition(self._silent(options), [], alignment, audio)
            language = result["language"]
            windows = self._windows(result["segments"], audio, options, language)
            aligner = self._aligner(language) if options.word_timestamps else None
            # A translation's words are not in the audio's language: only attention finds them.
            if aligner is not None and options.task == "transcribe":
                windows = [self._align(window, audio, aligner) for window in windows]
                alignment = "wav2vec2"
        sentences = [part for window in windows for part in timeline.split_sentences(window)]
        return self._recognition(language, sentences, alignment, audio)

    def _recognise(self, audio: Audio, options: Options) -> dict[str, Any]:
        """WhisperX's result; a GPU out of memory gets smaller batches before it is given up."""
        batch_size = self._batch_size
        while True:
            try:
                return self._run_pipeline(audio, options, batch_size=batch_size)
            except RuntimeError as error:
                if "out of memory" not in str(error) or batch_size == 1:
                    raise
                batch_size //= 2
                torch.cuda.empty_cache()

    def _run_pipeline(self, audio: Audio, options: Options, *, batch_size: int) -> dict[str, Any]:
        pipeline = self._pipeline
        tokenizer, asr_options = pipeline.tokenizer, pipeline.options
        pipeline.options = dataclasses.replace(
            asr_options,
            initial_prompt=light.clean_prompt(options.initial_prompt),
            hotwords=light.clean_prompt(options.hotwords),
        )
        self._recognizer.start(word_timestamps=options.word_timestamps)
        try:
            result = pipeline.transcribe(audio, batch_size=batch_size, language=options.language, task=options.task)
        finally:
            pipeline.tokenizer, pipeline.options = tokenizer, asr_options
        return cast(dict[str, Any], result)

    def _windows(self, found: list[dict[str, Any]], audio: Audio, options: Options, language: str) -> list[Segment]:
        """The pipeline's windows as segments; what loops or is unsure is recognised again."""
        times = self._recognizer.words or [()] * len(found)
        windows: list[Segment] = []
        for window, words in zip(found, times, strict=True):
            start, end = float(window["start"]), float(window["end"])
            looping = get_compression_ratio(window["text"]) > light.LOOPING
            if looping or window["avg_logprob"] < light.UNSURE:
                # The pipeline decodes once; faster-whisper tries higher temperatures.
                piece = audio[int(start * SAMPLE_RATE) : int(end * SAMPLE_RATE)]
                again, _ = light.recognise(self._recognizer, piece, dataclasses.replace(options, language=language))
                windows += [timeline.shift(light.shape(segment), start) for segment in again]
                continue
            segment = Segment(
                start=0.0,
                end=end - start,
                text=window["text"],
                words=words,
                avg_logprob=window["avg_logprob"],
            )
            windows.append(timeline.shift(segment, start))
        return windows

    def _align(self, window: Segment, audio: Audio, aligner: Aligner) -> Segment:
        """`window` with wav2vec2's word times; attention's where wav2vec2 finds none."""
        text = window.text.strip()
        result = whisperx.alignment.align(
            [{"start": window.start, "end": window.end, "text": text}],
            aligner.model,
            aligner.metadata,
            audio,
            self.device,
        )
        found = [word for segment in result["segments"] for word in segment["words"]]
        if not found or not all("start" in word and "end" in word for word in found):
            return window
        words = tuple(
            Word(
                word=word["word"],
                start=word["start"],
                end=word["end"],
                score=word.get("score", 0.0),
            )
            for word in found
        )
        return dataclasses.replace(window, words=words)

    def _aligner(self, language: str) -> Aligner | None:
        if language not in self._aligners:
            self._aligners[language] = load_aligner(language, device=self.device, directory=self._align_model_dir)
        return self._aligners[language]

    def _silent(self, options: Options) -> str:
        return light.silent_language(self._recognizer, options)

    def _recognition(self, language: str, segments: list[Segment], alignment: Alignment, audio: Audio) -> Recognition:
        return Recognition(
            language=language,
            segments=timeline.tidy(segments, duration=len(audio) / SAMPLE_RATE),
            engine=self.name,
            model=self.model,
            alignment=alignment,
        )


def load(
    *,
    model: str,
    device: Literal["auto", "cpu", "cuda"],
    compute_type: str,
    threads: int,
    batch_size: int,
    vad_onset: float | None,
    align_model_dir: Path | None,
) -> WhisperXEngine:
    """Load recognizer and detector; see :func:`engines.load_engine`."""
    device = light.choose_device(device)
    threads = threads or light.cores()
    path = str(models.resolve(model))
    with light.faults(), warnings.catch_warnings(), _quiet():
        warnings.simplefilter("ignore")
        torch.set_num_threads(threads)
        recognizer = Recognizer(
            path,
            device=device,
            compute_type=light.choose_compute_type(compute_type, device=device),
            cpu_threads=threads,
            local_files_only=True,
        )
        pipeline = whisperx.asr.load_model(
            path,
            device,
            model=recognizer,
            # Else it asks an English-only model for the language, which it cannot tell.
            language=None if recognizer.model.is_multilingual else "en",
            vad_method="pyannote",
            vad_options={"vad_onset": vad_onset or DEFAULT_ONSET},
        )
        engine = WhisperXEngine(
            pipeline,
            recognizer,
            model=models.display_name(model),
            device=device,
            batch_size=batch_size,
            align_model_dir=align_model_dir,
        )
        engine.transcribe(np.zeros(SAMPLE_RATE, dtype=np.float32), Options())  # allocate now
    return engine


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
