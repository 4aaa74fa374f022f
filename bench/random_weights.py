"""Whisper of any shape with random weights: as much work as the real one, where the real one cannot be had.

It says the same words whatever it hears, and then it ends: the weights see to that, no decoder has to know. Some
dimensions of the residual stream are kept free of everything but the position: no layer writes there (its output
rows are zero), and no token is embedded there. A position has a code of its own in those dimensions, the output layer
gives each code's token a logit far above all others, and so the token after position p is certain; behind the last
word it is the end of text. The words differ and are certain, so no decoder tries again at a higher temperature.
"""

import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from ctranslate2.specs import WhisperSpec
from faster_whisper.tokenizer import _LANGUAGE_CODES
from numpy.typing import NDArray

from gpu_server.engines import models

Weights = NDArray[np.float16]

WORDS = 50_256  # the first tokens of every Whisper vocabulary, GPT-2's
TIMESTAMPS = 1_501
POSITIONS = 448
FRAMES = 1_500
CODE = 64  # dimensions of a position's code
LOUD = 8.0  # a code's values, beside which everything else in the stream is small
SCALE = 0.005  # of random weights
BLOCK = 1_000_003  # random numbers that are made; weights repeat them
CERTAIN = 60.0  # about the right token's logit
ALIGNMENT_HEADS = 8  # about as many as the real models have


@dataclass(frozen=True)
class Shape:
    encoder_layers: int
    decoder_layers: int
    heads: int
    languages: int = 99
    mels: int = 80

    @property
    def width(self) -> int:
        return self.heads * 64

    @property
    def prompt(self) -> int:
        """Tokens before the first word when no timestamps are wanted."""
        return 4 if self.languages else 2


SHAPES = {
    "tiny.en": Shape(4, 4, 6, languages=0),
    "tiny": Shape(4, 4, 6),
    "base": Shape(6, 6, 8),
    "small": Shape(12, 12, 12),
    "medium": Shape(24, 24, 16),
    "large-v2": Shape(32, 32, 20),
    "large-v3": Shape(32, 32, 20, languages=100, mels=128),
    "large-v3-turbo": Shape(32, 4, 20, languages=100, mels=128),
}


def build(name: str, folder: Path, *, tokens: int) -> Path:
    """The folder of a model of that shape, made below `folder` if it is not there yet.

    tokens: how many it says for a window, however long the window is.
    """
    if name not in SHAPES:
        raise ValueError(f"no shape {name!r}: there are {', '.join(SHAPES)}")
    shape = SHAPES[name]
    if not 1 <= tokens <= POSITIONS // 2 - shape.prompt:  # what decoders allow beside a prompt
        raise ValueError(f"a model can say 1 to {POSITIONS // 2 - shape.prompt} tokens, not {tokens}")
    target = folder / f"random-{name}-{tokens}"
    if (target / models.WEIGHTS).is_file():
        return target
    unfinished = folder / f"{target.name}.new"
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    source = json.loads((models.resolve(models.TINY_EN) / "tokenizer.json").read_text())
    vocabulary = vocabulary_of(shape, source["model"]["vocab"])
    (unfinished / "tokenizer.json").write_text(json.dumps(_tokenizer(source, vocabulary)))
    (unfinished / "preprocessor_config.json").write_text(json.dumps({"feature_size": shape.mels}))
    spec = WhisperSpec(shape.encoder_layers, shape.heads, shape.decoder_layers, shape.heads)
    _Filler(shape).fill(spec, script(shape, vocabulary, tokens), len(vocabulary))
    spec.register_vocabulary(vocabulary)
    _configure(spec.config, shape, vocabulary)
    spec.validate()
    spec.optimize()
    spec.save(str(unfinished))
    unfinished.rename(target)
    return target


def vocabulary_of(shape: Shape, words: dict[str, int]) -> list[str]:
    """All tokens in order: GPT-2's, the special ones, the timestamps."""
    languages = _LANGUAGE_CODES[: shape.languages]
    return [
        *sorted(words, key=words.__getitem__)[:WORDS],
        *([""] if languages else []),  # by which CTranslate2 knows a multilingual model
        "<|endoftext|>",
        "<|startoftranscript|>",
        *(f"<|{code}|>" for code in languages or _LANGUAGE_CODES[:99]),  # the English models have them too
        "<|translate|>",
        "<|transcribe|>",
        "<|startoflm|>",
        "<|startofprev|>",
        "<|nospeech|>",
        "<|notimestamps|>",
        *(f"<|{0.02 * step:.2f}|>" for step in range(TIMESTAMPS)),
    ]


