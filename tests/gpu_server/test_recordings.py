"""Browser recordings cut at any byte: every chunk can be decoded, and nothing between two chunks is lost."""

import hashlib
import itertools
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpu_server import mp4, ogg, webm
from gpu_server.containers import CONTAINERS, continuation_of, header_of
from gpu_server.decode_pool import load_pcm
from gpu_server.decoding import SAMPLE_RATE, SNIFF_BYTES, HeaderMissing, Limits, decode
from gpu_server.recordings import MAX_CHUNK_BYTES, Recordings
from shared.keys import ChunkKey, Session
from tests.fakes import MemoryStore
from tests.gpu_server import media

SECONDS = 4.0
RECORDINGS = {
    "webm": (webm, media.recording(SECONDS)),
    "ogg": (ogg, media.ogg_recording(SECONDS)),
    "ogg, a packet in a page": (ogg, media.ogg_recording(SECONDS, page_ms=20)),
    "mp4": (mp4, media.mp4_recording(SECONDS)),
    "mp4 at 16 kHz": (mp4, media.mp4_recording(SECONDS, rate=16_000)),
    "mp4 with an edit list": (mp4, media.mp4_recording(SECONDS, flags=media.FRAGMENTS + "+delay_moov")),
    "mp4 with absolute offsets": (mp4, media.mp4_recording(SECONDS, flags="frag_keyframe+empty_moov")),
    "mp4 with samples in its header": (mp4, media.mp4_recording(SECONDS, flags="frag_keyframe")),
    "mp4 with an index": (mp4, media.mp4_recording(SECONDS, flags="dash+frag_keyframe+delay_moov")),
    "mp4 with opus": (mp4, media.mp4_recording(SECONDS, codec="libopus", flags=media.FRAGMENTS + "+delay_moov")),
}
FORMS = pytest.mark.parametrize("form", RECORDINGS)
EVERY_CONTAINER = pytest.mark.parametrize("form", ["webm", "ogg", "mp4"])
ANYWHERE = settings(
    max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, print_blob=True
)


def samples(body: bytes, folder: Path) -> int:
    (folder / "audio").write_bytes(body)
    return decode(folder / "audio", folder / "pcm", limits=Limits()).samples


def cut(whole: bytes, *cuts: int) -> list[bytes]:
    edges = [0, *sorted(cuts), len(whole)]
    return [whole[start:end] for start, end in itertools.pairwise(edges)]


def key(number: str, session: str = "s") -> ChunkKey:
    return ChunkKey(Session("u", session), number, "webm")


def completed(recordings: Recordings, number: str, part: bytes, folder: Path) -> bytes:
    audio = folder / "part"
    audio.write_bytes(part)
    # The ETag that the store in these tests gives.
    recordings.learn(key(number), audio, etag=hashlib.md5(part, usedforsecurity=False).hexdigest())
    recordings.complete(key(number), audio, etags={})
    return audio.read_bytes()


def in_order(parts: list[bytes], folder: Path) -> list[int]:
    """The samples of every chunk of a recording, each completed after it was uploaded."""
    store = MemoryStore()
    recordings = Recordings(store)
    counts = []
    for number, part in enumerate(parts, start=1):
        store.upload(key(str(number)).key, part)
        counts.append(samples(completed(recordings, str(number), part, folder), folder))
    return counts


@FORMS
@ANYWHERE
@given(lengths=st.lists(st.integers(4000, 9000), min_size=1, max_size=3))
def test_wherever_a_recording_is_cut_its_chunks_are_as_long_as_it_was(
    form: str, tmp_path: Path, lengths: list[int]
) -> None:
    container, whole = RECORDINGS[form]
    parts = cut(whole, *itertools.accumulate(lengths))
    assert all(continuation_of(part) is container for part in parts[1:])
    # A resampler begins anew in each chunk, and may round one sample up or down.
    assert sum(in_order(parts, tmp_path)) == pytest.approx(samples(whole, tmp_path), abs=len(parts))


@pytest.mark.parametrize("form", ["ogg", "mp4"])
def test_a_chunk_holds_what_was_said_in_it_and_nothing_else(form: str, store: MemoryStore, tmp_path: Path) -> None:
    _, whole = RECORDINGS[form]
    first, second = cut(whole, 17_000)
    samples(whole, tmp_path)
    expected = load_pcm(tmp_path / "pcm")
    skipped = samples(first, tmp_path)
    store.upload(key("1").key, first)
    samples(completed(Recordings(store), "2", second, tmp_path), tmp_path)
    heard = load_pcm(tmp_path / "pcm")
    settled = SAMPLE_RATE // 5  # a decoder that starts anew takes a moment
    difference = heard[settled:] - expected[skipped + settled :][: heard.size - settled]
    assert np.abs(difference).mean() < 0.1 * np.abs(expected).mean()  # AAC decoders make up noise


