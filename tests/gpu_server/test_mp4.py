"""MP4 fragments: where recordings may be cut, and what is put together from the pieces."""

import io
from pathlib import Path

import pytest

from gpu_server import mp4
from gpu_server.decoding import Decoded, Limits, decode
from tests.gpu_server import media

WHOLE = media.mp4_recording(4.0)
FRAGMENTS = media.boxes(WHOLE, b"moof")
DATA = media.boxes(WHOLE, b"mdat")
PER_FRAME = 1024 / 3  # samples at 16 kHz of an AAC frame at 48 kHz


def decoded(body: bytes, folder: Path) -> Decoded:
    (folder / "audio").write_bytes(body)
    return decode(folder / "audio", folder / "pcm", limits=Limits())


def header(whole: bytes = WHOLE) -> bytes:
    found = mp4.header_of(whole)
    assert found is not None
    return found


@pytest.mark.parametrize("flags", [media.FRAGMENTS, media.FRAGMENTS + "+delay_moov", "frag_keyframe"])
@pytest.mark.parametrize("codec", ["aac", "libopus"])
def test_the_header_holds_no_audio_and_skips_none(codec: str, flags: str, tmp_path: Path) -> None:
    whole = media.mp4_recording(4.0, codec=codec, flags=flags)
    assert decoded(header(whole), tmp_path).reason == "header-only"
    start = media.boxes(whole, b"moof")[3]
    expected = decoded(whole, tmp_path).samples - decoded(whole[:start], tmp_path).samples
    grafted = mp4.graft(header(whole), b"", whole[start:])
    assert decoded(grafted, tmp_path).samples == pytest.approx(expected, abs=1)


@pytest.mark.parametrize("size", [0, 4, 28, 100, FRAGMENTS[0] - 1])
def test_a_cut_header_is_none(size: int) -> None:
    assert mp4.header_of(WHOLE[:size]) is None


def test_a_file_without_fragments_has_no_header() -> None:
    assert mp4.header_of(media.encode(media.tone(1.0), container="ipod", codec="aac")) is None
    assert mp4.header_of(WHOLE[FRAGMENTS[0] :]) is None


def test_fragments_without_a_header_are_continuations_wherever_they_begin() -> None:
    for start in (FRAGMENTS[0], FRAGMENTS[3], DATA[3], DATA[3] + 100, FRAGMENTS[3] + 20):
        assert mp4.is_continuation(WHOLE[start:])
    assert mp4.is_continuation(b"\0\0\0\x18stypmsdh\0\0\0\0msdhmsix" + WHOLE[FRAGMENTS[3] :])
    assert mp4.is_continuation(WHOLE[FRAGMENTS[3] :][:40])


def test_a_file_with_its_header_anywhere_is_none() -> None:
    moov = WHOLE[28 : FRAGMENTS[0]]
    assert not mp4.is_continuation(WHOLE)
    assert not mp4.is_continuation(moov + WHOLE[FRAGMENTS[0] :])
    assert not mp4.is_continuation(WHOLE[DATA[0] : FRAGMENTS[1]] + moov)  # QuickTime, before it had `ftyp`


@pytest.mark.parametrize("border", [FRAGMENTS[4], DATA[4], FRAGMENTS[4] + 5, DATA[4] + 3, DATA[4] + 8])
def test_the_cut_fragment_is_found_from_its_first_byte(border: int, tmp_path: Path) -> None:
    first, second = WHOLE[:border], WHOLE[border:]
    assert mp4.is_cut(second) == (border != FRAGMENTS[4])
    for chunk in (first, WHOLE[DATA[1] + 10 : border]):
        grafted = mp4.graft(header(), mp4.cut_element(chunk), second)
        assert decoded(grafted, tmp_path).samples == decoded(header() + WHOLE[FRAGMENTS[4] :], tmp_path).samples


@pytest.mark.parametrize("flags", [media.FRAGMENTS, "frag_keyframe+empty_moov"])
@pytest.mark.parametrize("distance", [50, 200, 1000, 2000])
def test_no_sample_is_decoded_twice(flags: str, distance: int, tmp_path: Path) -> None:
    whole = media.mp4_recording(4.0, flags=flags)
    border = media.boxes(whole, b"mdat")[4] + distance
    first, second = whole[:border], whole[border:]
    grafted = mp4.graft(header(whole), mp4.cut_element(first), second)
    total = decoded(first, tmp_path).samples + decoded(grafted, tmp_path).samples
    assert total == pytest.approx(decoded(whole, tmp_path).samples, abs=1)


