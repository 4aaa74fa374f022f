"""A rush: a burst of uploads through the router's own code, and callers beside it who ask for ten times what there is.

Real processes: the server, the batch worker, a local AWS. The router runs here, in a thread and with clients of its own
for each upload, all of them at once: so does Lambda where LAMBDA_CONCURRENCY is 0; with its 8 they would wait.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from threading import Barrier
from typing import Any

import boto3

from bench.measure import peak_bytes, reset_peak, rss_bytes, wer
from infra.local import processes, stack
from router_lambda.discovery import fixed
from router_lambda.route import Router
from shared.combine import Combiner
from shared.keys import Session
from shared.queues import SEND_CONFIG, Queue
from shared.server import Limits, ServerClient
from shared.store import CLIENT_CONFIG, S3Store
from shared.transcript import Transcript, read_transcript
from tests.faults.chaos.producer import Producer, event
from tests.faults.chaos.programs import Program
from tests.faults.chaos.system import look, verdict
from tests.faults.load import clients
from tests.faults.load.clients import Asked, Look
from tests.faults.oracle import Found, Upload, outcome
from tests.patience import eventually

BUCKET, REGION = "load-audio", "us-east-2"
DATA, FOLDERS = Path(__file__).parents[2] / "data", ("session-a", "session-b")
OVERLOAD = 10  # callers for each job that the server takes
UPLOADERS = 8
KEPT_APART = 50  # uploads that only those who look at /health post, but for their routers
MISHEARD = 0.15  # of a recording's words; alone tiny.en has 1 % of them wrong
LAMBDA_SECONDS = 120.0  # the router's timeout, as deployed
DRAIN_SECONDS = 900.0


@dataclass(frozen=True)
class Shape:
    """`capacity`: jobs that the server takes at once; `window_seconds`: of its recognizer for one of them.

    `chunks`: of one session, unless it is a recording. `seconds`: that the overload lasts at least.
    """

    sessions: int = 40
    chunks: int = 25
    capacity: int = 6
    window_seconds: float = 0.05
    seconds: float = 120.0

    @property
    def callers(self) -> int:
        return OVERLOAD * self.capacity


@dataclass(frozen=True)
class Rush:
    """What came of one. `grown`: bytes that server and decoders had more at their peak in it than when idle."""

    uploads: int
    seconds: float  # in which the router handled them
    overload: float  # seconds that the callers beside it went on
    decisions: Counter[str]
    posts: list[Asked]
    looks: list[Look]
    grown: int
    drained: int
    wrong: list[str]

    @property
    def refusals(self) -> list[Asked]:
        return [one for one in self.posts if one.status in (429, 503)]

    @property
    def health(self) -> list[Asked]:
        return [look.health for look in self.looks]


class Yard:
    """A local AWS and a server. `server`: the module that runs it, with its settings."""

    def __init__(self, home: Path, server: str, settings: Mapping[str, str]) -> None:
        self.home = home
        self.emulator = stack.start_emulator(home, processes.free_port(0))
        self.s3, self.sqs, self.events = (self._client(name) for name in ("s3", "sqs", "events"))
        location: Any = {"LocationConstraint": REGION}
        self.s3.create_bucket(Bucket=BUCKET, CreateBucketConfiguration=location)
        self.producer = Producer(self.s3, BUCKET)
        names = ("jobs", "dlq", "failures")
        self.queues = {name: self.sqs.create_queue(QueueName=f"load-{name}")["QueueUrl"] for name in names}
        port = processes.free_port(0)
        self.url = f"http://127.0.0.1:{port}"
        self.environment = {
            **stack.without_aws(os.environ),
            **stack.root_environment(self.emulator.endpoint, REGION),
            "AUDIO_BUCKET": BUCKET,
            "SQS_QUEUE_URL": self.queues["jobs"],
            "SQS_DLQ_URL": self.queues["dlq"],
            "SQS_FAILURES_QUEUE_URL": self.queues["failures"],
            "FAST_API_SERVER_URL": self.url,
            "FAST_API_HOST": "127.0.0.1",
            "FAST_API_PORT": str(port),
            "POWERTOOLS_METRICS_DISABLED": "true",
            **settings,
        }
        self.server = Program(server, environment=self.environment, log=home / "log/server.log")

    def start(self) -> None:
        self.server.start()
        client = ServerClient(self.url)
        eventually(lambda: client.health(Limits(2, 5)).ready, f"a server: {processes.tail(self.server.log, 3)}")

    def close(self) -> None:
        self.server.close()
        stack.stop(self.emulator.pid)

    def router(self) -> Router:
        store = S3Store(self._client("s3", CLIENT_CONFIG), BUCKET)
        queue = Queue(self._client("sqs", SEND_CONFIG), self.queues["jobs"])
        return Router(store, queue, Combiner(store, lambda detail: None), fixed((self.url,)), ServerClient)

    def drain(self) -> int:
        """A batch run, as every night; its exit status."""
        worker = Program(
            "batch_worker", "--until-empty", environment=self.environment, log=self.home / "log/worker.log"
        )
        return worker.run(seconds=DRAIN_SECONDS)

    def found(self) -> Found:
        return look(self.s3, BUCKET, self.emulator.endpoint)

    def _client(self, service: str, config: Any = None) -> Any:
        keys = stack.root_environment(self.emulator.endpoint, REGION)
        return boto3.client(
            service,
            region_name=REGION,
            endpoint_url=self.emulator.endpoint,
            aws_access_key_id=keys["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=keys["AWS_SECRET_ACCESS_KEY"],
            config=config,
        )


@contextmanager
def yard(home: Path, server: str, **settings: str) -> Iterator[Yard]:
    place = Yard(home, server, settings)
    try:
        place.start()
        yield place
    finally:
        place.close()


def rush(place: Yard, shape: Shape, uploads: Sequence[Upload], check: Callable[[], list[str]]) -> Rush:
    """All `uploads` are there; now all their events come at once. `check`: what is wrong when all is done."""
    server = place.server.pid
    idle = known(rss_bytes(server))
    reset_peak(server)
    looking, posting, stop = (place.home / name for name in ("looking", "posting", "stop"))
    jobs = [
        {"s3_input_path": f"s3://{BUCKET}/{upload.key}", "etag": upload.etag, "return_text": False}
        for upload in uploads
        if upload.says is not None
    ]
    routers = [place.router() for _ in uploads]
    with (
        ProcessPoolExecutor(2, mp_context=get_context("spawn")) as beside,
        ThreadPoolExecutor(len(uploads)) as lambdas,
    ):
        looks = beside.submit(clients.look, place.url, jobs[:KEPT_APART], looking, stop)
        posts = beside.submit(clients.post_jobs, place.url, jobs[KEPT_APART:], shape.callers, posting, stop)
        try:
            eventually(lambda: looking.exists() and posting.exists(), "callers")
            began = time.monotonic()
            events = [event(BUCKET, upload) for upload in uploads]
            decided = list(lambdas.map(partial(_handle, Barrier(len(uploads))), routers, events))
            seconds = time.monotonic() - began
            time.sleep(max(0.0, shape.seconds - seconds))  # that the overload is to last
            overload = time.monotonic() - began
        finally:
            stop.touch()
        posted, looked = posts.result(), looks.result()
    grown = known(peak_bytes(server)) - idle  # the batch may take more: whole sessions in full batches
    drained = place.drain()
    assert place.server.pid == server, "the server died, and was started again"
    posted += [look.post for look in looked]
    return Rush(len(uploads), seconds, overload, Counter(decided), posted, looked, grown, drained, check())


def known(memory: int | None) -> int:
    """What cannot be read is not little."""
    assert memory is not None, "the server's memory cannot be read"
    return memory


def _handle(together: Barrier, router: Router, one: dict[str, Any]) -> str:
    """In an environment of its own, which is warm."""
    together.wait()
    deadline = time.monotonic() + LAMBDA_SECONDS
    return router.handle(one, remaining=lambda: deadline - time.monotonic()).decision


def numbers(place: Yard, shape: Shape) -> None:
    """Upload sessions of spoken numbers, that the recognizer of `tests.faults.load.server` hears."""
    names = [Session(f"user-{number % 5}", f"session-{number}") for number in range(1, shape.sessions + 1)]
    with ThreadPoolExecutor(UPLOADERS) as pool:
        list(
            pool.map(
                lambda one: place.producer.chunk(names[one[0]], (one[0] + 1, one[1], 1)),
                [(session, chunk) for session in range(shape.sessions) for chunk in range(1, shape.chunks + 1)],
            )
        )
    for name in names:
        place.producer.manifest(name, shape.chunks)


def percentile(asked: Sequence[Asked], share: float) -> float:
    """Seconds within which that share of the answers came."""
    ordered = sorted(one.seconds for one in asked)
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def slow_numbers(home: Path, shape: Shape) -> Rush:
    settings = {"MAX_IN_FLIGHT": str(shape.capacity), "LOAD_SECONDS": str(shape.window_seconds), "DECODERS": "1"}
    with yard(home, "tests.faults.load.server", **settings) as place:
        numbers(place, shape)
        uploads = place.producer.uploads
        return rush(place, shape, uploads, lambda: verdict(place.found(), uploads))


def speech(place: Yard, shape: Shape) -> dict[Session, str]:
    """Upload recordings of real speech, for a real engine; the words of each session."""
    says = {}
    for number in range(shape.sessions):
        session, folder = Session("user", f"session-{number}"), DATA / FOLDERS[number % len(FOLDERS)]
        chunks = sorted(folder.glob("chunk-*.webm"))
        for path in chunks:
            place.producer.raw(f"{session.audio_prefix}{path.name}", path.read_bytes(), says="?")
        place.producer.manifest(session, len(chunks))
        says[session] = " ".join((folder / "text.txt").read_text().split())
    return says


def real_speech(home: Path, shape: Shape) -> Rush:
    """The same rush at `python -m gpu_server` as it is."""
    with yard(home, "gpu_server", MAX_IN_FLIGHT=str(shape.capacity), ENGINE="faster-whisper") as place:
        says = speech(place, shape)
        uploads = place.producer.uploads
        return rush(place, shape, uploads, lambda: unheard(place.found(), uploads) + misheard(place.found(), says))


def unheard(found: Found, uploads: Sequence[Upload]) -> list[str]:
    """The audio of which there is no transcript."""
    audio = [upload for upload in uploads if upload.says is not None]
    return [f"{upload.key}: unheard" for upload in audio if not isinstance(outcome(found, upload), Transcript)]


def misheard(found: Found, says: Mapping[Session, str]) -> list[str]:
    """The sessions of which there is no transcript, or one that says something else than they do."""
    wrong = []
    for session, words in says.items():
        stored = found.objects.get(session.output_key)
        transcript = read_transcript(stored.body) if stored else None
        said = transcript.text if transcript else ""
        if wer([words], [said]) > MISHEARD:
            wrong.append(f"{session.output_key}: says {said!r}")
    return wrong
