"""Both engines, with real weights: the same shape, the same promises, nothing from the network."""

import importlib.util
import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from gpu_server.decode_pool import load_pcm
from gpu_server.decoding import SAMPLE_RATE, Limits, decode
from gpu_server.engines import (
    Audio,
    EngineFault,
    ModelMissing,
    Options,
    Recognition,
    Segment,
    UnknownLanguage,
    UnsupportedOption,
    Word,
    check_options,
    load_engine,
    models,
    timeline,
)
from tests.gpu_server import media
from tests.gpu_server.ears import Ears

KINDS = [
    pytest.param(kind, marks=pytest.mark.skipif(importlib.util.find_spec(module) is None, reason=f"needs {module}"))
    for kind, module in (("faster-whisper", "faster_whisper"), ("whisperx", "whisperx"))
]

dialled: list[str] = []  # what any library tried to reach
watching = False  # an audit hook cannot be taken back


def _note_network(event: str, arguments: tuple[Any, ...]) -> None:
    if watching and event in {"socket.connect", "socket.getaddrinfo", "socket.sendto"}:
        dialled.append(f"{event} {arguments}")


@pytest.fixture(scope="module", autouse=True)
def network() -> Iterator[None]:
    global watching
    sys.addaudithook(_note_network)
    watching = True
    yield
    watching = False


@pytest.fixture(scope="module", params=KINDS)
def ears(request: pytest.FixtureRequest) -> Iterator[Ears]:
    ears = Ears(load_engine(request.param, model="tiny.en", device="cpu"))
    yield ears
    ears.listener.close()


def speech(name: str, folder: Path) -> Audio:
    decode(media.DATA / name, folder / "pcm", limits=Limits())
    return load_pcm(folder / "pcm")


def plain(text: str) -> str:
    return " ".join(re.findall(r"[a-z']+", text.lower()))


def assert_shape(recognition: Recognition, duration: float) -> None:
    now = 0.0
    for segment in recognition.segments:
        assert segment.text == segment.text.strip() != ""
        assert segment.words
        assert (segment.start, segment.end) == (segment.words[0].start, segment.words[-1].end)
        assert plain(segment.text).split() == plain(" ".join(w.word for w in segment.words)).split()
        for word in segment.words:
            assert word.word == word.word.strip() != ""
            assert now <= word.start <= word.end <= duration
            assert 0 <= word.score <= 1
            assert round(word.start, 3) == word.start
            now = word.end


def test_it_hears_what_was_said(ears: Ears, tmp_path: Path) -> None:
    audio = speech("hello.wav", tmp_path)
    recognition = ears.hear(audio, Options())
    assert plain(recognition.text) == "hello and welcome this is a short test"
    assert (recognition.language, recognition.model, recognition.engine) == ("en", "tiny.en", ears.engine.name)
    assert recognition.alignment == "attention"
    assert_shape(recognition, len(audio) / SAMPLE_RATE)
    first, *_, last = [word for segment in recognition.segments for word in segment.words]
    assert first.start < 0.6
    assert 2 < last.end <= 3.22


def test_a_long_speech_comes_in_sentences(ears: Ears, tmp_path: Path) -> None:
    audio = speech("session-a/whole.opus", tmp_path)
    recognition = ears.hear(audio, Options())
    assert_shape(recognition, len(audio) / SAMPLE_RATE)
    assert len(recognition.segments) >= 10
    assert "our little garden" in recognition.text
    assert recognition.text.endswith("close the door.")
    hung = next(w for s in recognition.segments for w in s.words if plain(w.word) == "cherries")
    assert 25 < hung.start < 35


def _times(seconds: float) -> np.ndarray:
    return np.arange(round(seconds * SAMPLE_RATE)) / SAMPLE_RATE


