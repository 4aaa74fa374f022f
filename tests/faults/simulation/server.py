"""The GPU server: its real service, with its flights, its passes and its protocol, as greenlets of one process.

What it hears is what the audio's bytes say, so a transcript under a wrong name is seen.
"""

import hashlib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from datetime import timedelta
from types import SimpleNamespace
from typing import Any, cast

import httpx

from gpu_server.decoding import Decoded
from gpu_server.listener import Seat
from gpu_server.problems import Refused
from gpu_server.readiness import Phase, Readiness
from gpu_server.remembering import RememberingStore
from gpu_server.service import Service
from gpu_server.transcriber import EngineBroken, EngineOverloaded, Pass, Route
from shared.chunk_writer import fetch
from shared.combine import Combiner
from shared.errors import STORE_UNAVAILABLE, InputRefused, PermanentError, TransientError
from shared.jobs import Job, Options
from shared.keys import ChunkKey, ManifestKey, parse_audio_key, parse_key
from shared.outcomes import HEADER_MISSING
from shared.server import Answer, Health, Limits, Said, read_answer
from shared.store import Store
from shared.transcript import ObjectRef, Segment, Transcript, Word
from tests.fakes import EPOCH
from tests.faults.simulation import stage
from tests.faults.simulation.faults import Faults
from tests.faults.simulation.ports import SimStore
from tests.faults.simulation.scheduler import Crash, Process, Scheduler
from tests.faults.simulation.stage import QUIET, Folder, Stage, Track
from tests.faults.simulation.threads import Task

SECONDS = 5.0  # of every chunk that can be heard
BAD, SILENT, HEADLESS, DEADLY = b"bad", b"silent", b"headless", b"deadly"  # what audio bytes may begin with
NOT_MEDIA = "media-not-recognised"
IN_COMPANY = "the server is gone, and had other jobs too"

RESPONSES = {
    "429": httpx.Response(429, headers={"Retry-After": "3"}),
    "503": httpx.Response(503, headers={"Retry-After": "20"}),
    "200 for nothing": httpx.Response(200, text="{}"),
    "500": httpx.Response(500, text="Internal Server Error"),
    "401": httpx.Response(401),
    "404 of a proxy": httpx.Response(404, text="no such route"),
}


def words_of(body: bytes) -> str:
    """What is said in this audio."""
    return "" if body.startswith(SILENT) else f"said {hashlib.md5(body, usedforsecurity=False).hexdigest()[:10]}."


class Ears:
    """`Transcriber`, as far as the service uses it."""

    def __init__(self, world: "ServerWorld") -> None:
        self.world = world
        self.listener = SimpleNamespace(coming=lambda: nullcontext(lambda: None))

    def listen(
        self,
        track: Track,
        options: Options,
        *,
        wanted: Collection[int] | None = None,
        seat: Seat | None = None,
        arrived: Callable[[], None] = lambda: None,
    ) -> list[str]:
        world = self.world
        fault = world.faults.strikes("listen") if world.scheduler.step() else ""
        if fault == "out of memory":
            raise EngineOverloaded(fault)
        if fault == "engine broken":
            world.die()
            raise EngineBroken(fault)
        for place in range(len(track.pieces)) if wanted is None else wanted:
            if track.pieces[place].startswith(DEADLY):
                world.die()
                raise Crash
            world.heard(track.pieces[place], seat is None)
        if world.job_seconds:
            world.scheduler.sleep(world.random.random() * world.job_seconds)
        if fault == "crash after":
            world.die()
            raise Crash
        return [words_of(piece) for piece in track.pieces]

    def transcript(
        self,
        decoded: Decoded,
        recognition: str | None,
        options: Options,
        *,
        source: ObjectRef | None = None,
        route: Route | None = None,
        pass_: Pass | None = None,
    ) -> Transcript:
        text = recognition or ""
        word = Word(word=text, start=0.5, end=1.5, score=0.9)
        return Transcript(
            text=text,
            language="en" if text else None,
            duration=decoded.duration,
            segments=(Segment(id=0, start=0.5, end=1.5, text=text, words=(word,)),) if text else (),
            source=source,
            model="tiny.en",
            engine="simulated",
            route=route,
            pass_=pass_,
            created_at=EPOCH + timedelta(seconds=self.world.scheduler.now),
            reason=None if text else "no-speech",
        )


class SimChunks:
    """`Chunks` whose media are their own samples; one that lacks its header needs a chunk 1."""

    def __init__(self, store: Store, *_: object, **__: object) -> None:
        self._store = store

    def fetch(self, job: Job, folder: Folder) -> Folder | None:
        media = folder / "media"
        return media if fetch(self._store, job, cast(Any, media)) else None

    def decode(
        self,
        job: Job,
        media: Folder,
        transcriber: Ears,
        folder: Folder,
        *,
        etags: Mapping[str, str] | None = None,
    ) -> tuple[Decoded, Folder]:
        files = transcriber.world.stage.files
        body = files.pop(media)
        if body.startswith(BAD):
            raise InputRefused("not a supported audio format", type=NOT_MEDIA)
        if not body:
            raise InputRefused("the file has no bytes", type="media-empty")
        names = job.audio
        if body.startswith(HEADLESS) and isinstance(names, ChunkKey):
            known = etags or {}
            if not any(key in known or self._store.head(key) for key in names.sibling_keys(1)):
                raise InputRefused("its header is in chunk 1", type=HEADER_MISSING)
        pcm = folder / "pcm"
        files[pcm] = body
        return Decoded(samples=int(SECONDS * 16_000)), pcm

    def before(self, *_: object) -> None: ...