def script(shape: Shape, vocabulary: list[str], tokens: int) -> list[int]:
    """What the model says behind each position; the last entry holds for all that come after.

    Positions inside the prompt count where a decoder asks there: for the language, or for a first timestamp.
    """
    words = [id for id, token in enumerate(vocabulary) if re.fullmatch("Ġ[a-z]{3,9}", token)]
    said = np.random.default_rng(0).choice(words, tokens, replace=False).tolist()
    start = [vocabulary.index("<|0.00|>")] * (shape.prompt - 1)
    if shape.languages:
        start[0] = vocabulary.index("<|en|>")
    return [*start, *said, vocabulary.index("<|endoftext|>")]


def _tokenizer(source: dict[str, Any], vocabulary: list[str]) -> dict[str, Any]:
    """tiny.en's, with the special tokens of `vocabulary`."""
    plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": True}
    special = range(vocabulary.index("<|endoftext|>"), len(vocabulary) - TIMESTAMPS)
    added = [{"id": id, "content": vocabulary[id], **plain} for id in special]
    words = {token: id for id, token in enumerate(vocabulary[: special.start])}
    return {**source, "added_tokens": added, "post_processor": None, "model": {**source["model"], "vocab": words}}


def _configure(config: Any, shape: Shape, vocabulary: list[str]) -> None:
    upper = range(shape.decoder_layers // 2, shape.decoder_layers)
    heads = [(layer, head) for layer in upper for head in range(shape.heads)]
    config.alignment_heads = heads[:: max(1, len(heads) // ALIGNMENT_HEADS)][:ALIGNMENT_HEADS]
    config.suppress_ids = []
    config.suppress_ids_begin = [vocabulary.index("Ġ"), vocabulary.index("<|endoftext|>")]
    config.lang_ids = [vocabulary.index(f"<|{code}|>") for code in _LANGUAGE_CODES[: shape.languages]]


class _Filler:
    """Fills a specification with random numbers and the script."""

    def __init__(self, shape: Shape) -> None:
        self._shape = shape
        self._width = shape.width
        self._random = np.random.default_rng(1)
        self._block = (self._random.standard_normal(BLOCK, np.float32) * SCALE).astype(np.float16)

    def fill(self, spec: Any, script: list[int], size: int) -> None:
        width = self._width
        encoder, decoder = spec.encoder, spec.decoder
        for conv, channels in ((encoder.conv1, self._shape.mels), (encoder.conv2, width)):
            conv.weight, conv.bias = self._numbers(width, channels, 3), self._numbers(width)
        encoder.position_encodings.encodings = self._numbers(FRAMES, width)
        for layer in (*encoder.layer, *decoder.layer):
            self._layer(layer)
        self._norm(encoder.layer_norm)
        self._norm(decoder.layer_norm)

        codes = self._random.choice(np.array([-1.0, 1.0], np.float16), (len(script), CODE))
        decoder.embeddings.weight = self._numbers(size, width)
        decoder.embeddings.weight[:, -CODE:] = 0
        positions = self._numbers(POSITIONS, width)
        positions[:, -CODE:] = LOUD * codes[np.minimum(np.arange(POSITIONS), len(script) - 1)]
        decoder.position_encodings.encodings = positions
        output = self._numbers(size, width)
        output[:, -CODE:] = 0
        # What the last layer norm makes of a code: ±sqrt(width / CODE) in each of its dimensions.
        for token, code in zip(script, codes, strict=True):
            output[token, -CODE:] += code * np.float16(CERTAIN / CODE / (width / CODE) ** 0.5)
        decoder.projection.weight = output

    def _layer(self, layer: Any) -> None:
        width = self._width
        self._norm(layer.self_attention.layer_norm)
        self._linear(layer.self_attention.linear[0], 3 * width, width)
        self._linear(layer.self_attention.linear[1], width, width, into_stream=True)
        if hasattr(layer, "attention"):
            self._norm(layer.attention.layer_norm)
            self._linear(layer.attention.linear[0], width, width)
            self._linear(layer.attention.linear[1], 2 * width, width)
            self._linear(layer.attention.linear[2], width, width, into_stream=True)
        self._norm(layer.ffn.layer_norm)
        self._linear(layer.ffn.linear_0, 4 * width, width)
        self._linear(layer.ffn.linear_1, width, 4 * width, into_stream=True)

    def _linear(self, spec: Any, outputs: int, inputs: int, *, into_stream: bool = False) -> None:
        spec.weight, spec.bias = self._numbers(outputs, inputs), self._numbers(outputs)
        if into_stream:
            spec.weight[-CODE:] = 0
            spec.bias[-CODE:] = 0

    def _norm(self, spec: Any) -> None:
        spec.gamma, spec.beta = np.ones(self._width, np.float16), np.zeros(self._width, np.float16)

    def _numbers(self, *shape: int) -> Weights:
        return np.resize(np.roll(self._block, -int(self._random.integers(BLOCK))), shape)
