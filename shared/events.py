"""What may arrive at the door: S3 and application events, and the envelopes that queues wrap them in.

`parse_upload` reads one event for the router; `parse_letter` reads whatever lies in a queue for the worker.
"""

from dataclasses import dataclass
from typing import Any, Literal
from urllib.parse import unquote_plus

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import BadEvent, BadMessage
from shared.jobs import GivenETag, Job, JobMessage, Options, parse_job_message
from shared.store import Store

APP_SOURCES = ("custom.upload-service", "audio.upload")
MAX_WRAPPINGS = 3  # a failure record of a batch of notifications is two deep
APP_DETAIL_TYPES = ("Audio Uploaded", "Audio Upload Completed")


@dataclass(frozen=True)
class Upload:
    """Somebody says that this object was written. `etag` and `size` (bytes) are absent in application events."""

    bucket: str
    key: str
    etag: str | None = None
    size: int | None = None
    version_id: str | None = None
    force_batch: bool = False
    options: Options = Options()

    def job(self, store: Store) -> Job | None:
        """Of the version that this names, whatever is there now; S3 is asked for what is not said.

        None: it names no version, and the object is gone. Raises TransientError.
        """
        etag, size = self.etag, self.size
        if etag is None or size is None:
            info = store.head(self.key)
            etag = etag or (info.etag if info else None)
            size = info.size if info else size
        if etag is None:
            return None
        return Job(
            bucket=self.bucket,
            key=self.key,
            etag=etag,
            size=size,
            version_id=self.version_id,
            options=self.options,
        )


@dataclass(frozen=True)
class NotAnUpload:
    """A well-formed event that is none of our business."""

    reason: str


class _S3Bucket(BaseModel):
    name: str = Field(min_length=3, max_length=63)


class _S3Object(BaseModel):
    key: str = Field(min_length=1, max_length=1024)
    etag: GivenETag = None
    size: int | None = Field(default=None, ge=0)
    version_id: str | None = Field(default=None, max_length=1024, alias="version-id")


class _S3Detail(BaseModel):
    bucket: _S3Bucket
    object: _S3Object


class _NotificationObject(BaseModel):
    key: str = Field(min_length=1, max_length=3072)
    eTag: GivenETag = None
    size: int | None = Field(default=None, ge=0)
    versionId: str | None = Field(default=None, max_length=1024)


class _NotificationS3(BaseModel):
    bucket: _S3Bucket
    object: _NotificationObject


class _Notification(BaseModel):
    s3: _NotificationS3


class _Location(BaseModel):
    bucket: str = Field(min_length=3, max_length=63)
    key: str = Field(min_length=1, max_length=1024)


class _AppDetail(BaseModel):
    """Application events carry much more; nothing but the location and the wishes is trusted."""

    model_config = ConfigDict(extra="ignore")

    s3_location: _Location | None = Field(default=None, alias="s3Location")
    s3_bucket: str | None = Field(default=None, min_length=3, max_length=63)
    s3_key: str | None = Field(default=None, min_length=1, max_length=1024)
    force_batch: bool = False
    language: str | None = None
    task: Literal["transcribe", "translate"] = "transcribe"
    initial_prompt: str | None = None
    hotwords: str | None = None


def unwrap_events(payload: Any) -> list[Any]:
    """The single events in what Lambda was invoked with: one, a list, `{"events": []}` or `{"Records": []}`."""
    if isinstance(payload, list):
        return payload
    if isinstance(payload, dict):
        for name in ("events", "Records"):
            if isinstance(payload.get(name), list):
                return list(payload[name])
    return [payload]


def parse_upload(event: Any) -> Upload | NotAnUpload:
    """Read one event.

    Raises:
        BadEvent: it claims to be an upload, or nothing we know, and cannot be read.
    """
    if not isinstance(event, dict):
        raise BadEvent(f"an event is a JSON object, this is a {type(event).__name__}")
    try:
        if event.get("Event") == "s3:TestEvent":
            return NotAnUpload("S3's test event")
        if "s3" in event:
            return _from_notification(_Notification.model_validate(event), str(event.get("eventName", "")))
        if "detail-type" in event or "detail" in event:
            return _from_event_bridge(event)
        if "s3Location" in event or "s3_key" in event:
            return _from_app(_AppDetail.model_validate(event))
    except ValidationError as error:
        first = error.errors()[0]
        raise BadEvent(f"cannot read the event: {'.'.join(map(str, first['loc']))}: {first['msg']}") from error
    raise BadEvent("neither an EventBridge event nor an upload's location (s3Location, or s3_bucket and s3_key)")


def _from_event_bridge(event: dict[str, Any]) -> Upload | NotAnUpload:
    source, detail_type = event.get("source"), event.get("detail-type")
    if source == "aws.s3":
        if detail_type != "Object Created":
            return NotAnUpload(f"{detail_type} from S3")
        detail = _S3Detail.model_validate(event.get("detail"))
        obj = detail.object
        return Upload(detail.bucket.name, obj.key, obj.etag, obj.size, obj.version_id or None)
    if source in APP_SOURCES and detail_type in APP_DETAIL_TYPES:
        return _from_app(_AppDetail.model_validate(event.get("detail")))
    return NotAnUpload(f"{detail_type!r} from {source!r}")


def _from_notification(record: _Notification, event_name: str) -> Upload | NotAnUpload:
    if event_name and "ObjectCreated" not in event_name:
        return NotAnUpload(f"{event_name} from S3")
    obj = record.s3.object
    # Notifications, unlike EventBridge, URL-encode the key:
    # https://docs.aws.amazon.com/AmazonS3/latest/userguide/notification-content-structure.html
    return Upload(record.s3.bucket.name, unquote_plus(obj.key), obj.eTag, obj.size, obj.versionId or None)


def _from_app(detail: _AppDetail) -> Upload:
    if detail.s3_location:
        bucket, key = detail.s3_location.bucket, detail.s3_location.key
    elif detail.s3_bucket and detail.s3_key:
        bucket, key = detail.s3_bucket, detail.s3_key
    else:
        raise BadEvent("the upload's location is missing: s3Location {bucket, key}, or s3_bucket and s3_key")
    options = Options.model_validate(detail.model_dump(include=set(Options.model_fields)))
    return Upload(bucket, key, force_batch=detail.force_batch, options=options)


@dataclass(frozen=True)
class Wake:
    """A schedule's knock, at the worker or at the launcher: nothing to transcribe."""


Letter = JobMessage | Upload | NotAnUpload | Wake


def parse_letter(document: Any, *, depth: int = 0) -> list[Letter]:
    """Read a queue message's body: a job, a Lambda failure record, a raw event, or a schedule's.

    Raises:
        BadMessage: none of these.
    """
    if not isinstance(document, dict):
        raise BadMessage("a message is a JSON object")
    if depth > MAX_WRAPPINGS:
        raise BadMessage("an event wrapped in itself")
    if "requestPayload" in document:
        # https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-retain-records.html
        return [
            letter
            for event in unwrap_events(document["requestPayload"])
            for letter in parse_letter(event, depth=depth + 1)
        ]
    if "job_id" in document or ("version" in document and "detail-type" not in document):
        return [parse_job_message(document)]
    if document.get("source") == "aws.scheduler" or "occasion" in document:  # the latter is the launcher's
        return [Wake()]
    if isinstance(document.get("Records") or document.get("events"), list):
        return [letter for event in unwrap_events(document) for letter in parse_letter(event, depth=depth + 1)]
    try:
        return [parse_upload(document)]
    except BadEvent as error:
        raise BadMessage(error.message) from error