@EVERY_CONTAINER
def test_without_the_chunk_before_it_only_what_was_cut_is_lost(form: str, tmp_path: Path) -> None:
    container, whole = RECORDINGS[form]
    dice = random.Random(1)
    for _ in range(10):
        first, second = cut(whole, dice.randrange(5000, len(whole) - 5000))
        found = header_of(first)
        assert found is not None
        complete = samples(container.graft(found[1], container.cut_element(first), second), tmp_path)
        alone = samples(container.graft(found[1], b"", second), tmp_path)
        assert 0 <= complete - alone <= 0.4 * SAMPLE_RATE


@FORMS
def test_a_whole_recording_is_no_continuation_and_its_later_chunks_have_no_header(form: str) -> None:
    container, whole = RECORDINGS[form]
    assert continuation_of(whole) is None
    found = header_of(whole)
    assert found is not None
    assert found[0] is container
    assert header_of(whole[9000:]) is None


NOT_CONTINUED = {
    "webm": media.webm(),
    "wav": media.wav(),
    "mp3": media.mp3(),
    "adts": media.encode(media.tone(1.0), container="adts", codec="aac"),
    "m4a": media.encode(media.tone(1.0), container="ipod", codec="aac"),
    "film": media.picture_only(),
    "ogg in a zip archive": b"PK\x03\x04" + media.ogg_recording(),
    "mp4 in a zip archive": b"PK\x03\x04" + media.mp4_recording(),
    "text": b"an OggS page, a moof box and an mdat box " * 1000,
    "text like a box": b"\0\0\0\x20moov, moof and mdat" + bytes(500),
    "page without checksum": b"OggS\0\0" + bytes(21) + bytes(1000),
    "zeros": bytes(100_000),
    "random": random.Random(4).randbytes(300_000),
    "nothing": b"",
}


@pytest.mark.parametrize("case", NOT_CONTINUED)
def test_other_files_are_no_continuations_and_left_alone(case: str, store: MemoryStore, tmp_path: Path) -> None:
    content = NOT_CONTINUED[case]
    assert continuation_of(content) is None
    assert completed(Recordings(store), "2", content, tmp_path) == content
    assert store.trace == []


@media.NEEDS_SPEECH
def test_no_file_of_real_speech_is_a_continuation() -> None:
    files = list(media.SPEECH.glob("*.*"))
    assert files
    for path in files:
        with path.open("rb") as file:
            assert continuation_of(file.read(1 << 20)) is None, path.name


@EVERY_CONTAINER
def test_a_chunk_of_hours_is_not_taken_into_memory(form: str, store: MemoryStore, tmp_path: Path) -> None:
    first, second = cut(RECORDINGS[form][1], 15_000)
    store.upload(key("1").key, first)
    audio = tmp_path / "part"
    audio.write_bytes(second)
    with audio.open("r+b") as file:
        file.truncate(MAX_CHUNK_BYTES + 1)  # a hole
    recordings = Recordings(store)
    recordings.learn(key("2"), audio, etag="e")
    recordings.complete(key("2"), audio, etags={})
    assert store.trace == []
    assert audio.stat().st_size == MAX_CHUNK_BYTES + 1


TEDIOUS = {
    "webm": (b"\xa3" * (1 << 20), media.recording(0.3)[:600] + b"\xec\x80" * (4 << 20)),
    "ogg": (b"OggS" * (1 << 18), media.ogg_recording(0.3) + ogg._signed(b"OggS\0\0" + bytes(21)) * (1 << 19)),
    "mp4": (b"\0\0\0\x08mdat" * (1 << 17), media.mp4_recording(0.5) + b"\0\0\0\x08free" * (3 << 20)),
}


@EVERY_CONTAINER
def test_no_made_up_file_keeps_the_server_busy(form: str) -> None:
    container, _ = RECORDINGS[form]
    began = time.process_time()
    for body in TEDIOUS[form]:
        container.is_continuation(body[:SNIFF_BYTES])
        header = container.header_of(body) or b""
        container.graft(header, container.cut_element(body), body)
    assert time.process_time() - began < 2  # a tenth of that; without limits 3 to 10


@EVERY_CONTAINER
def test_damaged_chunks_raise_nothing(form: str) -> None:
    _, whole = RECORDINGS[form]
    dice = random.Random(5)
    for _ in range(300):
        content = bytearray(whole[dice.choice([0, 9000]) :])
        for _ in range(dice.choice([1, 10, 100, 1000])):
            content[dice.randrange(dice.choice([1000, len(content)]))] = dice.randrange(256)
        body = bytes(content[: dice.randrange(len(content))])
        for container in CONTAINERS:
            container.is_cut(body)
            container.is_continuation(body)
            header = container.header_of(body) or b""
            container.graft(header, container.cut_element(body), body)