NOISE = np.random.default_rng(0)
CHORD = sum(np.sin(2 * np.pi * hertz * _times(10)) for hertz in (262, 330, 392, 523))
SPEECHLESS = {
    "nothing": np.zeros(0),
    "one sample": np.zeros(1),
    "20 ms": NOISE.normal(0, 0.1, 320),
    "99 ms": NOISE.normal(0, 0.1, 1584),
    "150 ms": NOISE.normal(0, 0.1, 2400),
    "digital silence": np.zeros(5 * SAMPLE_RATE),
    "a minute of silence": np.zeros(60 * SAMPLE_RATE),
    "faint noise": NOISE.normal(0, 0.001, 10 * SAMPLE_RATE),
    "loud noise": NOISE.normal(0, 0.2, 10 * SAMPLE_RATE),
    "a tone": 0.3 * np.sin(2 * np.pi * 440 * _times(5)),
    "a slow chord": 0.1 * CHORD * np.sin(2 * np.pi * 0.5 * _times(10)) ** 2,
    "clipping": NOISE.choice([-1.0, 1.0], 5 * SAMPLE_RATE),
}


@pytest.mark.parametrize("name", SPEECHLESS)
def test_where_nobody_speaks_nothing_is_heard(name: str, ears: Ears) -> None:
    recognition = ears.hear(SPEECHLESS[name].astype(np.float32), Options())
    assert recognition.segments == ()
    assert recognition.text == ""
    assert recognition.language == "en"


def test_silence_around_speech_changes_only_its_times(ears: Ears, tmp_path: Path) -> None:
    audio = speech("hello.wav", tmp_path)
    silence = np.zeros(4 * SAMPLE_RATE, dtype=np.float32)
    recognition = ears.hear(np.concatenate([silence, audio, silence]), Options())
    assert "short test" in recognition.text
    assert_shape(recognition, len(audio) / SAMPLE_RATE + 8)
    assert recognition.segments[0].start == pytest.approx(4.1, abs=0.6)


def test_one_requests_options_do_not_stay(ears: Ears, tmp_path: Path) -> None:
    audio = speech("hello.wav", tmp_path)
    before = ears.hear(audio, Options())
    ears.hear(audio, Options(initial_prompt="HELLO AND WELCOME", hotwords="Welkome <|endoftext|>"))
    bare = ears.hear(audio, Options(word_timestamps=False, language="en"))
    assert bare.alignment == "none"
    assert all(segment.words == () and segment.end > segment.start for segment in bare.segments)
    assert ears.hear(audio, Options()) == before


@pytest.mark.parametrize("options", [Options(task="translate"), Options(language="de"), Options(language="xx")])
def test_what_the_model_cannot_do_is_the_callers_fault(options: Options, ears: Ears) -> None:
    with pytest.raises(UnsupportedOption, match="English only"):
        ears.hear(np.zeros(SAMPLE_RATE, dtype=np.float32), options)


def test_nothing_was_asked_of_the_network(ears: Ears) -> None:
    ears.hear(np.zeros(SAMPLE_RATE, dtype=np.float32), Options())
    assert dialled == []


@pytest.mark.skipif(not media.SPEECH.is_dir(), reason="needs the collected speech beside the checkout")
@pytest.mark.parametrize(
    "name",
    [
        "tel_osr_us_000_0034_8k.wav",
        "fleurs_de_001.ogg",
        "fleurs_es_001.ogg",
        "lang_ja_cv_24511055.mp3",
        "cards_001.wav",
        "browser_chrome_pappu.webm",
    ],
)
def test_real_recordings_keep_the_shape(name: str, ears: Ears, tmp_path: Path) -> None:
    decode(media.SPEECH / name, tmp_path / "pcm", limits=Limits())
    audio = load_pcm(tmp_path / "pcm")
    assert_shape(ears.hear(audio, Options()), len(audio) / SAMPLE_RATE)


