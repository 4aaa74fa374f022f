"""The session transcript is a pure function of its chunks."""

import random
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.jobs import Job
from shared.keys import ChunkKey, Session
from shared.sessions import MAX_JOINED_SECONDS, ChunkOutcome, combine_chunks, seconds_by_route
from shared.subtitles import render
from shared.transcript import ErrorRecord, Gap, ObjectRef, SessionRef, Transcript, read_transcript
from tests.fakes import EPOCH, transcript_for

SESSION = Session("u", "s")


def outcome(index: int, result: Transcript | ErrorRecord) -> ChunkOutcome:
    key = ChunkKey(SESSION, str(index), "webm")
    return ChunkOutcome(
        index=index, key=key.key, etag=f"e{index}", outcome_key=key.output_key, outcome_etag=f"o{index}", result=result
    )


def transcribed(index: int, text: str = "hello there", duration: float = 5.0) -> ChunkOutcome:
    job = Job(bucket="audio-bucket", key=f"users/u/audio/sessions/s/chunk-{index}.webm", etag=f"e{index}")
    return outcome(index, transcript_for(job, text, duration))


def stitched(index: int, text: str, **changes: object) -> ChunkOutcome:
    """A chunk that is spoken in to its very end, unless `changes` to its segment say otherwise."""
    result = transcribed(index, text, duration=max(len(text.split()) - 0.5, 0.5)).result
    assert isinstance(result, Transcript)
    segments = tuple(segment.model_copy(update=changes) for segment in result.segments)
    return outcome(index, result.model_copy(update={"segments": segments, "pass_": "stitched"}))


def failed(index: int, duration: float | None = None) -> ChunkOutcome:
    source = ObjectRef(bucket="audio-bucket", key="k", etag="e")
    record = ErrorRecord(
        type="media-no-audio", message="no sound", source=source, attempts=1, duration=duration, created_at=EPOCH
    )
    return outcome(index, record)


def combined(chunks: list[ChunkOutcome]) -> Transcript:
    return combine_chunks(SESSION, bucket="audio-bucket", manifest_etag="m", chunks=chunks)


def any_chunk(index: int, text: str, duration: float, kind: str) -> ChunkOutcome:
    match kind:
        case "failed":
            return failed(index, duration)
        case "stitched":
            return stitched(index, text)
    return transcribed(index, text, duration)


chunk_lists = st.lists(
    st.tuples(
        st.sampled_from(["", "hello", "one two three.", "a b c d e f g"]),
        st.floats(0, 30),
        st.sampled_from(["live", "stitched", "stitched", "failed"]),
    ),
    min_size=1,
    max_size=12,
).map(lambda items: [any_chunk(number, *item) for number, item in enumerate(items, 1)])


@given(chunk_lists)
def test_times_never_go_back_and_words_are_neither_lost_nor_made(chunks: list[ChunkOutcome]) -> None:
    session = combined(chunks)
    times = [time for segment in session.segments for time in (segment.start, segment.end)]
    assert times == sorted(times)
    assert all(0 <= time <= session.duration for time in times)
    words = [word.word for segment in session.segments for word in segment.words]
    texts = [chunk.result.text for chunk in chunks if isinstance(chunk.result, Transcript)]
    assert words == " ".join(texts).split() == session.text.split()
    assert words == " ".join(segment.text for segment in session.segments).split()
    for segment in session.segments:
        times = [time for word in segment.words for time in (word.start, word.end)]
        assert times == sorted(times)
        assert all(segment.start <= time <= segment.end for time in times)
        assert segment.end - segment.start <= MAX_JOINED_SECONDS
    assert [segment.id for segment in session.segments] == list(range(len(session.segments)))


@given(chunk_lists)
def test_the_same_chunks_give_the_same_bytes(chunks: list[ChunkOutcome]) -> None:
    assert combined(chunks).to_json() == combined(list(chunks)).to_json()


@given(chunk_lists)
def test_every_second_is_a_chunks(chunks: list[ChunkOutcome]) -> None:
    session = combined(chunks)
    assert isinstance(session.source, SessionRef)
    position = 0.0
    for ref in session.source.chunks:
        assert abs(ref.start - position) < 0.001 * len(chunks) + 1e-6
        position = ref.start + ref.duration
    assert abs(position - session.duration) < 0.002


