"""The whole system under fire: a local AWS, fault proxies before it and before the server, and our real programs."""

import json
import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import boto3
import httpx
from botocore.exceptions import BotoCoreError, ClientError

from infra.local import processes, stack
from shared.server import Limits, ServerClient
from shared.store import StoredObject
from tests.faults.chaos.disk import Disk
from tests.faults.chaos.lambdas import Lambdas
from tests.faults.chaos.levers import Levers
from tests.faults.chaos.producer import Producer
from tests.faults.chaos.programs import Program
from tests.faults.chaos.proxy import FaultProxy
from tests.faults.chaos.watch import Watch
from tests.faults.oracle import Found, Upload, transcribed, violations
from tests.patience import PATIENCE_SECONDS, eventually

BUCKET = "chaos-audio"
REGION = "us-east-2"
RECEIVES = 5  # as deployed (step-020)
LEASE = {"VISIBILITY_TIMEOUT": "4", "HEARTBEAT_INTERVAL": "1"}  # seconds: a killed worker's messages come back soon
BATCHES = 5  # that a system may need to come to rest once the faults are over; one is usual


@dataclass(frozen=True)
class Queues:
    jobs: str
    dead: str
    failures: str


class System:
    """Use as a context manager.

    `lambdas`: environments of the router. `disk`: that of the instance, for the temporary files of server and worker
    and the worker's log; None: the machine's own. `settings`: of all our programs.
    """

    def __init__(
        self, home: Path, *, lambdas: int = 3, disk: Disk | None = None, settings: Mapping[str, str] | None = None
    ) -> None:
        self.home = home
        self.disk = disk
        self._lambdas = lambdas
        self._temporary = {"TMPDIR": str(disk.folder)} if disk else {}
        self.aws_log = home / "log/aws.log"  # of the proxy before it
        self._worker_log = (disk.folder if disk else home / "log") / "worker.log"
        self._settings = dict(settings or {})
        self._close = ExitStack()

    def __enter__(self) -> "System":
        with ExitStack() as starting:
            self._start(starting)
            self._close = starting.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._close.close()

    def _start(self, closing: ExitStack) -> None:
        emulator = stack.start_emulator(self.home, processes.free_port(0))
        self._emulator = emulator
        closing.callback(lambda: stack.stop(self._emulator.pid))
        self.owner = stack.root_environment(emulator.endpoint, REGION)
        self.s3, self.sqs = (self.client(name) for name in ("s3", "sqs"))
        location: Any = {"LocationConstraint": REGION}
        self.s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration=location)
        self.queues = self._queues()
        self.levers = Levers(self.home / "levers")
        self.heard_file = self.home / "heard"
        server_port = processes.free_port(0)
        self.aws = self._proxy(closing, emulator.endpoint, "aws")
        self.door = self._proxy(closing, f"http://127.0.0.1:{server_port}", "door")
        self.server_url = f"http://127.0.0.1:{server_port}"
        self.environment = {
            **stack.without_aws(os.environ),
            **stack.root_environment(self.aws.url, REGION),
            "AUDIO_BUCKET": BUCKET,
            "SQS_QUEUE_URL": self.queues.jobs,
            "SQS_DLQ_URL": self.queues.dead,
            "SQS_FAILURES_QUEUE_URL": self.queues.failures,
            "FAST_API_SERVER_URL": self.door.url,
            "HEALTH_CHECK_TIMEOUT": "5",
            "POWERTOOLS_METRICS_DISABLED": "true",
            "PYTHONUNBUFFERED": "1",
            **self._settings,
        }
        self.server = self._server(closing, server_port)
        self.worker = self.new_worker()
        closing.callback(self.worker.close)
        self.lambdas = self.new_lambdas(self._lambdas)
        closing.callback(lambda: self.lambdas.close())
        self.producer = Producer(self.s3, BUCKET)
        eventually(self.aws.is_up, "the proxy before AWS")
        eventually(self.door.is_up, "the proxy before the server")

    # Programs -------------------------------------------------------------------------------------------------------

    def new_worker(self, *arguments: str, **settings: str) -> Program:
        own = LEASE | self._temporary | {"POLL_SECONDS": "1", "SERVER_WAIT": "60"}
        return Program("batch_worker", *arguments, environment=self.environment | own | settings, log=self._worker_log)

    def new_lambdas(self, size: int, **settings: str) -> Lambdas:
        log = self.home / "log/lambdas.log"
        return Lambdas(size, self.environment | settings, log, self._failed)

    def await_server(self) -> None:
        client = ServerClient(self.server_url)
        eventually(lambda: client.health(Limits(2, 5)).ready, f"a server: {processes.tail(self.server.log, 3)}")

    def warm(self) -> None:
        """Until all of it answers at once: what comes then comes to a system at work."""
        for _ in range(self._lambdas):
            self.lambdas.invoke({"Event": "s3:TestEvent"})
        for service, look in (("s3", "list_buckets"), ("sqs", "list_queues"), ("events", "list_event_buses")):
            getattr(self.client(service, self.aws.url), look)()
        self.await_server()
        self.settle()

    def restart_aws(self, meanwhile: Callable[[], object]) -> None:
        """Away, and here again with what it held."""
        stack.stop(self._emulator.pid)
        meanwhile()
        port = int(self._emulator.endpoint.rpartition(":")[2])
        self._emulator = stack.start_emulator(self.home, port)

    # What a run does ------------------------------------------------------------------------------------------------

    def heal(self) -> None:
        """No fault from outside is left; what it did is."""
        self.aws.clear()
        self.door.clear()
        self.levers.clear()
        if self.disk:
            self.disk.heal()

    def settle(self) -> None:
        """Until every event was handled, or is with the failures."""
        eventually(self.lambdas.is_idle, "all events are handled")

    def batch(self, **settings: str) -> int:
        """A batch run, as every night; its exit status."""
        return self.new_worker("--until-empty", **settings).run(seconds=PATIENCE_SECONDS)

    def rest(self) -> int:
        return rest(self.batch, self._worker_log)

    def found(self) -> Found:
        return look(self.s3, BUCKET, self.owner["AWS_ENDPOINT_URL"])

    def verdict(self) -> list[str]:
        """What is wrong, by the oracle; without a transcript of every chunk something is."""
        return verdict(self.found(), self.producer.uploads)

    def watch(self) -> Watch:
        """On every output that is written from now on."""
        return Watch(self.home / "aws.journal")

    def heard(self) -> Counter[str]:
        """How often the recognizer heard each chunk version, by its words."""
        return Counter(self.heard_file.read_text().splitlines()) if self.heard_file.exists() else Counter()

    def client(self, service: str, url: str | None = None) -> Any:
        """To the local AWS, past the proxy unless `url` is the proxy's."""
        keys = {
            "aws_access_key_id": self.owner["AWS_ACCESS_KEY_ID"],
            "aws_secret_access_key": self.owner["AWS_SECRET_ACCESS_KEY"],
        }
        return boto3.client(service, region_name=REGION, endpoint_url=url or self.owner["AWS_ENDPOINT_URL"], **keys)

    # ----------------------------------------------------------------------------------------------------------------

    def _queues(self) -> Queues:
        dead = self.sqs.create_queue(QueueName="chaos-dlq")["QueueUrl"]
        arn = self.sqs.get_queue_attributes(QueueUrl=dead, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
        redrive = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": RECEIVES})
        jobs = self.sqs.create_queue(QueueName="chaos-jobs", Attributes={"RedrivePolicy": redrive})["QueueUrl"]
        return Queues(jobs, dead, self.sqs.create_queue(QueueName="chaos-failures")["QueueUrl"])

    def _proxy(self, closing: ExitStack, upstream: str, name: str) -> FaultProxy:
        port = processes.free_port(0)
        arguments = (upstream, str(port), str(self.home / f"{name}.journal"))
        log = self.home / f"log/{name}.log"
        program = Program("tests.faults.chaos.proxy", *arguments, environment=os.environ, log=log)
        closing.callback(program.close)
        program.start()
        return FaultProxy(port)

    def _server(self, closing: ExitStack, port: int) -> Program:
        settings = {
            "FAST_API_HOST": "127.0.0.1",
            "FAST_API_PORT": str(port),
            "DECODERS": "1",
            "FAULTS_LEVERS": str(self.levers.folder),
            "FAULTS_HEARD": str(self.heard_file),
            **self._temporary,
        }
        log = self.home / "log/server.log"
        server = Program("tests.faults.chaos.server", environment=self.environment | settings, log=log)
        closing.callback(server.close)
        server.start()
        return server

    def _failed(self, record: str) -> None:
        """Lambda's own send to the failure destination: no fault of ours is in its way."""
        deadline = time.monotonic() + 30
        while True:
            try:
                self.sqs.send_message(QueueUrl=self.queues.failures, MessageBody=record)
                return
            except (ClientError, BotoCoreError):  # the local AWS is being started again
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.5)


