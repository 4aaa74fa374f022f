"""Ogg pages: where recordings may be cut, and what is put together from the pieces."""

from pathlib import Path

import pytest

from gpu_server import ogg
from gpu_server.decoding import Decoded, Limits, decode
from tests.gpu_server import media

WHOLE = media.ogg_recording(4.0)
PAGES = media.pages(WHOLE)
FIRST_AUDIO = PAGES[2]  # behind OpusHead and OpusTags


def decoded(body: bytes, folder: Path) -> Decoded:
    (folder / "audio").write_bytes(body)
    return decode(folder / "audio", folder / "pcm", limits=Limits())


def header(whole: bytes = WHOLE) -> bytes:
    found = ogg.header_of(whole)
    assert found is not None
    return found


def test_the_header_holds_no_audio_and_skips_none(tmp_path: Path) -> None:
    assert decoded(header(), tmp_path).reason == "header-only"
    assert len(header()) == FIRST_AUDIO
    pre_skip = 104  # samples at 16 kHz
    assert decoded(header() + WHOLE[FIRST_AUDIO:], tmp_path).samples == decoded(WHOLE, tmp_path).samples + pre_skip


@pytest.mark.parametrize("size", [0, 4, 40, 47, 80, FIRST_AUDIO - 1])
def test_a_cut_header_is_none(size: int) -> None:
    assert ogg.header_of(WHOLE[:size]) is None


def test_of_other_codecs_there_is_no_header() -> None:
    assert ogg.header_of(media.encode(media.tone(1.0), container="ogg", codec="flac")) is None


def test_tags_may_take_many_pages(tmp_path: Path) -> None:
    fixed = WHOLE[PAGES[1] : PAGES[1] + 26]
    tags = WHOLE[PAGES[1] + 28 : FIRST_AUDIO].ljust(300 * 255 + 10, b"\0")
    first = ogg._signed(fixed + b"\xff" + b"\xff" * 255 + tags[: 255 * 255])
    rest = ogg._signed(fixed[:5] + b"\1" + fixed[6:] + b"\x2e" + b"\xff" * 45 + b"\x0a" + tags[255 * 255 :])
    found = header(WHOLE[: PAGES[1]] + first + rest + WHOLE[FIRST_AUDIO:])
    assert found.endswith(first + rest)
    assert decoded(found + WHOLE[PAGES[5] :], tmp_path).samples > 0


def test_only_pages_other_than_a_streams_first_are_continuations() -> None:
    assert not ogg.is_continuation(WHOLE)
    assert not ogg.is_continuation(WHOLE[:6])
    assert not ogg.is_continuation(b"OggS")
    for start in (FIRST_AUDIO, FIRST_AUDIO + 1, PAGES[5] + 3, PAGES[-1]):
        assert ogg.is_continuation(WHOLE[start:])
    assert ogg.is_continuation(WHOLE[PAGES[5] :][:40])  # less than a page


def test_letters_like_a_pages_within_audio_are_no_page() -> None:
    start, end = PAGES[4], PAGES[5]
    fake = WHOLE[start + 100 : start + 300] + b"OggS\0\0" + bytes(20) + b"\x01\x10" + bytes(16)
    assert not ogg.is_continuation(fake)
    assert ogg.is_cut(fake + WHOLE[end:])
    assert ogg.cut_element(fake + WHOLE[end : end + 2000]) == ogg.cut_element(WHOLE[end : end + 2000])


@pytest.mark.parametrize("distance", [1, 3, 5, 6, 20, 27, 30, 500])
def test_the_cut_page_is_found_from_its_first_byte(distance: int) -> None:
    for chunk in (WHOLE[: PAGES[6] + distance], WHOLE[PAGES[3] + 40 : PAGES[6] + distance]):
        assert ogg.cut_element(chunk) == WHOLE[PAGES[6] : PAGES[6] + distance]
    assert ogg.is_cut(WHOLE[PAGES[6] + distance :])


def test_a_chunk_that_ends_with_a_page_leaves_nothing() -> None:
    assert ogg.cut_element(WHOLE[: PAGES[6]]) == b""
    assert not ogg.is_cut(WHOLE[PAGES[6] :])


def test_a_damaged_page_loses_only_itself(tmp_path: Path) -> None:
    damaged = bytearray(WHOLE)
    damaged[PAGES[4] + 200] ^= 1
    assert ogg.cut_element(bytes(damaged[: PAGES[6] + 50])) == WHOLE[PAGES[6] : PAGES[6] + 50]
    whole, rest = decoded(WHOLE, tmp_path).samples, decoded(bytes(damaged), tmp_path).samples
    assert 0 < whole - rest <= 3200


@pytest.mark.parametrize("page", [3, 4, 5])
@pytest.mark.parametrize("distance", [0, 10, 5000])
def test_a_packet_that_goes_on_in_the_next_page_is_lost_by_no_cut(page: int, distance: int, tmp_path: Path) -> None:
    whole = media.ogg_with_open_pages()
    border = media.pages(whole)[page] + distance
    first, second = whole[:border], whole[border:]
    assert ogg.is_cut(second) == (distance > 0 or page != 4)  # the fourth page begins with a packet of its own
    grafted = ogg.graft(header(whole), ogg.cut_element(first), second)
    total = decoded(first, tmp_path).samples + decoded(grafted, tmp_path).samples
    assert total == decoded(whole, tmp_path).samples


def test_a_last_chunk_of_one_page_is_longer_by_less_than_a_packet(tmp_path: Path) -> None:
    first, second = WHOLE[: PAGES[-1]], WHOLE[PAGES[-1] :]
    total = decoded(first, tmp_path).samples + decoded(ogg.graft(header(), b"", second), tmp_path).samples
    assert 0 <= total - decoded(WHOLE, tmp_path).samples < 320
