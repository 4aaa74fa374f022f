"""The session transcript is a pure function of its chunks."""

import random

from hypothesis import given
from hypothesis import strategies as st

from shared.jobs import Job
from shared.keys import ChunkKey, Session
from shared.sessions import ChunkOutcome, combine_chunks, seconds_by_route
from shared.transcript import ErrorRecord, ObjectRef, SessionRef, Transcript
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


def failed(index: int, duration: float | None = None) -> ChunkOutcome:
    source = ObjectRef(bucket="audio-bucket", key="k", etag="e")
    record = ErrorRecord(
        type="media-no-audio", message="no sound", source=source, attempts=1, duration=duration, created_at=EPOCH
    )
    return outcome(index, record)


def combined(chunks: list[ChunkOutcome]) -> Transcript:
    return combine_chunks(SESSION, bucket="audio-bucket", manifest_etag="m", chunks=chunks)


chunk_lists = st.lists(
    st.tuples(st.sampled_from(["", "hello", "one two three", "a b c d e f g"]), st.floats(0, 30), st.booleans()),
    min_size=1,
    max_size=12,
).map(lambda items: [transcribed(n, text, d) if ok else failed(n, d) for n, (text, d, ok) in enumerate(items, 1)])


@given(chunk_lists)
def test_times_never_go_back_and_words_are_neither_lost_nor_made(chunks: list[ChunkOutcome]) -> None:
    session = combined(chunks)
    times = [time for segment in session.segments for time in (segment.start, segment.end)]
    assert times == sorted(times)
    assert all(0 <= time <= session.duration for time in times)
    words = [word.word for segment in session.segments for word in segment.words]
    texts = [chunk.result.text for chunk in chunks if isinstance(chunk.result, Transcript)]
    assert words == " ".join(texts).split() == session.text.split()
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


def test_seconds_are_counted_by_route() -> None:
    chunks = [transcribed(number) for number in range(1, 4)]
    random.shuffle(chunks)
    assert seconds_by_route(chunks) == {"direct": 15.0}
