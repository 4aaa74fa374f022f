"""One S3 bucket, as the write protocols need it: whole reads, conditional writes, complete listings.

Everything here retries what AWS's own client does not, and turns the rest into the errors of `shared.errors`.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Protocol, TypeVar

from botocore.config import Config
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    FlexibleChecksumError,
    IncompleteReadError,
    ResponseStreamingError,
)
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from shared.errors import StoreUnavailable

# botocore's own defaults (60 s to connect, 60 s to read, 5 attempts) would outlive a Lambda.
CLIENT_CONFIG = Config(
    connect_timeout=2,
    read_timeout=5,
    retries={"mode": "standard", "total_max_attempts": 3},
    max_pool_connections=32,
    user_agent="smart-transcription-router",
)
DOWNLOAD_CHUNK_BYTES = 1 << 20
T = TypeVar("T")

ABSENT = ""  # as `if_match`: write only if there is no such object


# A body that broke off or failed its checksum: botocore's retries end before the body is read. What botocore did
# retry (connections, timeouts) is not tried again here: a Lambda has no time for that.
UNRETRIED = (IncompleteReadError, ResponseStreamingError, FlexibleChecksumError)


class PreconditionFailed(Exception):
    """The object is not what `if_match` said. It may still be our own write, whose answer was lost: read it."""


class Changed(Exception):
    """The object asked for has another ETag now."""


@dataclass(frozen=True)
class ObjectInfo:
    """`size` in bytes; `etag` without quotes."""

    key: str
    etag: str
    size: int
    last_modified: datetime
    metadata: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredObject:
    body: bytes
    etag: str


class Store(Protocol):
    """The port of the write protocols. Every method raises StoreUnavailable when S3 does not answer usefully."""

    bucket: str

    def head(self, key: str) -> ObjectInfo | None: ...

    def get(self, key: str) -> StoredObject | None: ...

    def get_version(self, key: str, etag: str) -> bytes:
        """The object's body. Raises Changed when its ETag is another, or when it is gone."""
        stored = self.get(key)
        if stored is None or stored.etag != etag:
            raise Changed(key)
        return stored.body

    def download(self, key: str, target: Path, *, etag: str) -> bool:
        """Write the object to `target`; False when there is none. Raises Changed when its ETag is another."""
        ...

    def put(
        self, key: str, body: bytes, *, content_type: str, if_match: str, metadata: dict[str, str] | None = None
    ) -> str:
        """Write if the object's ETag is `if_match` (ABSENT: if there is none); returns the new ETag.

        Raises PreconditionFailed.
        """
        ...

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        """What is under `prefix`, in the order of its keys; only keys beyond `after`."""
        ...


class S3Store(Store):
    """`Store` on boto3's S3 client; safe to share between threads."""

    def __init__(self, client: Any, bucket: str, *, expected_owner: str | None = None) -> None:
        self._client = client
        self.bucket = bucket
        self._target = {"Bucket": bucket} | ({"ExpectedBucketOwner": expected_owner} if expected_owner else {})

    def head(self, key: str) -> ObjectInfo | None:
        def call() -> ObjectInfo:
            answer = self._client.head_object(**self._target, Key=key)
            return ObjectInfo(
                key, _bare(answer["ETag"]), answer["ContentLength"], answer["LastModified"], answer.get("Metadata", {})
            )

        return _optional(call)

    def get(self, key: str) -> StoredObject | None:
        def call() -> StoredObject:
            answer = self._client.get_object(**self._target, Key=key)
            return StoredObject(answer["Body"].read(), _bare(answer["ETag"]))

        return _optional(call)

    def download(self, key: str, target: Path, *, etag: str) -> bool:
        def call() -> bool:
            answer = self._client.get_object(**self._target, Key=key, IfMatch=f'"{etag}"')
            with target.open("wb") as file:
                for piece in answer["Body"].iter_chunks(DOWNLOAD_CHUNK_BYTES):
                    file.write(piece)
            return True

        try:
            return bool(_optional(call))
        except PreconditionFailed as error:
            raise Changed(key) from error

    def put(
        self, key: str, body: bytes, *, content_type: str, if_match: str, metadata: dict[str, str] | None = None
    ) -> str:
        condition = {"IfNoneMatch": "*"} if if_match == ABSENT else {"IfMatch": f'"{if_match}"'}

        def call() -> str:
            answer = self._client.put_object(
                **self._target, **condition, Key=key, Body=body, ContentType=content_type, Metadata=metadata or {}
            )
            return _bare(answer["ETag"])

        etag = _optional(call)
        if etag is None:  # If-Match on an object that is gone answers 404
            raise PreconditionFailed(key)
        return etag

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        start = {"StartAfter": after} if after else {}
        pages = self._client.get_paginator("list_objects_v2").paginate(**self._target, **start, Prefix=prefix)
        try:
            for page in pages:
                for item in page.get("Contents", ()):
                    yield ObjectInfo(item["Key"], _bare(item["ETag"]), item["Size"], item["LastModified"])
        except (ClientError, BotoCoreError) as error:
            raise StoreUnavailable(_words(error)) from error


class _Again(Exception):
    """A fault that botocore's `standard` retry mode passes on although the same call may work."""


def _optional(call: Callable[[], T]) -> T | None:
    """Run one S3 call; None when the object does not exist."""
    try:
        for attempt in Retrying(
            retry=retry_if_exception_type(_Again),
            stop=stop_after_attempt(4),
            wait=wait_random_exponential(multiplier=0.1, max=1),
            reraise=True,
        ):
            with attempt:
                return _once(call)
    except _Again as error:
        raise StoreUnavailable(str(error)) from error
    raise AssertionError("tenacity returns or raises")


def _once(call: Callable[[], T]) -> T | None:
    try:
        return call()
    except ClientError as error:
        code = error.response.get("Error", {}).get("Code", "")
        status = error.response.get("ResponseMetadata", {}).get("HTTPStatusCode")
        if code in ("404", "NoSuchKey"):
            return None
        if status == 412:
            raise PreconditionFailed(code) from error
        # 409: another conditional write was under way. In none of botocore's retry lists.
        # https://docs.aws.amazon.com/AmazonS3/latest/userguide/conditional-writes.html
        if code == "ConditionalRequestConflict":
            raise _Again(code) from error
        raise StoreUnavailable(_words(error)) from error
    except UNRETRIED as error:
        raise _Again(_words(error)) from error
    except BotoCoreError as error:
        raise StoreUnavailable(_words(error)) from error


def _words(error: Exception) -> str:
    if isinstance(error, ClientError):
        details = error.response.get("Error", {})
        return f"S3 {error.operation_name}: {details.get('Code')}: {details.get('Message')}"
    return f"S3: {type(error).__name__}"


def _bare(etag: str) -> str:
    return etag.strip('"')
