"""Our server and the plain one under load: what a call of each route is, and the local S3 the audio lies in."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import boto3
import httpx

from batch_worker.report import Day
from bench.children import Model, Server, serve
from bench.measure import Call, Timed, busy_seconds, timed
from bench.speech import Recording
from infra.local import stack
from shared.keys import Session

BUCKET = "bench-audio"
REGION = "us-east-2"
USER = "bench"
CONTEXT_S = 15
IN_FLIGHT = 128  # as many as the server takes: none of our load is to be refused
LONG_S = 7200  # for one call
UPLOADERS = 8
REPORTS = "reports/"
MEDIA_TYPES = {".webm": "audio/webm", ".opus": "audio/ogg"}


class Refusal(Exception):
    """The server did not answer with a transcript; has what it said."""


@dataclass(frozen=True)
class Stored:
    key: str
    etag: str


class Bucket:
    """A bucket in a local AWS of our own; the account's owner works with it."""

    def __init__(self, endpoint: str, pid: int) -> None:
        self.pid = pid
        self.environment = stack.root_environment(endpoint, REGION)
        self._s3 = boto3.client(
            "s3",
            region_name=REGION,
            endpoint_url=endpoint,
            aws_access_key_id=self.environment["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=self.environment["AWS_SECRET_ACCESS_KEY"],
        )
        location: Any = {"LocationConstraint": REGION}
        self._s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration=location)

    def put_session(self, session: Session, recording: Recording) -> list[Stored]:
        """Put a whole session there, the manifest last; its chunks, in order."""
        keys = [f"{session.audio_prefix}{chunk.name}" for chunk in recording.chunks]
        chunks = self.put_files(list(zip(keys, recording.chunks, strict=True)))
        manifest = f'{{"chunkCount": {len(keys)}}}'.encode()
        self._s3.put_object(Bucket=BUCKET, Key=session.manifest_key, Body=manifest)
        return chunks

    def put_files(self, files: Sequence[tuple[str, Path]]) -> list[Stored]:
        with ThreadPoolExecutor(UPLOADERS) as pool:
            return list(pool.map(lambda file: self._put(*file), files))

    def reports(self) -> list[Day]:
        """What batch runs wrote about themselves."""
        listed = self._s3.list_objects_v2(Bucket=BUCKET, Prefix=REPORTS).get("Contents", [])
        bodies = [self._s3.get_object(Bucket=BUCKET, Key=item["Key"])["Body"].read() for item in listed]
        return [Day.model_validate_json(body) for body in bodies]

    def _put(self, key: str, path: Path) -> Stored:
        answer = self._s3.put_object(Bucket=BUCKET, Key=key, Body=path.read_bytes())
        return Stored(key, answer["ETag"].strip('"'))


@contextmanager
def local_bucket(home: Path) -> Iterator[Bucket]:
    """A local AWS below `home`, gone after the block."""
    emulator = stack.start_emulator(home, port=0)
    try:
        yield Bucket(emulator.endpoint, emulator.pid)
    finally:
        stack.stop(emulator.pid)


@contextmanager
def our_server(model: Model, bucket: Bucket | None, logs: Path, *, context_s: int = 0) -> "Iterator[OurServer]":
    """`python -m gpu_server` with settings as in production, save that it refuses nothing and combines simply."""
    settings = {
        "ENGINE": model.engine,
        "WHISPER_MODEL": model.path,
        "DEVICE": model.device,
        "COMPUTE_TYPE": model.compute_type,
        "MAX_IN_FLIGHT": str(IN_FLIGHT),
        "LIVE_CONTEXT": str(context_s),
        "SESSION_FINISH": "combine",
        "REQUEST_TIMEOUT": str(LONG_S),
        "DECODE_TIMEOUT": "600",
        "AWS_REGION": REGION,
    }
    if bucket:
        settings |= {**bucket.environment, "AUDIO_BUCKET": BUCKET}
    name = f"server-{model.engine}-{context_s}"
    with serve("gpu_server", settings, logs, name=name) as server, _client(server) as client:
        yield OurServer(server, client)


@contextmanager
def plain_server(model: Model, logs: Path) -> "Iterator[PlainServer]":
    settings = {
        "PLAIN_MODEL": model.path,
        "PLAIN_DEVICE": model.device,
        "PLAIN_COMPUTE_TYPE": model.compute_type,
    }
    with serve("bench.plain_server", settings, logs, name="plain-server") as server, _client(server) as client:
        yield PlainServer(server, client)


class PlainServer:
    def __init__(self, server: Server, client: httpx.Client) -> None:
        self.pid = server.pid
        self.url = server.url
        self._client = client

    def load(self, groups: Sequence[Sequence[Call]], *, in_flight: int) -> Timed:
        return timed(groups, in_flight=in_flight, pid=self.pid)

    def upload(self, path: Path) -> Call:
        return partial(self._upload, "/asr", "audio_file", path, {})

    def _upload(self, route: str, field: str, path: Path, form: dict[str, str]) -> str:
        with path.open("rb") as file:
            files = {field: (path.name, file, MEDIA_TYPES[path.suffix])}
            return str(_answer(self._client.post(route, files=files, data=form))["text"])


class OurServer(PlainServer):
    def load(self, groups: Sequence[Sequence[Call]], *, in_flight: int) -> Timed:
        """Busy seconds too."""
        return timed(groups, in_flight=in_flight, pid=self.pid, busy=self._busy)

    def upload(self, path: Path) -> Call:
        return partial(self._upload, "/transcribe", "file", path, {"language": "en"})

    def from_s3(self, audio: Stored) -> Call:
        """As the router asks for it, but for the text."""
        path = f"s3://{BUCKET}/{audio.key}"
        body = {"s3_input_path": path, "etag": audio.etag, "language": "en", "return_text": True, "new": True}
        return lambda: str(self._post("/transcribe-s3", body)["text"])

    def session(self, session: Session) -> Call:
        path = f"s3://{BUCKET}/{session.audio_prefix}"
        body = {"s3_session_path": path, "language": "en", "return_text": True}

        def call() -> str:
            answer = self._post("/transcribe-session", body)
            if answer.get("status") != "done":
                raise Refusal(f"the session is {answer.get('status')}")
            return str(answer["transcript"]["text"])

        return call

    def _post(self, route: str, body: dict[str, Any]) -> dict[str, Any]:
        return _answer(self._client.post(route, json=body))

    def _busy(self) -> float:
        return busy_seconds(self._client.get("/metrics").text)


@contextmanager
def _client(server: Server) -> Iterator[httpx.Client]:
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=IN_FLIGHT, keepalive_expiry=2.0)
    with httpx.Client(base_url=server.url, timeout=httpx.Timeout(LONG_S, connect=10), limits=limits) as client:
        yield client


def _answer(response: httpx.Response) -> dict[str, Any]:
    if response.status_code != httpx.codes.OK:
        raise Refusal(f"{response.request.url.path} answered {response.status_code}: {response.text[:200]}")
    answer: dict[str, Any] = response.json()
    return answer