@EVERY_CONTAINER
@pytest.mark.parametrize("numbers", [("1", "2", "3"), ("001", "002", "003")])
def test_later_chunks_are_completed_from_their_siblings(
    form: str, store: MemoryStore, tmp_path: Path, numbers: tuple[str, str, str]
) -> None:
    _, whole = RECORDINGS[form]
    parts = cut(whole, len(whole) // 3, 2 * len(whole) // 3)
    for number, part in zip(numbers, parts, strict=True):
        store.upload(key(number).key, part)
    # Each on a server of its own, the last one first.
    total = sum(
        samples(completed(Recordings(store), number, part, tmp_path), tmp_path)
        for number, part in reversed([*zip(numbers, parts, strict=True)])
    )
    assert total == pytest.approx(samples(whole, tmp_path), abs=3)


@EVERY_CONTAINER
def test_without_its_first_chunk_a_later_one_waits_and_is_left_alone(
    form: str, store: MemoryStore, tmp_path: Path
) -> None:
    first, second = cut(RECORDINGS[form][1], 15_000)
    recordings = Recordings(store)
    assert completed(recordings, "2", second, tmp_path) == second
    with pytest.raises(HeaderMissing):
        samples(second, tmp_path)
    store.upload(key("1").key, first)
    assert samples(completed(recordings, "2", second, tmp_path), tmp_path) > SAMPLE_RATE


def test_a_chunk_is_not_put_behind_the_header_of_another_container(store: MemoryStore, tmp_path: Path) -> None:
    forms = ("webm", "ogg", "mp4")
    for mine, others in itertools.permutations(forms, 2):
        store.upload(key("1").key, RECORDINGS[others][1][:9000])
        second = RECORDINGS[mine][1][9000:]
        assert completed(Recordings(store), "2", second, tmp_path) == second


def test_nothing_is_put_before_a_chunk_from_another_container(store: MemoryStore, tmp_path: Path) -> None:
    first, second = cut(RECORDINGS["ogg"][1], 15_000)
    store.upload(key("1").key, first)
    alone = completed(Recordings(store), "3", second, tmp_path)
    store.upload(key("2").key, RECORDINGS["mp4"][1][9000:20_000])
    assert completed(Recordings(store), "3", second, tmp_path) == alone


def reads(store: MemoryStore, recordings: Recordings, number: str, part: bytes, folder: Path) -> list[str]:
    """The chunks that are fetched to complete one."""
    store.trace.clear()
    completed(recordings, number, part, folder)
    return [name.rpartition("chunk-")[2].removesuffix(".webm") for call, name in store.trace if call == "get"]


@EVERY_CONTAINER
def test_siblings_are_fetched_once_and_again_when_they_are_recorded_again(
    form: str, store: MemoryStore, tmp_path: Path
) -> None:
    first, second, third = cut(RECORDINGS[form][1], 10_000, 20_000)
    store.upload(key("1").key, first)
    store.upload(key("2").key, second)
    recordings = Recordings(store)
    assert [reads(store, recordings, "3", third, tmp_path) for _ in range(3)] == [["1", "2"], [], []]
    store.upload(key("1").key, first[:-1])
    assert reads(store, recordings, "3", third, tmp_path) == ["1"]
    store.upload(key("2").key, second[:-1])
    assert reads(store, recordings, "3", third, tmp_path) == ["2"]


@EVERY_CONTAINER
def test_of_chunks_that_come_in_order_none_is_fetched(form: str, store: MemoryStore, tmp_path: Path) -> None:
    recordings = Recordings(store)
    for number, part in enumerate(cut(RECORDINGS[form][1], 10_000, 20_000), start=1):
        store.upload(key(str(number)).key, part)
        assert reads(store, recordings, str(number), part, tmp_path) == []


def test_the_chunk_before_is_not_asked_for_when_nothing_was_cut(store: MemoryStore, tmp_path: Path) -> None:
    borders: dict[str, Any] = {
        "webm": RECORDINGS["webm"][1].index(webm.CLUSTER, 9000),
        "ogg": media.pages(RECORDINGS["ogg"][1])[8],
        "mp4": media.boxes(RECORDINGS["mp4"][1], b"moof")[5],
    }
    for form, border in borders.items():
        whole = RECORDINGS[form][1]
        store.upload(key("1").key, whole[:5000])
        store.upload(key("2").key, whole[5000:border])
        assert reads(store, Recordings(store), "3", whole[border:], tmp_path) == ["1"]


@media.NEEDS_SPEECH
def test_a_real_recording_of_chromium_comes_out_whole(tmp_path: Path) -> None:
    parts = [path.read_bytes() for path in sorted((media.SPEECH / "browser/timeslice").glob("chunk-*.webm"))]
    assert sum(in_order(parts, tmp_path)) == samples(b"".join(parts), tmp_path)
