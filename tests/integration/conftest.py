"""The whole system for the integration tests: a local AWS with IAM enforced, deployed by the real scripts."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from cli.local import BUCKET, QUEUE_PREFIX, LocalStack
from infra.local import stack
from shared.keys import Session
from shared.transcript import Transcript, read_transcript

StartWorker = Callable[..., subprocess.Popen[bytes]]
DATA = Path(__file__).parents[1] / "data"
LOG_GROUP = f"/aws/lambda/{QUEUE_PREFIX}-router"


@dataclass
class System:
    """The running stack as a user has it: S3, the queues, the log; and the processes to switch on and off."""

    local: LocalStack
    s3: Any = field(init=False)
    sqs: Any = field(init=False)
    logs: Any = field(init=False)
    settings: dict[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self.s3, self.sqs, self.logs = (self.local.client(name) for name in ("s3", "sqs", "logs"))
        self.settings = self.local.settings()

    def put(self, key: str, body: bytes) -> str:
        return str(self.s3.put_object(Bucket=BUCKET, Key=key, Body=body)["ETag"]).strip('"')

    def get(self, key: str) -> bytes | None:
        try:
            return bytes(self.s3.get_object(Bucket=BUCKET, Key=key)["Body"].read())
        except self.s3.exceptions.NoSuchKey:
            return None

    def upload(self, session: Session, sample: str = "session-a", *, count: int | None = None) -> list[str]:
        chunks = sorted((DATA / sample).glob("chunk-*.webm"))[:count]
        keys = [session.audio_prefix + chunk.name for chunk in chunks]
        for key, chunk in zip(keys, chunks, strict=True):
            self.put(key, chunk.read_bytes())
        return keys

    def manifest(self, session: Session, count: object) -> None:
        self.put(session.manifest_key, json.dumps({"chunkCount": count}).encode())

    def transcript(self, session: Session) -> Transcript | None:
        body = self.get(session.output_key)
        return read_transcript(body) if body else None

    def decisions(self, prefix: str) -> list[dict[str, Any]]:
        """What the router logged about keys that begin with `prefix`, in order."""
        pages = self.logs.get_paginator("filter_log_events").paginate(logGroupName=LOG_GROUP)
        lines = [event["message"] for page in pages for event in page["events"] if '"decided"' in event["message"]]
        parsed = [json.loads(line[line.index("{") :]) for line in lines]
        return [line for line in parsed if line["key"].startswith(prefix)]

    def decided(self, keys: list[str]) -> dict[str, str] | None:
        """The first decision on each key, once there is one on all."""
        found: dict[str, str] = {}
        for line in self.decisions(""):
            found.setdefault(line["key"], line["decision"])
        return {key: found[key] for key in keys} if all(key in found for key in keys) else None

    def depth(self, queue: str = "SQS_QUEUE_URL") -> int:
        names = ["ApproximateNumberOfMessages", "ApproximateNumberOfMessagesNotVisible"]
        answer = self.sqs.get_queue_attributes(QueueUrl=self.settings[queue], AttributeNames=names)
        return sum(int(answer["Attributes"][name]) for name in names)


@pytest.fixture(scope="session")
def system(tmp_path_factory: pytest.TempPathFactory) -> Iterator[System]:
    # A port of its own: while its server is off, no other stack that comes up takes it.
    local = LocalStack(tmp_path_factory.mktemp("local"), server_port=8101)
    # A machine that does other work too may answer late; two seconds are the router's own tests' matter.
    os.environ["HEALTH_CHECK_TIMEOUT"] = "10"
    try:
        local.up(server=True, on_step=lambda step, seconds: None)
        yield System(local)
    finally:
        del os.environ["HEALTH_CHECK_TIMEOUT"]
        local.down()


@pytest.fixture
def server(system: System) -> System:
    """The system with its server on, whatever the test before did to it."""
    system.local.start_server()
    system.local.await_server()
    return system


@pytest.fixture
def no_server(system: System) -> System:
    system.local.stop_server()
    return system


@pytest.fixture
def empty_queues(system: System) -> None:
    """For tests that count messages: none that a test before left is among them."""
    for name in ("SQS_QUEUE_URL", "SQS_DLQ_URL", "SQS_FAILURES_QUEUE_URL"):
        system.sqs.purge_queue(QueueUrl=system.settings[name])


@pytest.fixture
def start_worker(system: System) -> Iterator[StartWorker]:
    """Starts workers: `(log, *arguments, **settings)`. None outlives its test and takes the next one's messages."""
    workers: list[subprocess.Popen[bytes]] = []

    def start(log: Path, *arguments: str, **settings: str) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "batch_worker", *arguments]
        environment = system.local._program_environment() | {"POLL_SECONDS": "1"} | settings
        with log.open("ab") as output:
            workers.append(subprocess.Popen(command, cwd=stack.ROOT, env=environment, stdout=output, stderr=output))
        return workers[-1]

    yield start
    for worker in workers:
        worker.kill()
        worker.wait()
