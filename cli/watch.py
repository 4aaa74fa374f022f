"""Follows uploads through the system: which decision the router logged, and what arrived in S3."""

import json
import time
from dataclasses import dataclass
from typing import Any

from shared.errors import RefusedKey
from shared.keys import ChunkKey, Session, parse_key
from shared.transcript import Transcript, read_transcript


@dataclass
class Chunk:
    """One uploaded chunk, as far as it is. Times are this process's monotonic seconds."""

    key: str
    uploaded_at: float
    decision: str = ""
    reason: str = ""
    done_at: float | None = None
    transcript: Transcript | None = None
    failure: str = ""

    @property
    def name(self) -> str:
        return self.key.rpartition("/")[2]

    @property
    def settled(self) -> bool:
        return self.transcript is not None or bool(self.failure)


class Watch:
    """The state of the chunks that were uploaded through it. `refresh` looks once at S3 and at the router's log."""

    def __init__(self, s3: Any, logs: Any, *, bucket: str, log_group: str) -> None:
        self._s3, self._logs = s3, logs
        self._bucket, self._log_group = bucket, log_group
        self.chunks: dict[str, Chunk] = {}

    def upload(self, key: str, body: bytes) -> None:
        self.chunks[key] = Chunk(key, time.monotonic())
        self._s3.put_object(Bucket=self._bucket, Key=key, Body=body)

    def upload_manifest(self, session: Session, chunks: int) -> None:
        body = json.dumps({"chunkCount": chunks}).encode()
        self._s3.put_object(Bucket=self._bucket, Key=session.manifest_key, Body=body)

    def refresh(self) -> None:
        self._read_log()
        for chunk in self.chunks.values():
            if not chunk.settled:
                self._read_outcome(chunk)

    def session_transcript(self, session: Session) -> Transcript | None:
        body = self._get(session.output_key)
        return read_transcript(body) if body else None

    def file(self, key: str) -> bytes | None:
        return self._get(key)

    def of(self, session: Session) -> list[Chunk]:
        return [chunk for key, chunk in self.chunks.items() if key.startswith(session.audio_prefix)]

    def _read_outcome(self, chunk: Chunk) -> None:
        try:
            names = parse_key(chunk.key)
        except RefusedKey:
            return
        assert isinstance(names, ChunkKey)
        if body := self._get(names.output_key):
            chunk.transcript, chunk.done_at = read_transcript(body), time.monotonic()
        elif body := self._get(names.error_key):
            chunk.failure, chunk.done_at = json.loads(body)["message"], time.monotonic()

    def _read_log(self) -> None:
        """The router logs one JSON line per decision."""
        try:
            pages = self._logs.get_paginator("filter_log_events").paginate(logGroupName=self._log_group)
            messages = [event["message"] for page in pages for event in page["events"]]
        except self._logs.exceptions.ResourceNotFoundException:
            return
        for message in messages:
            if '"decided"' in message:
                self._note_decision(message)

    def _note_decision(self, message: str) -> None:
        try:
            line = json.loads(message[message.index("{") :])
        except ValueError:
            return
        chunk = self.chunks.get(line.get("key", ""))
        if chunk:
            chunk.decision, chunk.reason = line["decision"], line["reason"]

    def _get(self, key: str) -> bytes | None:
        try:
            return bytes(self._s3.get_object(Bucket=self._bucket, Key=key)["Body"].read())
        except self._s3.exceptions.NoSuchKey:
            return None
