"""Windows: everything that is speech is in one, none is too long, and the order is that of the audio."""

import itertools
from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from gpu_server.engines import FRAME_RATE, FULL_FRAMES, LONGEST_SECONDS, SAMPLE_RATE, SHORT_FRAMES, Audio, Span
from gpu_server.track import Track, join, whole
from gpu_server.windows import (
    LONGEST,
    LONGEST_SILENCE,
    MARGIN_FRAMES,
    SHORT_MARGIN_FRAMES,
    merge,
    padded_frames,
    speech_windows,
)

SECOND = SAMPLE_RATE


def spans(*seconds: tuple[float, float]) -> list[Span]:
    return [Span(round(start * SECOND), round(end * SECOND)) for start, end in seconds]


SPEECH = st.lists(st.tuples(st.floats(0.1, 6), st.floats(0.1, LONGEST_SECONDS)), max_size=20).map(
    lambda pairs: [
        Span(round((at + gap) * SECOND), round((at + gap + length) * SECOND))
        for at, gap, length in zip(
            np.cumsum([0.0, *(gap + length for gap, length in pairs)]).tolist(),
            *([list(column) for column in zip(*pairs, strict=True)] or [[], []]),
            strict=False,
        )
    ]
)


@given(SPEECH)
def test_all_speech_is_in_a_window_and_no_window_is_too_long(speech: list[Span]) -> None:
    windows = list(merge(speech))
    assert all(len(window) <= LONGEST for window in windows)
    assert all(before.end <= after.start for before, after in itertools.pairwise(windows))
    for span in speech:
        assert sum(window.start <= span.start and span.end <= window.end for window in windows) == 1


@given(SPEECH)
def test_a_window_begins_and_ends_with_speech_and_has_no_long_silence(speech: list[Span]) -> None:
    for window in merge(speech):
        inside = [span for span in speech if window.start <= span.start < window.end]
        assert (inside[0].start, inside[-1].end) == (window.start, window.end)
        assert all(b.start - a.end <= LONGEST_SILENCE for a, b in itertools.pairwise(inside))


def test_neighbouring_speech_fills_a_window_and_is_cut_at_the_longest_pause_of_its_second_half() -> None:
    speech = spans((0, 6), (8, 12), (12.2, 15), (15.8, 19), (19.3, 21), (21.4, 25))
    assert list(merge(speech)) == spans((0, 15), (15.8, 25))
    assert list(merge(spans((0, 21), (21.2, 40)))) == spans((0, 21), (21.2, 40))


@given(st.integers(0, 30 * SECOND))
def test_a_window_is_padded_by_a_margin_and_never_beyond_what_whisper_knows(samples: int) -> None:
    frames = padded_frames(samples)
    margin = frames - samples * FRAME_RATE // SECOND
    if frames <= SHORT_FRAMES:
        assert margin >= SHORT_MARGIN_FRAMES
    else:
        assert frames == FULL_FRAMES or (frames < FULL_FRAMES and margin >= MARGIN_FRAMES)


def loud(audio: Audio) -> list[Span]:
    """A detector: what is not silent is speech."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], (np.abs(audio) > 0.1).astype(int), [0]])))
    return [Span(int(start), int(end)) for start, end in zip(edges[::2], edges[1::2], strict=True)]


def track_with(folder: Path, speech: list[Span], samples: int) -> Track:
    pcm = np.zeros(samples, dtype="<i2")
    for span in speech:
        pcm[span.start : span.end] = 8000
    path = folder / f"{samples}.pcm"
    pcm.tofile(path)
    return whole(path)


def test_blocks_cut_no_speech(tmp_path: Path) -> None:
    speech = spans((1, 9), (18, 23), (24, 26), (39.5, 40.5), (55, 60))
    track = track_with(tmp_path, speech, 61 * SECOND)
    in_one = list(speech_windows(track, loud, block=100 * SECOND))
    assert list(speech_windows(track, loud, block=20 * SECOND)) == in_one
    assert all(any(w.start <= s.start and s.end <= w.end for w in in_one) for s in speech)


def test_speech_without_end_is_cut_at_the_block(tmp_path: Path) -> None:
    track = track_with(tmp_path, spans((0, 65)), 65 * SECOND)
    found = list(speech_windows(track, loud, block=20 * SECOND))
    assert found == spans((0, 20), (20, 40), (40, 60), (60, 65))


def test_no_window_goes_across_missing_audio(tmp_path: Path) -> None:
    parts = []
    for number, seconds in enumerate((5, 5, 4)):
        np.full(seconds * SECOND, 8000, dtype="<i2").tofile(tmp_path / str(number))
        parts.append(tmp_path / str(number))
    track = join(tmp_path / "track", parts, breaks=[2])
    assert track.pieces == tuple(spans((0, 5), (5, 10), (10, 14)))
    assert list(speech_windows(track, loud)) == spans((0, 10), (10, 14))
    assert list(speech_windows(join(tmp_path / "track", parts), loud)) == spans((0, 14))


def test_a_track_is_read_where_it_is_asked(tmp_path: Path) -> None:
    np.arange(-4, 4, dtype="<i2").tofile(tmp_path / "pcm")
    track = whole(tmp_path / "pcm")
    assert track.read(Span(2, 5)).tolist() == [-2 / 32768, -1 / 32768, 0.0]
    assert track.duration == 8 / SECOND