def rest(batch: Callable[[], int], log: Path) -> int:
    """Batch runs until one says, by its status, that all is done; how many that took."""
    for number in range(1, BATCHES + 1):
        if batch() == 0:
            return number
    raise AssertionError(f"not at rest after {BATCHES} batch runs: {processes.tail(log)}")


def look(s3: Any, bucket: str, endpoint: str) -> Found:
    """All objects, and all messages of the local AWS, those in somebody's hands included: it shows them as they are."""
    pages = s3.get_paginator("list_objects_v2").paginate(Bucket=bucket)
    objects = {}
    for item in (item for page in pages for item in page.get("Contents", ())):
        answer = s3.get_object(Bucket=bucket, Key=item["Key"])
        objects[item["Key"]] = StoredObject(answer["Body"].read(), answer["ETag"].strip('"'))
    accounts = httpx.get(f"{endpoint}/_ministack/sqs/messages", timeout=PATIENCE_SECONDS).json()["messages"].values()
    queues = [messages for regions in accounts for queues in regions.values() for messages in queues.values()]
    return Found(bucket, objects, [message["Body"] for messages in queues for message in messages])


def verdict(found: Found, uploads: Sequence[Upload]) -> list[str]:
    """As `System.verdict`."""
    wanted = len({upload.key for upload in uploads if upload.says})
    there = transcribed(found, uploads)
    missing = [f"{wanted - there} of {wanted} chunks have no transcript"] if there < wanted else []
    return violations(found, uploads) + missing


@contextmanager
def a_system(*, lambdas: int = 3, small_disk: bool = False, **settings: str) -> Iterator[System]:
    """One at work, in a folder that goes with it. `small_disk`: see `Disk`; `settings`: of all our programs."""
    with ExitStack() as closing:
        home = Path(closing.enter_context(TemporaryDirectory(prefix="faults-")))
        disk = closing.enter_context(Disk(home / "disk")) if small_disk else None
        system = closing.enter_context(System(home, lambdas=lambdas, disk=disk, settings=settings))
        system.worker.start()
        system.warm()
        yield system
