"""The transcript's JSON: what is written can be read, by us and by readers of WhisperX's and OpenAI's shapes."""

import json

from hypothesis import given
from hypothesis import strategies as st

from shared.jobs import Job
from shared.transcript import ErrorRecord, ObjectRef, Segment, Transcript, Word, read_error_record, read_transcript
from tests.fakes import EPOCH, transcript_for

JOB = Job(bucket="audio-bucket", key="a.mp3", etag="e")

seconds = st.floats(0, 1e5).map(lambda value: round(value, 3))
words = st.builds(Word, word=st.text(), start=seconds, end=seconds, score=st.none() | st.floats(0, 1))
segments = st.builds(
    Segment, id=st.integers(0), start=seconds, end=seconds, text=st.text(), words=st.lists(words).map(tuple)
)
sources = st.none() | st.builds(ObjectRef, bucket=st.just("b"), key=st.text(), etag=st.text())
transcripts = st.builds(
    Transcript,
    text=st.text(),
    language=st.none() | st.just("en"),
    duration=seconds,
    segments=st.lists(segments, max_size=3).map(tuple),
    source=sources,
    model=st.just("tiny.en"),
    engine=st.just("whisperx"),
    created_at=st.just(EPOCH),
    reason=st.none() | st.just("no-speech"),
    pass_=st.sampled_from([None, "live", "stitched"]),
)


@given(transcripts)
def test_every_transcript_that_is_written_can_be_read(transcript: Transcript) -> None:
    assert read_transcript(transcript.to_json()) == transcript


def test_the_pass_is_called_pass_in_json_and_absent_where_there_is_none() -> None:
    transcript = Transcript(text="", duration=1, segments=(), model="m", engine="e", created_at=EPOCH, pass_="stitched")
    assert json.loads(transcript.to_json())["pass"] == "stitched"
    assert "pass_" not in json.loads(transcript.to_json())
    assert "pass" not in json.loads(transcript.model_copy(update={"pass_": None}).to_json())


def test_every_error_record_that_is_written_can_be_read() -> None:
    source = ObjectRef(bucket="b", key="k", etag="e")
    record = ErrorRecord(type="t", message="m", source=source, attempts=1, created_at=EPOCH)
    assert read_error_record(record.to_json()) == record


def test_times_are_written_to_the_millisecond_and_fields_of_others_are_kept() -> None:
    body = b'{"version":1,"text":"a","duration":1.23456,"segments":[],"model":"m","engine":"e",'
    transcript = read_transcript(body + b'"created_at":"2026-01-01T00:00:00Z","theirs":[1]}')
    assert transcript is not None
    document = json.loads(transcript.to_json())
    assert (document["duration"], document["theirs"]) == (1.235, [1])


def test_a_time_no_clock_can_show_is_not_read() -> None:
    body = transcript_for(JOB).to_json()
    for wrong in (b"1e999", b"-1", b"NaN", b"1e14"):
        assert read_transcript(body.replace(b'"duration":5.0', b'"duration":' + wrong)) is None
        assert read_transcript(body.replace(b'"start":0.0', b'"start":' + wrong)) is None


def test_a_date_without_a_zone_is_of_utc() -> None:
    body = transcript_for(JOB).to_json().replace(b"2026-01-01T00:00:00Z", b"2026-01-01T00:00:00")
    read = read_transcript(body)
    assert read is not None
    assert read.created_at == EPOCH


def test_what_cannot_be_read_is_none() -> None:
    for body in (b"", b"{", b"[]", b'{"version":2}', b"\xff"):
        assert read_transcript(body) is None
        assert read_error_record(body) is None
