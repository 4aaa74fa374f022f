"""Subtitles that a person can read, and that players accept."""

import io
import itertools

import webvtt
from hypothesis import given
from hypothesis import strategies as st

from shared.jobs import Job
from shared.subtitles import LINE_CHARS, LINES, MAX_SECONDS, cues, render
from shared.transcript import Segment, Transcript, Word
from tests.fakes import transcript_for

JOB = Job(bucket="audio-bucket", key="a.mp3", etag="e")
texts = st.lists(st.text(st.characters(categories=("L", "P", "Nd")), min_size=1, max_size=12), min_size=1, max_size=60)


def spoken(words: list[str], pace: float = 0.4, start: float = 0.0) -> Segment:
    spans = [(start + number * pace, start + (number + 0.9) * pace) for number in range(len(words))]
    return Segment(
        id=0,
        start=spans[0][0],
        end=spans[-1][1],
        text=" ".join(words),
        words=tuple(Word(word=word, start=a, end=b) for word, (a, b) in zip(words, spans, strict=True)),
    )


@given(texts, st.floats(0.05, 3))
def test_cues_are_short_enough_to_read_and_never_overlap(words: list[str], pace: float) -> None:
    result = cues((spoken(words, pace),))
    for cue in result:
        assert len(cue.lines) <= LINES
        assert all(len(line) <= LINE_CHARS for line in cue.lines)
        assert 0 <= cue.end - cue.start <= MAX_SECONDS + 1e-6
    for one, following in itertools.pairwise(result):
        assert one.end <= following.start + 1e-6
    assert "".join("".join(cue.lines) for cue in result).replace(" ", "") == "".join(words).replace(" ", "")


def test_a_pause_and_a_sentence_end_begin_a_new_cue() -> None:
    first = spoken(["This", "is", "the", "first", "sentence", "here."])
    second = spoken(["And", "the", "next."], start=2.5)
    third = spoken(["After", "a", "pause."], start=9.0)
    assert [" ".join(cue.lines) for cue in cues((first, second, third))] == [
        "This is the first sentence here.",
        "And the next.",
        "After a pause.",
    ]


def test_languages_without_spaces_stay_without() -> None:
    words = (Word(word="你好", start=0, end=1), Word(word="世界", start=1, end=2))
    segment = Segment(id=0, start=0, end=2, text="你好世界", words=words)
    assert cues((segment,))[0].lines == ("你好世界",)


def test_a_segment_without_word_times_is_spread_over_its_span() -> None:
    segment = Segment(id=0, start=0, end=20, text=" ".join(["word"] * 40))
    result = cues((segment,))
    assert len(result) > 2
    assert result[-1].end == 20


def test_what_a_player_reads_is_what_was_said() -> None:
    transcript = transcript_for(JOB, "Tom & <Jerry> --> gone")
    for extension in ("srt", "vtt"):
        body, content_type = render(transcript, extension)
        captions = webvtt.from_buffer(io.StringIO(body.decode()), format=extension)
        assert len(captions) == 1
        assert content_type.endswith("utf-8")
    vtt = render(transcript, "vtt")[0].decode()
    assert vtt.startswith("WEBVTT")
    assert "Tom &amp; &lt;Jerry&gt; --&gt; gone" in vtt
    assert render(transcript, "txt")[0] == b"Tom & <Jerry> --> gone\n"


def test_an_empty_transcript_renders_to_valid_files() -> None:
    empty: Transcript = transcript_for(JOB, "")
    assert render(empty, "vtt")[0].decode().startswith("WEBVTT")
    assert render(empty, "srt")[0] == b""


def test_times_over_an_hour_are_written_in_full() -> None:
    segment = spoken(["late"], start=3725.5)
    body, _ = render(transcript_for(JOB).model_copy(update={"segments": (segment,)}), "srt")
    assert "01:02:05,500 --> " in body.decode()
