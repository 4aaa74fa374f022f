"""The bench's recordings."""

from pathlib import Path

import numpy as np
import pytest

from bench.speech import Clip, Recording, choose, cut, decode, encode, interleave, make_long, repeat, shared_clips


def clip(seconds: float) -> Clip:
    return Clip(Path("x"), seconds, "x")


def recording(id: str, seconds: float, chunks: int) -> Recording:
    return Recording(id, "words", seconds, Path("whole.opus"), tuple(Path(f"{n}") for n in range(chunks)))


def test_a_recording_is_cut_every_five_seconds() -> None:
    assert [len(part) for part in cut(np.zeros(1200, np.int16), rate=100)] == [500, 500, 200]


def test_a_short_rest_stays_with_the_last_chunk() -> None:
    assert [len(part) for part in cut(np.zeros(1049, np.int16), rate=100)] == [500, 549]
    assert [len(part) for part in cut(np.zeros(30, np.int16), rate=100)] == [30]


def test_a_limit_takes_from_all_recordings_and_leaves_no_holes() -> None:
    clips = {"a": [clip(10), clip(10), clip(1)], "b": [clip(5), clip(30), clip(1)], "c": [clip(100)]}
    chosen = choose(clips, 30)
    assert {id: len(parts) for id, parts in chosen.items()} == {"a": 3, "b": 1}


def test_a_limit_nothing_fits_into_is_an_error() -> None:
    with pytest.raises(ValueError, match="no recording fits into 5 seconds"):
        choose({"a": [clip(10)]}, 5)


def test_more_than_there_is_comes_again_under_new_ids() -> None:
    again = list(repeat([recording("a", 40, 8), recording("b", 20, 4)], seconds=150))
    assert [one.id for one in again] == ["a", "b", "a-2", "b-2"]
    assert [one.id for one in repeat([recording("a", 40, 8)], seconds=0)] == ["a"]


def test_chunks_come_as_if_all_recordings_were_made_at_once() -> None:
    assert interleave([recording("a", 1, 3), recording("b", 1, 1)]) == [(0, 0), (1, 0), (0, 1), (0, 2)]


def test_the_manifest_names_clips_and_words(tmp_path: Path) -> None:
    (tmp_path / "manifest.tsv").write_text(
        'file\tseconds\treference transcript\nlj_2.mp3\t2.5\tthe "second\nlj_1.mp3\t1.5\tfirst\nmusic.wav\t9\tnone\n'
    )
    assert [part.text for part in shared_clips(tmp_path)["lj"]] == ["first", 'the "second']


def test_what_is_written_can_be_heard_again(tmp_path: Path) -> None:
    tone = (8000 * np.sin(np.arange(48_000 * 2) / 20)).astype(np.int16)
    for name in ("a.webm", "a.opus"):
        encode(tone, tmp_path / name)
        assert abs(len(decode(tmp_path / name, rate=16_000)) - 32_000) < 640


def test_a_long_file_repeats_packets_without_encoding_again(tmp_path: Path) -> None:
    tone = (8000 * np.sin(np.arange(48_000 * 2 + 700) / 20)).astype(np.int16)  # its last packet is shortened
    encode(tone, tmp_path / "a.opus")
    source = Recording("a", "", 2, tmp_path / "a.opus", ())
    make_long([source], tmp_path / "long.opus", seconds=11)
    assert len(decode(tmp_path / "long.opus", rate=16_000)) / 16_000 == pytest.approx(11, abs=0.1)
