"""Readable subtitles from a transcript: SRT, WebVTT, and plain text.

Line and cue limits follow broadcast habit: at most 2 lines of 42 characters, 1 to 7 seconds a cue, no overlap
(BBC Subtitle Guidelines; Netflix Timed Text Style Guide).
"""

import io
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass

import webvtt

from shared.transcript import Segment, Transcript

LINE_CHARS = 42
LINES = 2
MIN_SECONDS = 1.0
MAX_SECONDS = 7.0
PAUSE_SECONDS = 1.0  # a silence longer than this ends a cue
SENTENCE_CHARS = 25  # a sentence's end ends a cue that holds at least this much
SENTENCE_ENDS = (".", "?", "!", "。", "？", "！")


@dataclass(frozen=True)
class Cue:
    start: float
    end: float
    lines: tuple[str, ...]


@dataclass(frozen=True)
class _Piece:
    """A word as it stands in its segment's text, separators in front included."""

    text: str
    start: float
    end: float


def render(transcript: Transcript, extension: str) -> tuple[bytes, str]:
    """The transcript as "srt", "vtt" or "txt": its bytes and their content type."""
    if extension == "txt":
        return (transcript.text + "\n").encode(), "text/plain; charset=utf-8"
    buffer = io.StringIO()
    captions = [
        webvtt.Caption(_clock(cue.start), _clock(cue.end), _escape(cue.lines) if extension == "vtt" else cue.lines)
        for cue in cues(transcript.segments)
    ]
    webvtt.WebVTT(captions=captions).write(buffer, format=extension)
    content_type = "text/vtt; charset=utf-8" if extension == "vtt" else "application/x-subrip; charset=utf-8"
    return buffer.getvalue().encode(), content_type


def cues(segments: tuple[Segment, ...]) -> list[Cue]:
    """Cut segments into cues, at pauses and sentence ends where possible."""
    groups = list(_groups([piece for segment in segments for piece in _pieces(segment)]))
    result = []
    for number, group in enumerate(groups):
        next_start = groups[number + 1][0].start if number + 1 < len(groups) else float("inf")
        end = max(group[-1].end, group[0].start + MIN_SECONDS)
        end = min(end, group[0].start + MAX_SECONDS, max(next_start, group[0].start))
        result.append(Cue(group[0].start, end, tuple(_wrap(group))))
    return result


def _pieces(segment: Segment) -> Iterator[_Piece]:
    """The segment's words with its own spacing, so that languages without spaces stay without."""
    position = 0
    for word in segment.words:
        found = segment.text.find(word.word, position)
        if found < 0:
            yield _Piece(" " + word.word, word.start, word.end)
            continue
        lead = segment.text[position:found] if position else " "
        position = found + len(word.word)
        yield _Piece(lead + word.word, word.start, word.end)
    if not segment.words and segment.text.strip():
        yield from _spread(segment)


def _spread(segment: Segment) -> Iterator[_Piece]:
    """Words of a segment without word times, spread over its span by their length."""
    words = segment.text.split()
    per_char = (segment.end - segment.start) / sum(len(word) for word in words)
    start = segment.start
    for word in words:
        end = start + len(word) * per_char
        yield _Piece(" " + word, start, end)
        start = end


def _groups(pieces: list[_Piece]) -> Iterator[list[_Piece]]:
    group: list[_Piece] = []
    for piece in pieces:
        if group and _ends_before(group, piece):
            yield group
            group = []
        group.append(piece)
    if group:
        yield group


def _ends_before(group: list[_Piece], piece: _Piece) -> bool:
    text = _text(group)
    return (
        len(_wrap([*group, piece])) > LINES
        or piece.end - group[0].start > MAX_SECONDS
        or piece.start - group[-1].end > PAUSE_SECONDS
        or (text.endswith(SENTENCE_ENDS) and len(text) >= SENTENCE_CHARS)
    )


def _text(group: list[_Piece]) -> str:
    return "".join(piece.text for piece in group).strip()


def _wrap(group: list[_Piece]) -> list[str]:
    return textwrap.wrap(_text(group), LINE_CHARS) or [""]


def _clock(seconds: float) -> str:
    milliseconds = round(seconds * 1000)
    minutes, milliseconds = divmod(milliseconds, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}:{minutes:02}:{milliseconds // 1000:02}.{milliseconds % 1000:03}"


def _escape(lines: tuple[str, ...]) -> list[str]:
    """WebVTT cue text is markup: https://www.w3.org/TR/webvtt1/#webvtt-cue-text"""
    return [line.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;") for line in lines]
