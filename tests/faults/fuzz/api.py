"""Requests made from the server's own OpenAPI document, right and wrong ones; every answer is held against it.

The application, its doors, the decoder and the protocols are the real ones; the recognizer counts seconds.
"""

import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import boto3
import schemathesis
from moto import mock_aws
from schemathesis.config import SchemathesisConfig
from schemathesis.engine import events, from_schema
from schemathesis.hooks import HookContext
from schemathesis.schemas import BaseSchema

from shared.keys import Session
from shared.store import ABSENT, CLIENT_CONFIG, S3Store, Store
from shared.transcript import read_error_record, read_transcript
from tests.gpu_server import media
from tests.gpu_server.served import API_KEY, HELLO, Served

BUCKET, SESSION = "bucket", Session("ann", "standup")  # of the document's own examples
CALL = "calls/hello.wav"

# A wish may be right by the document and still not be granted: a path may name nothing, a language may not be the
# model's, a file may be no audio. So nobody asks whether what is right is accepted.
NOT_ASKED = ("positive_data_acceptance",)
PLAUSIBLE = 0.7  # how often a parameter has a value that means something here


@dataclass
class Asked:
    """What came of the requests: answers by operation and status, and whatever broke the document's word."""

    answers: Counter[tuple[str, int]] = field(default_factory=Counter)
    violations: Counter[str] = field(default_factory=Counter)

    @property
    def requests(self) -> int:
        return self.answers.total()

    def statuses(self, operation: str) -> set[int]:
        return {status for name, status in self.answers if name == operation}


@contextmanager
def a_bucket() -> Iterator[S3Store]:
    """The real port, on moto: a caller's words go into its requests."""
    with mock_aws():
        client = boto3.client(
            "s3",
            region_name="us-east-1",
            aws_access_key_id="test",
            aws_secret_access_key="test",
            config=CLIENT_CONFIG,
        )
        client.create_bucket(Bucket=BUCKET)
        yield S3Store(client, BUCKET)


def stock(store: Store) -> list[str]:
    """Put a session there that is whole but for a damaged chunk, and a file by itself; their keys."""
    chunks = sorted((media.DATA / "session-a").glob("chunk-*.webm"))[:2]
    bodies = [chunk.read_bytes() for chunk in chunks] + [b"no audio at all " * 20]
    objects = {f"{SESSION.audio_prefix}chunk-{number}.webm": body for number, body in enumerate(bodies, start=1)}
    objects |= {SESSION.manifest_key: b'{"chunkCount": 3}', CALL: HELLO.read_bytes()}
    for key, body in objects.items():
        store.put(key, body, content_type="application/octet-stream", if_match=ABSENT)
    return list(objects)


def ask(served: Served, *, examples: int, seed: int, api_key: str = API_KEY) -> Asked:
    """About `examples` random requests to each operation, besides those at the bounds of every parameter."""
    schema = schemathesis.openapi.from_asgi(
        "/openapi.json",
        served.app,
        config=_config(served.store, examples, seed, api_key),
        headers={"X-API-Key": API_KEY},
    )
    _send_real_files(schema)
    asked = Asked()
    for event in from_schema(schema).execute():
        if isinstance(event, events.ScenarioFinished):
            _note(event, asked)
        elif isinstance(event, events.NonFatalError | events.FatalError):
            asked.violations[f"schemathesis could not go on: {vars(event)}"] += 1
    return asked


def strange_keys(store: Store, uploaded: list[str]) -> list[str]:
    """Keys that were written though no input of ours has its result there, or whose content nobody can read."""
    return [info.key for info in store.list("") if info.key not in uploaded and not _is_result(store, info.key)]


def _is_result(store: Store, key: str) -> bool:
    stored = store.get(key)
    ours = key.startswith(("transcripts/", SESSION.transcript_prefix, SESSION.derived_key("")))
    text = key.endswith((".srt", ".vtt", ".txt"))
    return ours and stored is not None and bool(text or read_transcript(stored.body) or read_error_record(stored.body))


def _config(store: Store, examples: int, seed: int, api_key: str) -> SchemathesisConfig:
    stored = list(store.list(""))
    values = {
        "paths": _paths(store.bucket, [info.key for info in stored]),
        "chunks": [f"s3://{store.bucket}/{info.key}" for info in stored if "chunk-" in info.key],
        "copies": [f"s3://{store.bucket}/{key}" for key in ("transcripts/mine.json", SESSION.output_key, CALL)],
        "sessions": [SESSION.path_in(store.bucket), Session("ann", "none").path_in(store.bucket), "s3://bucket/users/"],
        "etags": [*(info.etag for info in stored), '"quoted"', "", "a\r\nX-Evil: 1", "ü", "W/x"],
        "languages": ["en", "en-US", "de", "tlh"],
    }
    places = {
        "s3_input_path": "paths",
        "chunks[*].s3_input_path": "chunks",
        "chunks[*].etag": "etags",
        "s3_output_path": "copies",
        "s3_session_path": "sessions",
        "etag": "etags",
        "language": "languages",
    }
    return SchemathesisConfig.from_dict(
        {
            "seed": seed,
            "headers": {"X-API-Key": api_key},
            "continue-on-failure": True,
            "generation": {"max-examples": examples, "database": ":memory:"},
            "checks": {name: {"enabled": False} for name in NOT_ASKED},
            "dictionaries": {name: {"values": some} for name, some in values.items()},
            "parameters": {
                f"body.{place}": {"dictionary": name, "probability": PLAUSIBLE} for place, name in places.items()
            },
        }
    )


def _paths(bucket: str, keys: list[str]) -> list[str]:
    """S3 paths worth asking for: of what is there, of what is not, of what may not be asked for."""
    nowhere = ["calls/gone.mp3", f"{SESSION.audio_prefix}chunk-9.webm", "../../etc/passwd.mp3", "a\x00b.mp3", "ü😀.mp3"]
    refused = ["users/ann/audio/sessions/a-chunk-1/chunk-1.webm", SESSION.output_key]
    return [f"s3://{bucket}/{key}" for key in keys + nowhere + refused] + ["s3://other/a.mp3", "file:///etc/passwd"]


def _send_real_files(schema: BaseSchema) -> None:
    """Random bytes are never audio: half of the uploads are, whole or cut."""
    files = [HELLO.read_bytes(), media.webm(), media.webm()[:300], media.timesliced()[1], b""]

    @schema.hook("map_body")
    def map_body(context: HookContext, body: Any) -> Any:
        if isinstance(body, dict) and isinstance(body.get("file"), bytes):
            choice = zlib.crc32(repr(sorted(body)).encode() + body["file"]) % (2 * len(files))
            if choice < len(files):
                return body | {"file": files[choice]}
        return body


def _note(event: events.ScenarioFinished, asked: Asked) -> None:
    recorder = event.recorder
    for interaction in recorder.interactions.values():
        status = interaction.response.status_code if interaction.response else 0
        asked.answers[str(event.label), status] += 1
    for checks in recorder.checks.values():
        for check in checks:
            if check.failure_info:
                failure = check.failure_info.failure
                asked.violations[f"{event.label}: {check.name}: {failure.title}: {failure.message}"] += 1