@pytest.fixture(scope="module")
def wav2vec2(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wav2vec2 model for English of random weights: it aligns badly, by the real code."""
    pytest.importorskip("whisperx")
    transformers = pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("align") / "en"
    folder.mkdir()
    letters = ["<pad>", "<s>", "</s>", "<unk>", "|", *"abcdefghijklmnopqrstuvwxyz'"]
    vocabulary = {letter: number for number, letter in enumerate(letters)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    tokenizer = transformers.Wav2Vec2CTCTokenizer(folder / "vocab.json", word_delimiter_token="|")
    extractor = transformers.Wav2Vec2FeatureExtractor(sampling_rate=SAMPLE_RATE)
    transformers.Wav2Vec2Processor(extractor, tokenizer).save_pretrained(folder)
    config = transformers.Wav2Vec2Config(
        vocab_size=len(letters),
        hidden_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=64,
        conv_dim=(32,) * 7,
        num_conv_pos_embeddings=16,
    )
    transformers.Wav2Vec2ForCTC(config).save_pretrained(folder)
    return folder.parent


def test_word_times_come_from_wav2vec2_where_there_is_one(wav2vec2: Path, tmp_path: Path) -> None:
    ears = Ears(load_engine("whisperx", model="tiny.en", device="cpu", align_model_dir=wav2vec2))
    audio = speech("hello.wav", tmp_path)
    recognition = ears.hear(audio, Options())
    assert recognition.alignment == "wav2vec2"
    assert plain(recognition.text) == "hello and welcome this is a short test"
    assert_shape(recognition, len(audio) / SAMPLE_RATE)
    assert dialled == []


def test_a_multilingual_model_knows_its_languages() -> None:
    languages = frozenset({"en", "de", "fr"})
    check_options(Options(task="translate", language="de"), model="base", languages=languages)
    with pytest.raises(UnknownLanguage, match="'xx'"):
        check_options(Options(language="xx"), model="base", languages=languages)


def test_a_missing_model_says_how_to_get_it(tmp_path: Path) -> None:
    for name in ("large-v3", "no/such-model", "not a name"):
        with pytest.raises(ModelMissing, match="Fetch it before") as caught:
            load_engine("faster-whisper", model=name)
        assert name in str(caught.value)
    with pytest.raises(ModelMissing, match=r"model\.bin"):
        models.resolve(str(tmp_path))


def test_a_damaged_model_stops_the_server(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"damaged")
    with pytest.raises(EngineFault, match="cannot load"):
        load_engine("faster-whisper", model=str(tmp_path))


def test_a_directory_is_used_as_it_is() -> None:
    directory = models.resolve("tiny.en")
    assert models.resolve(str(directory)) == directory
    assert models.display_name(str(directory)) == "model"
    assert models.display_name("tiny.en") == "tiny.en"


def segment(*words: tuple[str, float, float], **more: Any) -> Segment:
    return Segment(
        start=words[0][1],
        end=words[-1][2],
        text=more.pop("text", " ".join(word for word, _, _ in words)),
        words=tuple(Word(word=word, start=start, end=end, score=0.5) for word, start, end in words),
        **more,
    )


def test_times_are_made_to_run_forwards() -> None:
    raw = [
        segment((" a", -0.5, 0.2), (" b", 0.1, 0.3), (" c", 0.25, float("nan"))),
        segment((" d", 0.2, 9.0), (" e", 9.5, 9.9)),
        segment(("...", 1.0, 2.0)),
    ]
    tidied = timeline.tidy(raw, duration=5.0)
    assert [(w.word, w.start, w.end) for s in tidied for w in s.words] == [
        ("a", 0.0, 0.2),
        ("b", 0.2, 0.3),
        ("c", 0.3, 0.3),
        ("d", 0.3, 5.0),
        ("e", 5.0, 5.0),
    ]
    assert [(s.start, s.end) for s in tidied] == [(0.0, 0.3), (0.3, 5.0)]


def test_windows_are_split_into_sentences() -> None:
    window = segment(
        ("Mr.", 0, 1), ("Brown", 1, 2), ("left.", 2, 3), ("Why?", 3, 4), ("He", 4, 5), ("said", 5, 6), ("so", 6, 7)
    )
    assert [(s.text.strip(), s.start, s.end) for s in timeline.split_sentences(window)] == [
        ("Mr. Brown left.", 0, 3),
        ("Why?", 3, 4),
        ("He said so", 4, 7),
    ]
    chinese = segment(("你好", 0, 1), ("。", 1, 1), ("再见", 1, 2), text="你好。再见")
    assert [s.text for s in timeline.split_sentences(chinese)] == ["你好。", "再见"]
    odd = segment(("a", 0, 1), ("b", 1, 2), text="something else")
    assert list(timeline.split_sentences(odd)) == [odd]