@dataclass
class ServerWorld:
    """The machine that the server runs on. `heard` is told of every transcription: of what, and if with neighbours.

    `failed`: of every try that came to nothing, or whose answer may be a lie, by key and ETag.
    """

    stage: Stage
    scheduler: Scheduler
    faults: Faults
    store: SimStore
    heard: Callable[[bytes, bool], None]
    failed: Callable[[tuple[str, str]], None]
    new_combiner: Callable[[Store], Combiner]
    capacity: int
    restitch: bool
    job_seconds: float

    def __post_init__(self) -> None:
        self.random = self.faults.random
        self.process = Process("server")
        self.process.alive = False
        self.service: Service
        self.deaths = 0
        self._flights: list[Task] = []

    def start(self) -> None:
        if self.process.alive:
            return
        self.process = self.stage.server = Process("server")
        readiness = Readiness(self.capacity)
        readiness.phase = Phase.READY
        store = RememberingStore(self.store)
        self.service = Service(
            readiness,
            cast(Any, QUIET),
            workspace=cast(Any, Folder("/")),
            store=cast(Any, store),
            combiner=self.new_combiner(store),
            restitch=self.restitch,
        )
        self.service.transcriber = cast(Any, Ears(self))

    def die(self, seconds: float = 3.0) -> None:
        """A supervisor starts it anew, `seconds` later."""
        if self.process.alive:
            self.deaths += 1
            in_flight = self.service.readiness.in_flight
            self.scheduler.kill(self.process)
            self.scheduler.at(self.scheduler.now + seconds, self.start)
            flights, self._flights = self._flights, []
            for flight in flights:
                flight.fail(ConnectionError(IN_COMPANY if in_flight > 1 else "the server is gone"))

    def ask(self, start: Callable[[Service], Task], limits: Limits, *, wait: bool) -> Answer:
        """One POST, from its caller's side."""
        fault = self.faults.strikes("post") if self.scheduler.step() else ""
        if fault in RESPONSES:
            return read_answer(RESPONSES[fault])
        if fault == "never answers":
            self.scheduler.sleep(limits.total)
            return Answer(Said.FAILED, message=fault)
        if not self.process.alive or fault == "no connection":
            return Answer(Said.UNTRIED, message="no connection")
        try:
            flight = start(self.service)
        except Refused as error:
            said = Said.BUSY if error.status in (429, 503) else Said.FAILED
            return Answer(said, error.status, error.type, error.detail, error.retry_after)
        except PermanentError as error:
            return Answer(Said.REFUSED, error.status, error.type, error.message)
        if wait:
            self._flights.append(flight)
            if not flight.wait(limits.total):
                return Answer(Said.FAILED, 504, "timeout", "not done in time")
        if fault == "crash after":
            self.faults.crash()
        if fault == "the answer is lost":
            return Answer(Said.FAILED, message=fault)
        return _answer(flight, wait=wait)


def _answer(flight: Task, *, wait: bool) -> Answer:
    """As the app says it, and the client understands it."""
    if not wait:
        return Answer(Said.ACCEPTED, 202)
    error = flight.exception()
    match error:
        case None:
            return Answer(Said.DONE, 200)
        case PermanentError():
            said = Said.NOT_YET if error.type == HEADER_MISSING else Said.REFUSED
            return Answer(said, error.status, error.type, error.message)
        case TransientError():
            return Answer(Said.UNTRIED, 502, STORE_UNAVAILABLE, str(error))
        case ConnectionError():
            return Answer(Said.FAILED, message=str(error))
        case _:
            stage.unexpected(error)
            return Answer(Said.FAILED, 500, "internal", "something failed")


class SimClient:
    """`ServerClient` without HTTP."""

    url = "http://server"

    def __init__(self, world: ServerWorld) -> None:
        self._world = world

    def health(self, limits: Limits) -> Health:
        world = self._world
        fault = world.faults.strikes("health") if world.scheduler.step() else ""
        if fault == "crash after":
            world.faults.crash()
        if fault or not world.process.alive:
            return Health(ready=False, alive=fault == "says saturated", reason=fault or "no answer")
        reason = world.service.readiness.reason
        return Health(ready=reason is None, alive=reason in (None, "saturated"), reason=reason or "")

    def transcribe(
        self, job: Job, limits: Limits, *, route: Route, wait: bool = True, new: bool = False, alone: bool = False
    ) -> Answer:
        asked = Job(bucket=job.bucket, key=job.key, etag=job.etag, options=job.options)

        def start(service: Service) -> Task:
            parse_audio_key(asked.key)
            return cast(Task, service.start_job(asked, route, new=new, alone=alone))

        answer = self._world.ask(start, limits, wait=wait)
        if answer.said in (Said.FAILED, Said.DONE) and answer.message != IN_COMPANY:
            self._world.failed((job.key, job.etag))
        return answer

    def transcribe_session(
        self, what: Sequence[Job] | str, limits: Limits, *, route: Route, wait: bool = True
    ) -> Answer:
        if isinstance(what, str):
            manifest = parse_key(what.removeprefix(f"s3://{self._world.store.bucket}/") + "metadata.json")
            assert isinstance(manifest, ManifestKey)
            session, jobs, options = manifest.session, (), Options()
        else:
            names = what[0].audio
            assert isinstance(names, ChunkKey)
            jobs = tuple(Job(bucket=job.bucket, key=job.key, etag=job.etag, options=job.options) for job in what)
            session, options = names.session, what[0].options

        def start(service: Service) -> Task:
            return cast(Task, service.start_session(session, jobs, options, route))

        return self._world.ask(start, limits, wait=wait)