def test_without_the_start_of_its_fragment_a_chunk_counts_from_the_next(tmp_path: Path) -> None:
    grafted = mp4.graft(header(), b"", WHOLE[DATA[4] + 50 :])
    assert grafted == mp4.graft(header(), b"", WHOLE[FRAGMENTS[5] :])


SIZES = [30, 40, 50, 60]
RUNS = {
    "sizes": (0x200, lambda size: word(size)),
    "durations and sizes, as Chrome writes them": (0x300, lambda size: word(1024) + word(size)),
    "all fields": (0xF04, lambda size: word(1024) + word(size) + word(7) + word(8)),
}


def word(number: int) -> bytes:
    return number.to_bytes(4, "big")


def box(kind: bytes, content: bytes) -> bytes:
    return word(8 + len(content)) + kind + content


def fragment(flags: int, table: bytes, *, count: int, tfhd: bytes) -> bytes:
    """A `moof` whose samples begin behind the header of the `mdat` that follows it."""

    def moof(offset: int) -> bytes:
        first_flags = word(9) if flags & 4 else b""
        trun = box(b"trun", word(flags | 1) + word(count) + word(offset) + first_flags + table)
        return box(b"moof", box(b"traf", box(b"tfhd", tfhd) + trun))

    return moof(len(moof(0)) + 8)


def rest_of(cut: bytes) -> tuple[int, int, bytes]:
    """How many samples a cut fragment still describes, where the first is, and the table."""
    run = cut.index(b"trun")
    end = run - 4 + int.from_bytes(cut[run - 4 : run], "big")
    count, offset = (int.from_bytes(cut[run + place : run + place + 4], "big") for place in (8, 12))
    return count, offset, cut[run + 16 : end]


@pytest.mark.parametrize("case", RUNS)
def test_only_samples_that_are_not_whole_stay_described(case: str) -> None:
    flags, entry = RUNS[case]
    moof = fragment(flags, b"".join(map(entry, SIZES)), count=4, tfhd=b"\0\x02\0\0" + word(1))
    data = box(b"mdat", bytes(sum(SIZES)))
    for there, whole in ((0, 0), (29, 0), (30, 1), (71, 2), (179, 3)):
        cut = mp4.cut_element(moof + data[: 8 + there])
        count, offset, table = rest_of(cut)
        assert count == 4 - whole
        assert len(cut) - offset == there - sum(SIZES[:whole])
        assert table.endswith(b"".join(map(entry, SIZES[whole:])))
        assert len(table) == (4 if flags & 4 else 0) + len(entry(0)) * count


def test_samples_of_one_size_need_no_table() -> None:
    """PCM, for example: the fragment says the size once."""
    moof = fragment(0, b"", count=100, tfhd=b"\0\x02\0\x18" + word(1) + word(1) + word(4))
    cut = mp4.cut_element(moof + box(b"mdat", bytes(400))[: 8 + 41])
    count, offset, table = rest_of(cut)
    assert (count, len(cut) - offset, table) == (90, 1, b"")


def test_a_file_is_read_up_to_the_box_that_its_end_cuts() -> None:
    def readable(size: int) -> int:
        return mp4.readable_bytes(io.BytesIO(WHOLE[:size]), size)

    assert readable(len(WHOLE)) == len(WHOLE)
    assert readable(FRAGMENTS[5] + 20) == FRAGMENTS[5]
    assert readable(DATA[5] + 20) == DATA[5] + 20
    assert readable(DATA[5] + 3) == DATA[5] + 3


@pytest.mark.parametrize("distance", range(0, 400, 7))
def test_wherever_a_chunk_ends_all_of_its_whole_frames_are_decoded(distance: int, tmp_path: Path) -> None:
    before = decoded(WHOLE[: FRAGMENTS[2]], tmp_path).samples
    result = decoded(WHOLE[: FRAGMENTS[2] + distance], tmp_path)
    data = max(0, distance - (DATA[2] - FRAGMENTS[2]) - 8)
    assert before <= result.samples <= before + (data // 150 + 1) * PER_FRAME
    assert result.skipped_packets == 0
