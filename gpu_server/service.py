"""The server's work: jobs with slots, one flight per input, results in S3 whether or not the caller still listens."""

import asyncio
import tempfile
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from aws_lambda_powertools import Logger

from gpu_server.chunks import Chunks
from gpu_server.listener import Seat
from gpu_server.metrics import ServerMetrics
from gpu_server.problems import Refused
from gpu_server.readiness import Phase, Readiness
from gpu_server.session_outputs import Outputs
from gpu_server.session_pass import UNRECORDED, Ended, SessionPass, jobs_in
from gpu_server.track import join, whole
from gpu_server.transcriber import Route, Transcriber
from shared.chunk_writer import Written, write_chunk
from shared.combine import Combiner, Status
from shared.errors import PermanentError, RefusedKey, SourceMissing
from shared.jobs import Job, Options
from shared.keys import ChunkKey, Session, session_of
from shared.outcomes import NOTHING, read_failure, read_outcome, record_failure, source_of
from shared.store import Store
from shared.transcript import Transcript

REMEMBERED = 1000  # duplicates of an event come within seconds

T = TypeVar("T")
logger = Logger(service="gpu-server", child=True)


@dataclass(frozen=True)
class Done:
    """How a job from S3 ended, and its transcript if it has one.

    `betterable`: it completed its session, of which chunks were heard alone.
    """

    written: Written
    transcript: Transcript | None
    betterable: bool = False


