"""Recorders: they upload sessions of numbers, record chunks again, and remember every version that they wrote."""

import hashlib
import json
import threading
from typing import Any

from shared.keys import Session
from tests.faults.chaos.numbers import Numbers, spoken, text
from tests.faults.oracle import Upload


class Producer:
    """Safe to share between threads. `number`: tells this producer's words from all others'."""

    def __init__(self, s3: Any, bucket: str) -> None:
        self._s3 = s3
        self.bucket = bucket
        self._uploads: list[Upload] = []
        self._lock = threading.Lock()

    @property
    def uploads(self) -> list[Upload]:
        """All versions so far, in their order. One stands here before anybody can see it in S3."""
        with self._lock:
            return list(self._uploads)

    def chunk(self, session: Session, numbers: Numbers) -> Upload:
        """`numbers`: the session's, the chunk's, and its version's."""
        body = spoken(numbers)
        return self.raw(f"{session.audio_prefix}chunk-{numbers[1]:03}.wav", body, text(numbers))

    def file(self, key: str, numbers: Numbers) -> Upload:
        return self.raw(key, spoken(numbers), text(numbers))

    def manifest(self, session: Session, count: int) -> Upload:
        return self.raw(session.manifest_key, json.dumps({"chunkCount": count}).encode())

    def raw(self, key: str, body: bytes, says: str | None = None) -> Upload:
        """Whatever it is. `says`: "" for what should be audio and is none."""
        upload = Upload(key, hashlib.md5(body, usedforsecurity=False).hexdigest(), body, says)
        with self._lock:
            self._uploads.append(upload)
        answer = self._s3.put_object(Bucket=self.bucket, Key=key, Body=body)
        assert answer["ETag"].strip('"') == upload.etag
        return upload


def event(bucket: str, upload: Upload) -> dict[str, Any]:
    """As EventBridge brings it. https://docs.aws.amazon.com/AmazonS3/latest/userguide/ev-events.html"""
    return {
        "version": "0",
        "source": "aws.s3",
        "detail-type": "Object Created",
        "detail": {
            "bucket": {"name": bucket},
            "object": {"key": upload.key, "size": len(upload.body), "etag": upload.etag},
            "reason": "PutObject",
        },
    }


def forced(bucket: str, upload: Upload) -> dict[str, Any]:
    """An application's event that sends the upload to the queue."""
    detail = {"s3Location": {"bucket": bucket, "key": upload.key}, "force_batch": True}
    return {"source": "custom.upload-service", "detail-type": "Audio Uploaded", "detail": detail}
