"""Events and the envelopes that queues wrap them in."""

from typing import Any
from urllib.parse import quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from shared.errors import BadEvent, BadMessage, RefusedKey
from shared.events import NotAnUpload, Upload, Wake, parse_letter, parse_upload, unwrap_events
from shared.jobs import Job, JobMessage, Options, Reason

keys = st.text(st.characters(exclude_categories=("Cs",)), min_size=1, max_size=100)


def s3_event(key: str, **fields: Any) -> dict[str, Any]:
    return {
        "source": "aws.s3",
        "detail-type": "Object Created",
        "detail": {"bucket": {"name": "audio-bucket"}, "object": {"key": key, "etag": "e1", "size": 7, **fields}},
    }


def notification(key: str) -> dict[str, Any]:
    obj = {"key": quote_plus(key), "eTag": "e1", "size": 7}
    return {"eventName": "ObjectCreated:Put", "s3": {"bucket": {"name": "audio-bucket"}, "object": obj}}


@given(keys)
def test_every_envelope_gives_the_key_as_it_was_uploaded(key: str) -> None:
    app = {"s3_bucket": "audio-bucket", "s3_key": key}
    located = {"s3Location": {"bucket": "audio-bucket", "key": key}}
    wrapped = {"source": "audio.upload", "detail-type": "Audio Uploaded", "detail": located}
    for event in (s3_event(key), notification(key), app, wrapped):
        upload = parse_upload(event)
        assert isinstance(upload, Upload)
        assert upload.key == key


def test_an_s3_event_brings_etag_size_and_version() -> None:
    upload = parse_upload(s3_event("a.mp3", **{"version-id": "v1", "etag": '"e1"'}))
    assert upload == Upload("audio-bucket", "a.mp3", "e1", 7, "v1")


def test_an_application_event_may_ask_for_the_batch_and_a_language() -> None:
    upload = parse_upload({"s3_bucket": "audio-bucket", "s3_key": "a.mp3", "force_batch": True, "language": "de"})
    assert isinstance(upload, Upload)
    assert upload.force_batch
    assert upload.options.language == "de"


@pytest.mark.parametrize(("given", "meant"), [("en-US", "en"), (" DE_at", "de"), ("en -US", "en"), ("-", None)])
def test_a_language_is_its_code_without_a_region(given: str, meant: str | None) -> None:
    once = Options(language=given)
    assert once.language == meant
    assert Options(language=once.language) == once


@pytest.mark.parametrize(
    "event",
    [
        {"Event": "s3:TestEvent"},
        {"source": "aws.s3", "detail-type": "Object Deleted", "detail": {}},
        {"source": "someone.else", "detail-type": "Whatever", "detail": {}},
        {"source": ["aws.s3"], "detail-type": {}},
        {"source": "audio.upload", "detail-type": []},
    ],
)
def test_events_that_are_not_uploads_are_left_alone(event: dict[str, Any]) -> None:
    assert isinstance(parse_upload(event), NotAnUpload)


@pytest.mark.parametrize(
    "event",
    [
        None,
        "text",
        {},
        {"source": "aws.s3", "detail-type": "Object Created", "detail": None},
        {"source": "aws.s3", "detail-type": "Object Created", "detail": {"bucket": {}, "object": {}}},
        {"source": "audio.upload", "detail-type": "Audio Uploaded", "detail": {"s3Location": {"bucket": "b" * 3}}},
        {"source": "audio.upload", "detail-type": "Audio Uploaded", "detail": {}},
        {"s3_key": "a.mp3"},
        {"s3_bucket": "audio-bucket", "s3_key": ""},
        s3_event("a.mp3", etag="e1\r\nX-Evil: 1"),
        s3_event("a.mp3", etag="e" * 257),
        s3_event("a.mp3", size=-1),
        s3_event("a.mp3", **{"version-id": "v" * 1025}),
    ],
)
def test_a_malformed_event_is_a_typed_error(event: Any) -> None:
    with pytest.raises(BadEvent):
        parse_upload(event)


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda x: st.dictionaries(st.text(), x)))
def test_no_json_crashes_the_parsers(document: Any) -> None:
    for parse, error in ((parse_upload, BadEvent), (parse_letter, BadMessage)):
        try:
            parse(document)  # type: ignore[operator]
        except error:
            pass


def test_a_batch_is_taken_apart() -> None:
    one = s3_event("a.mp3")
    assert unwrap_events([one, one]) == unwrap_events({"events": [one, one]}) == [one, one]
    assert unwrap_events({"Records": [notification("a.mp3")]}) == [notification("a.mp3")]
    assert unwrap_events(one) == [one]


def test_one_reader_knows_every_letter() -> None:
    job = Job(bucket="audio-bucket", key="a.mp3", etag="e1")
    message = JobMessage.of(job, Reason.FAILED)
    failure = {"requestContext": {"condition": "RetriesExhausted"}, "requestPayload": s3_event("a.mp3")}
    assert parse_letter(message.model_dump(mode="json")) == [message]
    assert parse_letter(failure) == parse_letter(s3_event("a.mp3")) == [Upload("audio-bucket", "a.mp3", "e1", 7)]
    assert parse_letter({"source": "aws.scheduler", "detail-type": "Scheduled Event"}) == [Wake()]
    assert parse_letter({"requestPayload": {"occasion": "window"}, "version": "1.0"}) == [Wake()]


@pytest.mark.parametrize(
    "change",
    [
        {"version": 2},
        {"output_key": "worker-code/latest.json"},
        {"job_id": "0"},
        {"key": ""},
        {"key": "photo.jpg"},
        {"etag": "e1\n", "job_id": Job.model_construct(bucket="audio-bucket", key="a.mp3", etag="e1\n").job_id},
    ],
)
def test_a_message_that_names_another_output_or_version_is_refused(change: dict[str, Any]) -> None:
    job = Job(bucket="audio-bucket", key="a.mp3", etag="e1")
    with pytest.raises(BadMessage):
        parse_letter(JobMessage.of(job, Reason.FAILED).model_dump(mode="json") | change)


@given(keys.map(lambda key: key + ".mp3"), st.text(min_size=1, max_size=20))
def test_a_job_survives_the_queue(key: str, etag: str) -> None:
    try:
        job = Job(bucket="audio-bucket", key=key, etag=etag)
        body = JobMessage.of(job, Reason.SWEPT).to_json()
    except (RefusedKey, ValidationError):
        return
    assert body.isascii()
    assert JobMessage.model_validate_json(body).job() == job


def test_unknown_fields_of_a_message_are_kept() -> None:
    job = Job(bucket="audio-bucket", key="a.mp3", etag="e1")
    message = JobMessage.model_validate(JobMessage.of(job, Reason.FAILED).model_dump() | {"future": 1})
    assert '"future":1' in message.to_json()