def test_one_chunks_absurd_numbers_leave_the_session_readable() -> None:
    wrong = transcribed(1, duration=1e13)
    assert isinstance(wrong.result, Transcript)
    gap = Gap(start=0, end=1e13, reason="truncated")
    session = combined([replace(wrong, result=wrong.result.model_copy(update={"gaps": (gap,)})), failed(2, 1e13)])
    assert read_transcript(session.to_json()) == session
    assert render(session, "srt")
    assert session.gaps[0].end <= session.duration


def test_a_silent_chunk_takes_its_time() -> None:
    session = combined([transcribed(1), transcribed(2, ""), transcribed(3)])
    assert [segment.start for segment in session.segments] == [0.0, 10.0]
    assert session.duration == 15.0


def test_a_failed_chunk_is_a_gap_of_its_siblings_usual_length() -> None:
    session = combined([transcribed(1, duration=4), failed(2), transcribed(3, duration=4), transcribed(4, duration=1)])
    assert [(gap.start, gap.end) for gap in session.gaps] == [(4.0, 8.0)]
    assert "media-no-audio" in session.gaps[0].reason
    assert isinstance(session.source, SessionRef)
    assert [chunk.status for chunk in session.source.chunks] == ["transcribed", "failed", "transcribed", "transcribed"]


def test_a_failed_chunk_whose_length_is_known_keeps_it() -> None:
    assert combined([failed(1, 3.25), transcribed(2)]).duration == 8.25


def test_a_session_of_failures_is_still_a_session() -> None:
    session = combined([failed(1), failed(2)])
    assert (session.text, session.language, session.duration) == ("", None, 10.0)


def test_a_sentence_that_was_heard_whole_reads_as_if_never_cut() -> None:
    chunks = [stitched(1, "It was the best"), stitched(2, "of times it was"), stitched(3, "the worst. Of times.")]
    session = combined(chunks)
    [segment] = session.segments
    assert segment.text == session.text == "It was the best of times it was the worst. Of times."
    assert (segment.start, segment.end) == (0.0, session.duration)
    assert [word.word for word in segment.words] == segment.text.split()
    assert isinstance(session.source, SessionRef)
    assert [ref.start for ref in session.source.chunks] == [0.0, 3.5, 7.0]


@pytest.mark.parametrize(
    "chunks",
    [
        [transcribed(1, "cut here", 1.5), transcribed(2, "and there")],
        [transcribed(1, "cut here", 1.5), stitched(2, "and there")],
        [stitched(1, "cut here"), transcribed(2, "and there")],
        [stitched(1, "A sentence."), stitched(2, "and another")],
        [stitched(1, "“A sentence.”"), stitched(2, "and another")],
        [stitched(1, "a pause"), stitched(2, "of more", start=1.01)],
        [stitched(1, "one speaker", speaker="A"), stitched(2, "and another", speaker="B")],
        [stitched(1, "cut here"), failed(2, 0.1), stitched(3, "and there")],
        [stitched(1, "word" + 29 * " word"), stitched(2, "word and word")],
    ],
)
def test_what_is_no_continuation_stays_a_segment_of_its_own(chunks: list[ChunkOutcome]) -> None:
    assert len(combined(chunks).segments) == 2


def test_a_silence_of_a_moment_does_not_end_a_sentence() -> None:
    session = combined([stitched(1, "cut here"), stitched(2, ""), stitched(3, "and there")])
    assert [segment.text for segment in session.segments] == ["cut here and there"]


def test_a_joined_segment_is_as_sure_as_its_less_sure_part() -> None:
    first = stitched(1, "cut here", avg_logprob=-0.1, no_speech_prob=0.2, speaker="A")
    second = stitched(2, "and there", avg_logprob=-0.3, no_speech_prob=0.1, speaker="A")
    [segment] = combined([first, second]).segments
    assert (segment.avg_logprob, segment.no_speech_prob, segment.speaker) == (-0.3, 0.2, "A")


def test_a_language_without_spaces_gets_none_at_a_seam() -> None:
    chunks = [stitched(number, text) for number, text in enumerate(["今日は天気が", "いいですね。", "はい。"], 1)]
    chunks = [replace(chunk, result=chunk.result.model_copy(update={"language": "ja"})) for chunk in chunks]
    session = combined(chunks)
    assert [segment.text for segment in session.segments] == ["今日は天気がいいですね。", "はい。"]
    assert session.text == "今日は天気がいいですね。 はい。"


def test_seconds_are_counted_by_route() -> None:
    chunks = [transcribed(number) for number in range(1, 4)]
    random.shuffle(chunks)
    assert seconds_by_route(chunks) == {"direct": 15.0}