class Service:
    """Belongs to the event loop's thread; the work itself runs in `capacity` threads.

    context_seconds: how much of a session's audio before a lone chunk is heard with it.
    restitch: whether a session whose chunks came one by one is heard once more as a whole when it is complete.
    """

    def __init__(
        self,
        readiness: Readiness,
        metrics: ServerMetrics,
        *,
        workspace: Path,
        store: Store | None = None,
        combiner: Combiner | None = None,
        context_seconds: float = 0.0,
        restitch: bool = False,
    ) -> None:
        self.readiness = readiness
        self.metrics = metrics
        self.store = store
        self.transcriber: Transcriber | None = None
        self._combiner = combiner
        self._chunks = Chunks(store, metrics, context_seconds=context_seconds) if store else None
        self._restitch = restitch
        self._workspace = workspace
        self._threads = ThreadPoolExecutor(readiness.capacity, thread_name_prefix="job")
        self._lookups = ThreadPoolExecutor(readiness.capacity, thread_name_prefix="lookup")
        self._flights: dict[object, asyncio.Task[Any]] = {}
        self._ended: deque[object] = deque(maxlen=REMEMBERED)  # flights' names

    def start_job(
        self, job: Job, route: Route, *, retry_failed: bool = False, new: bool = False, alone: bool = False
    ) -> "asyncio.Task[Done]":
        """The flight of this input: the one that is under way, or a new one, which takes a slot.

        It goes on when its callers leave. Raises Refused when the server is full or not ready.

        new: the caller has just seen that nothing lies at the job's output keys. If that is no longer so, the
            conditional write finds out; a job that has just ended here is looked for all the same.
        alone: only with nothing beside it, so that a server that dies of it dies of nothing else.
        """
        seen = NOTHING if new and job.job_id not in self._ended else None
        write = partial(write_chunk, seen=seen, retry_failed=retry_failed)
        return self._fly(job.job_id, partial(self._job_flight, job, route, write), job.key, alone=alone)

    def start_session(
        self, session: Session, jobs: Sequence[Job], options: Options, route: Route, *, retry_failed: bool = False
    ) -> "asyncio.Task[list[Ended]]":
        """The stitched pass over these chunks; no jobs means all that are in S3. Raises Refused as `start_job`."""
        name = (session, frozenset(job.job_id for job in jobs))
        run = partial(self._run_session, session, jobs, options, route, retry_failed)
        return self._fly(name, lambda: self._in_slot(run, "session"), session.audio_prefix)

    def _fly(
        self, name: object, start: Callable[[], Coroutine[Any, Any, T]], key: str, *, alone: bool = False
    ) -> "asyncio.Task[T]":
        if (flight := self._flights.get(name)) is None or alone:
            self.readiness.take_slot(alone=alone)
            flight = asyncio.create_task(start())
            self._flights[name] = flight
            flight.add_done_callback(partial(self._landed, name, key))
        return flight

    async def _job_flight(self, job: Job, route: Route, write: Callable[..., Written]) -> Done:
        done = await self._in_slot(partial(self._run_job, job, route, write), "s3")
        session = session_of(job.audio)
        if session and self._restitch and done.betterable:
            # A full server has better things to do; the next batch run betters the session.
            with suppress(Refused):
                self.start_session(session, [], Options(), route)
        return done

    async def transcribe_file(self, audio: Path, options: Options, *, fill: Callable[[], object]) -> Transcript:
        """A file of one caller's, who alone gets the result. `fill` writes it, once there is a slot for it."""
        self.readiness.take_slot()
        transcriber = self._ready_transcriber()

        def run() -> Transcript:
            with transcriber.listener.coming() as arrived, tempfile.TemporaryDirectory(dir=self._workspace) as folder:
                fill()
                pcm = Path(folder, "pcm")
                decoded = transcriber.decode(audio, pcm)
                heard = transcriber.listen(whole(pcm), options, arrived=arrived)[0] if decoded.samples else None
                return transcriber.transcript(decoded, heard, options)

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

    def _ready_transcriber(self) -> Transcriber:
        assert self.transcriber  # ready servers have one
        return self.transcriber

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

    def _landed(self, name: object, key: str, flight: "asyncio.Task[Any]") -> None:
        if self._flights.get(name) is flight:
            del self._flights[name]
        self._ended.append(name)
        error = None if flight.cancelled() else flight.exception()
        why = {"reason": str(error)} if error else {}  # there may be nobody who asked, and is told
        logger.info("job ended", extra={"key": key, "result": type(error).__name__ if error else "done"} | why)

    def _run_job(self, job: Job, route: Route, write: Callable[..., Written]) -> Done:
        """The chunk writer's protocol, then the session's, in a thread of our own."""
        assert self.store
        made: list[Transcript] = []

        def transcribe(media: Path) -> Transcript:
            made.append(self._transcribe(job, route, arrived, media))
            return made[-1]

        with self._ready_transcriber().listener.coming() as arrived:
            try:
                written = write(self.store, job, transcribe, workspace=self._workspace)
            except RefusedKey:
                raise
            except PermanentError as error:
                if error.type not in UNRECORDED:
                    record_failure(self.store, job, error)
                    self._complete(session_of(job.audio))
                raise
        betterable = self._complete(session_of(job.audio)) and written is Written.WRITTEN
        if written is Written.ALREADY_FAILED and (record := read_failure(self.store, job)):
            raise PermanentError(record.message, type=record.type)
        if written is Written.WRITTEN:
            return Done(written, made[-1], betterable)
        outcome = read_outcome(self.store, job)
        return Done(written, outcome.transcript if outcome.is_for(job) else None, betterable)

    def _transcribe(self, job: Job, route: Route, arrived: Callable[[], None], media: Path) -> Transcript:
        """A file, or a chunk on its own: heard with what came before it, if that is wanted."""
        assert self._chunks
        transcriber = self._ready_transcriber()
        names = job.audio
        with tempfile.TemporaryDirectory(dir=self._workspace) as folder:
            own, context = Path(folder, "own"), Path(folder, "context")
            own.mkdir()
            context.mkdir()
            decoded, pcm = self._chunks.decode(job, media, transcriber, own)
            recognition = None
            if decoded.samples:
                track, seat = whole(pcm), None
                if isinstance(names, ChunkKey):
                    seat = Seat(names.session, names.index)
                    if before := self._chunks.before(names, transcriber, context):
                        track = join(Path(folder, "track"), [before, pcm])
                wanted = [len(track.pieces) - 1]
                recognition = transcriber.listen(track, job.options, wanted=wanted, seat=seat, arrived=arrived)[-1]
        return transcriber.transcript(
            decoded,
            recognition,
            job.options,
            source=source_of(job),
            route=route,
            pass_="live" if isinstance(names, ChunkKey) else None,
        )

    def _run_session(
        self, session: Session, jobs: Sequence[Job], options: Options, route: Route, retry_failed: bool
    ) -> list[Ended]:
        assert self.store
        assert self._chunks
        outputs = Outputs(self.store, session)
        jobs = jobs or jobs_in(self.store, session, options, outputs)
        if not jobs:
            raise SourceMissing(f"there are no chunks under {session.audio_prefix}")
        stitched = SessionPass(
            store=self.store,
            outputs=outputs,
            chunks=self._chunks,
            transcriber=self._ready_transcriber(),
            workspace=self._workspace,
            route=route,
            retry_failed=retry_failed,
        )
        ended = stitched.run(session, jobs)
        self._complete(session)
        return ended

    def _complete(self, session: Session | None) -> bool:
        """Whether the session is complete now and a stitched pass would better it."""
        if session is None or self._combiner is None:
            return False
        combined = self._combiner.combine(session)
        return combined.status is Status.COMPLETE and combined.live > 0


async def wait_for(flight: Awaitable[T], seconds: float) -> T:
    """Wait for a flight without owning it. Raises Refused (504) after `seconds`; the work goes on."""
    try:
        return await asyncio.wait_for(asyncio.shield(flight), seconds)
    except TimeoutError:
        raise Refused(
            504, "timeout", f"Not done after {seconds:.0f} s. The work goes on; its result goes to S3."
        ) from None
