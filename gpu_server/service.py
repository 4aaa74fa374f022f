"""The server's work: jobs with slots, one flight per input, results in S3 whether or not the caller still listens."""

import asyncio
import time
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from aws_lambda_powertools import Logger

from gpu_server.engines import UnknownLanguage, UnsupportedOption
from gpu_server.metrics import ServerMetrics
from gpu_server.problems import Refused
from gpu_server.readiness import Phase, Readiness
from gpu_server.recordings import Recordings
from gpu_server.transcriber import Route, Transcriber
from shared.chunk_writer import Written, write_chunk
from shared.combine import Combiner
from shared.errors import PermanentError, RefusedKey
from shared.jobs import Job, Options
from shared.keys import ChunkKey, session_of
from shared.outcomes import HEADER_MISSING, read_failure, read_outcome, record_failure
from shared.store import Store
from shared.transcript import ObjectRef, Transcript

T = TypeVar("T")
logger = Logger(service="gpu-server", child=True)

# Not the audio's fault: its header may arrive later, and what a caller asked for is that caller's to change.
UNRECORDED = frozenset({HEADER_MISSING, UnknownLanguage.type, UnsupportedOption.type})


@dataclass(frozen=True)
class Done:
    """How a job from S3 ended, and its transcript if it has one."""

    written: Written
    transcript: Transcript | None


class Service:
    """Belongs to the event loop's thread; the work itself runs in `capacity` threads."""

    def __init__(
        self,
        readiness: Readiness,
        metrics: ServerMetrics,
        *,
        workspace: Path,
        store: Store | None = None,
        combiner: Combiner | None = None,
    ) -> None:
        self.readiness = readiness
        self.metrics = metrics
        self.store = store
        self.transcriber: Transcriber | None = None
        self._combiner = combiner
        self._recordings = Recordings(store) if store else None
        self._workspace = workspace
        self._threads = ThreadPoolExecutor(readiness.capacity, thread_name_prefix="job")
        self._lookups = ThreadPoolExecutor(readiness.capacity, thread_name_prefix="lookup")
        self._flights: dict[str, asyncio.Task[Done]] = {}

    def start_job(self, job: Job, route: Route, *, retry_failed: bool = False) -> asyncio.Task[Done]:
        """The flight of this input: the one that is under way, or a new one, which takes a slot.

        It goes on when its callers leave. Raises Refused when the server is full or not ready.
        """
        if (flight := self._flights.get(job.job_id)) is None:
            self.readiness.take_slot()
            flight = asyncio.create_task(self._in_slot(partial(self._run_job, job, route, retry_failed), "s3"))
            self._flights[job.job_id] = flight
            flight.add_done_callback(partial(self._landed, job))
        return flight

    async def transcribe_file(self, audio: Path, options: Options, *, fill: Callable[[], object]) -> Transcript:
        """A file of one caller's, who alone gets the result. `fill` writes it, once there is a slot for it."""
        self.readiness.take_slot()
        transcriber = self.transcriber
        assert transcriber  # ready servers have one

        def run() -> Transcript:
            fill()
            return transcriber.transcribe(audio, options)

        return await self._in_slot(run, "upload")

    async def look_up(self, call: Callable[[], T]) -> T:
        """A short blocking call, off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._lookups, call)

    async def drain(self, seconds: float) -> None:
        """Take no more work; wait at most `seconds` for what is in flight. The rest is left to queue and retries."""
        if self.readiness.phase is not Phase.BROKEN:
            self.readiness.phase = Phase.DRAINING
        if self._flights:
            await asyncio.wait(self._flights.values(), timeout=seconds)
        self._threads.shutdown(wait=False, cancel_futures=True)
        self._lookups.shutdown(wait=False, cancel_futures=True)
        if self.transcriber:
            self.transcriber.close()

    async def _in_slot(self, call: Callable[[], T], source: str) -> T:
        began = time.monotonic()
        self.metrics.in_flight.inc()
        result = "error"
        try:
            outcome = await asyncio.get_running_loop().run_in_executor(self._threads, call)
            result = outcome.written if isinstance(outcome, Done) else "written"
            return outcome
        except PermanentError as error:
            result = error.type
            raise
        finally:
            seconds = time.monotonic() - began
            self.readiness.free_slot(seconds)
            self.metrics.in_flight.dec()
            self.metrics.jobs.labels(source, result).inc()
            self.metrics.job_seconds.observe(seconds)

    def _landed(self, job: Job, flight: "asyncio.Task[Done]") -> None:
        del self._flights[job.job_id]
        error = None if flight.cancelled() else flight.exception()
        result = str(flight.result().written) if error is None and not flight.cancelled() else type(error).__name__
        logger.info("job ended", extra={"job_id": job.job_id, "key": job.key, "result": result})

    def _run_job(self, job: Job, route: Route, retry_failed: bool) -> Done:
        """The chunk writer's protocol, then the session's, in a thread of our own."""
        assert self.store
        transcribe = partial(self._transcribe, job, route)
        try:
            written = write_chunk(self.store, job, transcribe, workspace=self._workspace, retry_failed=retry_failed)
        except RefusedKey:
            raise
        except PermanentError as error:
            if error.type not in UNRECORDED:
                record_failure(self.store, job, error)
                self._complete_session(job)
            raise
        self._complete_session(job)
        if written is Written.ALREADY_FAILED and (record := read_failure(self.store, job)):
            raise PermanentError(record.message, type=record.type)
        outcome = read_outcome(self.store, job)
        return Done(written, outcome.transcript if outcome.is_for(job) else None)

    def _transcribe(self, job: Job, route: Route, audio: Path) -> Transcript:
        assert self._recordings
        assert self.transcriber
        names = job.audio
        if isinstance(names, ChunkKey):
            self._recordings.complete(names, audio)
        source = ObjectRef(bucket=job.bucket, key=job.key, etag=job.etag, version_id=job.version_id)
        return self.transcriber.transcribe(audio, job.options, source=source, route=route)

    def _complete_session(self, job: Job) -> None:
        session = session_of(job.audio)
        if session and self._combiner:
            self._combiner.combine(session)


async def wait_for(flight: Awaitable[T], seconds: float) -> T:
    """Wait for a flight without owning it. Raises Refused (504) after `seconds`; the work goes on."""
    try:
        return await asyncio.wait_for(asyncio.shield(flight), seconds)
    except TimeoutError:
        raise Refused(
            504, "timeout", f"Not done after {seconds:.0f} s. The work goes on; its result goes to S3."
        ) from None
