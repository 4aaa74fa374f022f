"""Browser recordings cut at any byte: every chunk can be decoded, and nothing between two chunks is lost."""

import itertools
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from gpu_server.decoding import SAMPLE_RATE, HeaderMissing, Limits, decode
from gpu_server.recordings import Recordings
from gpu_server.webm import CLUSTER, cut_element, graft, header_of, is_continuation
from shared.keys import ChunkKey, Session
from tests.fakes import MemoryStore
from tests.gpu_server import media

PRE_SKIP = 104  # samples at 16 kHz: the Opus delay that FFmpeg's header asks every decoder to drop; Chrome's does not
SECONDS = 4.0
RECORDING = media.recording(SECONDS)
FIRST_CLUSTER = RECORDING.index(CLUSTER)


def samples(body: bytes, folder: Path) -> int:
    (folder / "audio").write_bytes(body)
    return decode(folder / "audio", folder / "pcm", limits=Limits()).samples


def chunks(cuts: list[int]) -> list[bytes]:
    edges = [0, *sorted(cuts), len(RECORDING)]
    return [RECORDING[start:end] for start, end in itertools.pairwise(edges)]


def key(number: str, session: str = "s") -> ChunkKey:
    return ChunkKey(Session("u", session), number, "webm")


@example([1500, 2783, 1500])  # in which a chunk begins with bytes that look like a block's size
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.integers(1500, 12_000), min_size=1, max_size=3))
def test_wherever_a_recording_is_cut_its_chunks_are_as_long_as_it_was(tmp_path: Path, lengths: list[int]) -> None:
    parts = chunks([FIRST_CLUSTER + sum(lengths[: number + 1]) for number in range(len(lengths))])
    header = header_of(parts[0])
    assert header is not None
    total, previous = samples(parts[0], tmp_path), parts[0]
    for part in parts[1:]:
        assert is_continuation(part)
        total += samples(graft(header, cut_element(previous), part), tmp_path)
        previous = part
    assert 0 <= SECONDS * SAMPLE_RATE - total <= PRE_SKIP * (len(parts) - 1)


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.integers(FIRST_CLUSTER + 1500, len(RECORDING) - 1500))
def test_without_the_chunk_before_it_only_the_cut_frame_is_lost(tmp_path: Path, cut: int) -> None:
    first, second = chunks([cut])
    header = header_of(first)
    assert header is not None
    whole = samples(graft(header, cut_element(first), second), tmp_path)
    alone = samples(graft(header, b"", second), tmp_path)
    assert 0 <= whole - alone <= 0.1 * SAMPLE_RATE


def test_a_file_with_a_header_is_no_continuation() -> None:
    for body in (RECORDING, media.webm(1.0), media.wav(1.0)):
        assert not is_continuation(body)
        assert header_of(body[FIRST_CLUSTER:]) is None


@pytest.mark.parametrize("numbers", [("1", "2", "3"), ("001", "002", "003")])
def test_later_chunks_are_completed_from_their_siblings(
    store: MemoryStore, tmp_path: Path, numbers: tuple[str, str, str]
) -> None:
    third = (len(RECORDING) - FIRST_CLUSTER) // 3
    parts = chunks([FIRST_CLUSTER + third, FIRST_CLUSTER + 2 * third])
    recordings, total = Recordings(store), 0
    for number, part in zip(numbers, parts, strict=True):
        store.upload(key(number).key, part)
        audio = tmp_path / number
        audio.write_bytes(part)
        recordings.complete(key(number), audio)
        total += samples(audio.read_bytes(), tmp_path)
    assert abs(total - SECONDS * SAMPLE_RATE) <= 2 * PRE_SKIP


def test_without_its_first_chunk_a_later_one_waits_and_is_left_alone(store: MemoryStore, tmp_path: Path) -> None:
    first, second = chunks([FIRST_CLUSTER + 20_000])
    audio = tmp_path / "audio"
    audio.write_bytes(second)
    recordings = Recordings(store)
    recordings.complete(key("2"), audio)
    assert audio.read_bytes() == second
    with pytest.raises(HeaderMissing):
        samples(second, tmp_path)
    store.upload(key("1").key, first)
    recordings.complete(key("2"), audio)
    assert samples(audio.read_bytes(), tmp_path) > SAMPLE_RATE


def test_the_header_is_fetched_once_and_again_when_chunk_1_is_recorded_again(
    store: MemoryStore, tmp_path: Path
) -> None:
    first, second = chunks([FIRST_CLUSTER + 20_000])
    store.upload(key("1").key, first)
    recordings = Recordings(store)
    audio = tmp_path / "audio"

    def reads_of_chunk_1() -> int:
        audio.write_bytes(second)
        store.trace.clear()
        recordings.complete(key("3"), audio)
        return store.trace.count(("get", key("1").key))

    assert [reads_of_chunk_1() for _ in range(3)] == [1, 0, 0]
    store.upload(key("1").key, first + bytes([0xEC, 0x80]))
    assert reads_of_chunk_1() == 1


def test_chunks_that_need_nothing_are_left_alone(store: MemoryStore, tmp_path: Path) -> None:
    audio = tmp_path / "audio"
    for body in (media.webm(1.0), media.wav(1.0), b"noise" * 100, b""):
        audio.write_bytes(body)
        Recordings(store).complete(key("2"), audio)
        assert audio.read_bytes() == body
    assert store.trace == []


@pytest.mark.skipif(not (media.SPEECH / "browser").exists(), reason="real recordings are not part of the project")
def test_a_real_recording_of_chromium_comes_out_whole(store: MemoryStore, tmp_path: Path) -> None:
    paths = sorted((media.SPEECH / "browser/timeslice").glob("chunk-*.webm"))
    recordings, total = Recordings(store), 0
    for path in paths:
        store.upload(key(path.stem.removeprefix("chunk-")).key, path.read_bytes())
    for path in paths:
        audio = tmp_path / path.name
        audio.write_bytes(path.read_bytes())
        recordings.complete(key(path.stem.removeprefix("chunk-")), audio)
        total += samples(audio.read_bytes(), tmp_path)
    joined = b"".join(path.read_bytes() for path in paths)
    assert total == samples(joined, tmp_path)
