"""The real server, in this process: who calls it waits until it is idle, and it is started anew when it has crashed."""

import asyncio
import shutil
import threading
from collections.abc import Awaitable, Callable, Collection, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TypeVar

import numpy as np

from gpu_server.decoding import BYTES_PER_SAMPLE, SAMPLE_RATE, Decoded
from gpu_server.engines import Recognition, Segment
from gpu_server.listener import Seat
from gpu_server.metrics import ServerMetrics
from gpu_server.problems import Refused
from gpu_server.readiness import Phase, Readiness
from gpu_server.remembering import RememberingStore
from gpu_server.service import Service
from gpu_server.track import Track
from gpu_server.transcriber import Transcriber
from shared.combine import Combiner, SessionTranscribed
from shared.errors import PermanentError, TransientError
from shared.jobs import Job, Options
from shared.keys import parse_key
from shared.server import Answer, Health, Limits, Said, Work
from shared.store import Store
from tests.faults.points.plan import Life, Plan
from tests.gpu_server.ears import TAG, Reader, held_engine

T = TypeVar("T")
CAPACITY = 8
SECONDS = 0.01  # of audio in a chunk


@cache
def loop() -> asyncio.AbstractEventLoop:
    """One for all servers of this process, in a thread of its own."""
    made = asyncio.new_event_loop()
    threading.Thread(target=made.run_forever, name="servers", daemon=True).start()
    return made


class Reading(Transcriber):
    """Reads a number out of each piece of audio, without decoder and without batches: these have tests of their own.

    So a run takes a few milliseconds. The emulator's runs have the real ones.
    """

    def decode(self, audio: Path, pcm: Path) -> Decoded:
        shutil.copyfile(audio, pcm)
        return Decoded(samples=pcm.stat().st_size // BYTES_PER_SAMPLE)

    def listen(
        self,
        track: Track,
        options: Options,
        *,
        wanted: Collection[int] | None = None,
        seat: Seat | None = None,
        arrived: Callable[[], None] = lambda: None,
    ) -> list[Recognition]:
        arrived()
        return [_recognition(round(float(track.read(piece)[0]) * TAG)) for piece in track.pieces]


def _recognition(number: int) -> Recognition:
    segment = Segment(start=0.0, end=SECONDS, text=str(number))
    return Recognition(language="en", segments=(segment,), engine="reading", model="reader", alignment="none")


def samples_saying(number: int) -> bytes:
    """Audio for `Reading`."""
    return np.full(round(SAMPLE_RATE * SECONDS), round(number / TAG * 32767), dtype="<i2").tobytes()


class House:
    """One server's place: `start` makes the service of a new life."""

    def __init__(self, plan: Plan, start: Callable[[Life], Service]) -> None:
        self._plan = plan
        self._start = start
        self._life: Life | None = None
        self.service: Service

    def ask(self, question: Callable[[Service], Awaitable[T]]) -> T:
        """The answer, when nothing is in flight any more: so what happens in the background does so in one order.

        Raises:
            ConnectionError: it crashed meanwhile.
        """
        if self._life is None or self._life.over:
            self._life = Life(self._plan, "server")
            self.service = self._start(self._life)
        future: Future[T] = asyncio.run_coroutine_threadsafe(_idle_after(self.service, question), loop())
        error = future.exception()
        if self._life.over:
            raise ConnectionError("the server died")
        if error:
            raise error
        return future.result()


async def _idle_after(service: Service, question: Callable[[Service], Awaitable[T]]) -> T:
    try:
        return await question(service)
    finally:
        while service.readiness.in_flight:
            await asyncio.sleep(0.001)


def serve(
    store: Store, publish: Callable[[SessionTranscribed], None], transcriber: Transcriber, workspace: Path
) -> Service:
    """A service that has just started."""
    store = RememberingStore(store)
    readiness = Readiness(CAPACITY)
    service = Service(
        readiness,
        transcriber._metrics,
        workspace=workspace,
        store=store,
        combiner=Combiner(store, publish),
        restitch=True,
    )
    service.transcriber = transcriber
    readiness.phase = Phase.READY
    return service


@dataclass
class Door:
    """`ServerClient` without HTTP between: one caller's life at the door of a house."""

    house: House
    life: Life
    url: str = "memory://server"

    def health(self, limits: Limits) -> Health:
        try:
            return self.life.call("GET /health", lambda: Health(ready=True, alive=True), ConnectionError)
        except ConnectionError:
            return Health(ready=False, alive=False, reason="no answer")

    def work(self, limits: Limits) -> Work | None:
        """Nothing is in flight when this server answers; how much it has done so far, nobody here goes by."""
        try:
            return self.life.call("GET /metrics", lambda: Work(ended=0, in_flight=0), ConnectionError)
        except ConnectionError:
            return None

    def transcribe(
        self, job: Job, limits: Limits, *, route: str, wait: bool = True, new: bool = False, alone: bool = False
    ) -> Answer:
        assert wait  # no scene has audio that long

        async def question(service: Service) -> Answer:
            await asyncio.shield(service.start_job(job, route, new=new, alone=alone))  # type: ignore[arg-type]
            return Answer(Said.DONE, 200)

        return self._ask("POST /transcribe-s3", question)

    def transcribe_session(self, what: Sequence[Job] | str, limits: Limits, *, route: str, wait: bool = True) -> Answer:
        async def question(service: Service) -> Answer:
            named = (
                what[0].key
                if not isinstance(what, str)
                else what.partition("//")[2].partition("/")[2] + "metadata.json"
            )
            session = parse_key(named).session  # type: ignore[union-attr]
            jobs, options = ([], Options()) if isinstance(what, str) else (what, what[0].options)
            flight = service.start_session(session, jobs, options, route)  # type: ignore[arg-type]
            if not wait:
                return Answer(Said.ACCEPTED, 202)
            await asyncio.shield(flight)
            return Answer(Said.DONE, 200)

        return self._ask("POST /transcribe-session", question)

    def _ask(self, name: str, question: Callable[[Service], Awaitable[Answer]]) -> Answer:
        try:
            return self.life.call(name, lambda: self.house.ask(question), ConnectionError)
        except Refused as error:
            return Answer(Said.BUSY, error.status, error.type, error.detail, error.retry_after)
        except PermanentError as error:
            return Answer(Said.REFUSED, error.status, error.type, error.message)
        except (TransientError, ConnectionError) as error:
            return Answer(Said.FAILED, message=type(error).__name__)  # 5xx, or no answer at all
        except Exception as error:
            self.life.plan.unexpected.append(f"the server failed of {error!r}")
            return Answer(Said.FAILED, message=type(error).__name__)


@cache
def reading() -> Reading:
    """One for all servers of this process, as warm as a model."""
    return Reading(held_engine(Reader()), None, ServerMetrics(), detectors=1, on_fault=lambda: None)  # type: ignore[arg-type]
