"""Models with random weights."""

from pathlib import Path

import faster_whisper
import numpy as np
import pytest

from bench import random_weights
from bench.random_weights import SHAPES, script, vocabulary_of

WORDS = {f"Ġword{n}" if n % 2 else "Ġ" + "".join(chr(97 + n // 26**k % 26) for k in range(4)): n for n in range(60_000)}


@pytest.mark.parametrize(("name", "size"), [("tiny.en", 51_864), ("tiny", 51_865), ("large-v3", 51_866)])
def test_a_vocabulary_is_as_large_as_the_real_ones(name: str, size: int) -> None:
    vocabulary = vocabulary_of(SHAPES[name], WORDS)
    assert len(vocabulary) == size
    assert vocabulary[-1] == "<|30.00|>"
    assert ("" in vocabulary) == (name != "tiny.en")


def test_the_script_ends_after_the_words() -> None:
    shape = SHAPES["tiny"]
    vocabulary = vocabulary_of(shape, WORDS)
    said = [vocabulary[id] for id in script(shape, vocabulary, 5)]
    assert said[0] == "<|en|>"
    assert said[-1] == "<|endoftext|>"
    assert len(set(said[shape.prompt - 1 : -1])) == 5


def test_an_unknown_shape_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no shape 'huge'"):
        random_weights.build("huge", tmp_path, tokens=5)


@pytest.mark.integration
@pytest.mark.parametrize("name", ["tiny", "tiny.en"])
def test_a_random_model_says_as_many_tokens_as_it_should(tmp_path: Path, name: str) -> None:
    folder = random_weights.build(name, tmp_path, tokens=12)
    model = faster_whisper.WhisperModel(str(folder), device="cpu", compute_type="int8", local_files_only=True)
    noise = np.random.default_rng(0).standard_normal(16_000).astype(np.float32) * 0.1
    for without_timestamps in (False, True):
        segments, info = model.transcribe(noise, without_timestamps=without_timestamps)
        (segment,) = segments
        assert info.language == "en"
        assert segment.temperature == 0.0  # it was sure at once
        assert len(segment.text.split()) == 12
