"""The HTTP interface: routes that check, hand over to the service, and answer."""

import shutil
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Annotated

from fastapi import Depends, FastAPI, File, Response, UploadFile
from fastapi.responses import JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel

from gpu_server import openapi, problems
from gpu_server.doors import BodyDoor, CrowdDoor, KeyDoor
from gpu_server.fetching import FetchError, fetch_url
from gpu_server.problems import Refused
from gpu_server.requests import (
    ChunkPath,
    ChunkReceipt,
    Healthy,
    Receipt,
    SessionReceipt,
    TranscribeS3,
    TranscribeSession,
    TranscribeUrl,
    split_s3_path,
    upload_options,
)
from gpu_server.service import Done, Service, wait_for
from gpu_server.session_outputs import together
from gpu_server.settings import ServerSettings
from shared.errors import Contended, SourceMissing
from shared.jobs import Job, Options
from shared.keys import OUTPUT_PREFIX, IgnoredKey, ManifestKey, Session, parse_audio_key, parse_key, session_of
from shared.outcomes import JSON, ROUNDS
from shared.store import ABSENT, PreconditionFailed, Store
from shared.transcript import Transcript

Lifespan = Callable[[FastAPI], AbstractAsyncContextManager[None]]
UPLOAD_PATH = "/transcribe"
SESSION_PATH = "/transcribe-session"
SESSION_BYTES = 4 << 20  # 2000 long keys
# Callers may wait for jobs that others asked for already: so there may be more of them than jobs.
WAITING_PER_JOB, WAITING_AT_LEAST = 4, 32


def create_app(service: Service, settings: ServerSettings, *, lifespan: Lifespan) -> FastAPI:
    """The application; `lifespan` loads the model and drains."""
    app = FastAPI(
        title="Smart Transcription Router: WhisperX server",
        description="Speech to text with word times, from an upload, from S3, or from a URL.",
        lifespan=lifespan,
    )
    problems.install(app)
    app.add_middleware(
        BodyDoor,
        limits={UPLOAD_PATH: settings.max_upload_bytes, SESSION_PATH: SESSION_BYTES},
        needs_room=UPLOAD_PATH,
        readiness=service.readiness,
    )
    most = WAITING_PER_JOB * settings.max_in_flight + WAITING_AT_LEAST
    app.add_middleware(CrowdDoor, most=most, readiness=service.readiness)
    app.add_middleware(KeyDoor, keys=settings.keys)  # added last, so it is passed first

    @app.get("/livez", include_in_schema=False)
    async def livez() -> dict[str, str]:
        return {"status": "alive"}

    @app.get("/health", response_model=Healthy, responses={503: {"model": Healthy}})
    async def health() -> JSONResponse:
        """200 when a job would be taken now; 503 with the reason when not."""
        readiness, transcriber = service.readiness, service.transcriber
        reason = readiness.outside
        engine = transcriber.engine if transcriber else None
        body = Healthy(
            status="ready" if reason is None else "unavailable",
            reason=reason,
            device=engine.device if engine else None,
            model=engine.model if engine else None,
            engine=engine.name if engine else None,
            capacity=readiness.capacity,
            in_flight=readiness.in_flight,
        )
        headers = {} if reason is None else {"Retry-After": str(readiness.retry_after)}
        return JSONResponse(body.model_dump(), 200 if reason is None else 503, headers)

    @app.get("/metrics", include_in_schema=False)
    async def metrics() -> Response:
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    @app.post(UPLOAD_PATH, response_model=Transcript, responses=openapi.problems(415, 422))
    async def transcribe(
        file: Annotated[UploadFile, File(description="audio or video, any common format")],
        options: Annotated[Options, Depends(upload_options)],
        folder: Annotated[Path, Depends(_folder)],
    ) -> Response:
        """Transcribe an uploaded file."""
        audio = folder / "audio"
        return _json(await service.transcribe_file(audio, options, fill=partial(_save, file, audio)))

    @app.post(
        "/transcribe-s3",
        response_model=Transcript | Receipt,
        responses={202: {"model": Receipt}, **openapi.problems(403, 404, 415, 422, 502, 504)},
    )
    async def transcribe_s3(request: TranscribeS3) -> Response:
        """Transcribe an object in S3; the transcript goes to S3 too, where the layout says."""
        store = _store(service)
        job, copy_to = await _job(request, store, service)
        flight = service.start_job(
            job, request.route, retry_failed=request.retry_failed, new=request.new, alone=request.alone
        )
        receipt = partial(Receipt, job_id=job.job_id, s3_output_path=f"s3://{job.bucket}/{job.output_key}")
        if not request.wait:
            return JSONResponse(receipt(status="accepted").model_dump(), 202)
        done = await wait_for(flight, settings.request_timeout)
        if copy_to and done.transcript:
            await service.look_up(partial(_copy, store, copy_to, done))
        if request.return_text and done.transcript:
            return _json(done.transcript)
        return JSONResponse(receipt(status=done.written).model_dump())

    @app.post(
        SESSION_PATH,
        response_model=SessionReceipt,
        responses={202: {"model": SessionReceipt}, **openapi.problems(403, 404, 422, 502, 504)},
    )
    async def transcribe_session(request: TranscribeSession) -> Response:
        """Hear chunks of one session together, as if it had never been cut; each gets its own transcript in S3."""
        store = _store(service)
        session, jobs = await _session_jobs(request, store, service)
        flight = service.start_session(
            session, jobs, _options(request), request.route, retry_failed=request.retry_failed
        )
        receipt = partial(
            SessionReceipt,
            session=f"s3://{store.bucket}/{session.audio_prefix}",
            s3_output_path=f"s3://{store.bucket}/{session.output_key}",
        )
        if not request.wait:
            return _json(receipt(status="accepted"), 202)
        ended = await wait_for(flight, settings.request_timeout)
        chunks = tuple(
            ChunkReceipt(
                s3_input_path=f"s3://{one.job.bucket}/{one.job.key}",
                status=one.status,
                type=one.type,
                message=one.message,
            )
            for one in ended
        )
        transcript = None
        if request.return_text:
            transcript = await service.look_up(partial(together, store, session, [one.job for one in ended]))
        return _json(receipt(status="done", chunks=chunks, transcript=transcript))

    @app.post("/transcribe-url", response_model=Transcript, responses=openapi.problems(403, 404, 415, 422, 502))
    async def transcribe_url(request: TranscribeUrl, folder: Annotated[Path, Depends(_folder)]) -> Response:
        """Fetch audio from a URL and transcribe it. Off unless the operator sets ALLOW_URL_FETCH."""
        if not settings.allow_url_fetch:
            raise Refused(403, "url-fetch-off", "Fetching URLs is off on this server (ALLOW_URL_FETCH).")
        audio = folder / "audio"
        fetch = partial(
            fetch_url,
            request.audio_url,
            audio,
            max_bytes=settings.max_upload_bytes,
            timeout_s=settings.url_fetch_timeout,
            allow_hosts=settings.fetch_hosts,
        )
        try:
            return _json(await service.transcribe_file(audio, _options(request), fill=fetch))
        except FetchError as error:
            raise Refused(error.status, error.type, str(error)) from error

    openapi.complete(app, keys=bool(settings.keys))
    return app


async def _folder() -> AsyncIterator[Path]:
    """A folder of the request's own, gone after it."""
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


def _store(service: Service) -> Store:
    if service.store is None:
        raise Refused(403, "no-bucket", "This server has no bucket (AUDIO_BUCKET is not set).")
    return service.store


async def _job(request: TranscribeS3, store: Store, service: Service) -> tuple[Job, str | None]:
    """The job, and the key of the further copy if one is wanted. Raises Refused, RefusedKey, SourceMissing."""
    bucket, key = split_s3_path(request.s3_input_path)
    if bucket != store.bucket:
        raise Refused(403, "bucket-not-allowed", "This server does not serve that bucket.")
    parse_audio_key(key)
    copy_to = _copy_key(request.s3_output_path, store) if request.s3_output_path else None
    if copy_to and not request.wait:
        raise Refused(400, "invalid-request", "s3_output_path needs a caller that waits: leave it out, or wait.")
    etag, size = request.etag, None
    if etag is None:
        service.readiness.check()
        info = await service.look_up(partial(store.head, key))
        if info is None:
            raise SourceMissing(f"There is no object {key} in {bucket}.")
        etag, size = info.etag, info.size
    version_id, options = request.version_id, _options(request)
    return Job(bucket=bucket, key=key, etag=etag, size=size, version_id=version_id, options=options), copy_to


async def _session_jobs(request: TranscribeSession, store: Store, service: Service) -> tuple[Session, tuple[Job, ...]]:
    """The session, and its chunks if any were named. Raises Refused, RefusedKey, SourceMissing."""
    if request.s3_session_path:
        bucket, prefix = split_s3_path(request.s3_session_path)
        manifest = parse_key(f"{prefix.rstrip('/')}/metadata.json")
        if bucket != store.bucket or not isinstance(manifest, ManifestKey):
            raise Refused(400, "invalid-s3-path", "A session's path looks like s3://bucket/users/…/audio/sessions/…/.")
        return manifest.session, ()
    paths = [split_s3_path(chunk.s3_input_path) for chunk in request.chunks]
    names = [parse_audio_key(key) for _, key in paths]
    sessions = {session_of(name) for name in names}
    session = sessions.pop()
    if sessions or session is None or any(bucket != store.bucket for bucket, _ in paths):
        raise Refused(400, "not-one-session", "The chunks must be of one session in this server's bucket.")
    service.readiness.check()
    options = _options(request)

    def job(chunk: ChunkPath, key: str) -> Job:
        etag = chunk.etag
        if etag is None:
            info = store.head(key)
            if info is None:
                raise SourceMissing(f"There is no object {key} in {store.bucket}.")
            etag = info.etag
        return Job(bucket=store.bucket, key=key, etag=etag, version_id=chunk.version_id, options=options)

    def make() -> tuple[Job, ...]:
        return tuple(job(chunk, key) for chunk, (_, key) in zip(request.chunks, paths, strict=True))

    return session, await service.look_up(make)


def _options(request: Options) -> Options:
    """What a request asks of the transcription, without what it is about."""
    return Options.model_validate(request.model_dump(include=set(Options.model_fields)))


def _copy_key(path: str, store: Store) -> str:
    bucket, key = split_s3_path(path)
    stem = key.removeprefix(OUTPUT_PREFIX).removesuffix(".json")
    inside = bucket == store.bucket and key == f"{OUTPUT_PREFIX}{stem}.json"
    if not inside or stem.endswith(".error") or not isinstance(parse_key(stem), IgnoredKey):
        detail = (
            f"A copy may go to s3://{store.bucket}/{OUTPUT_PREFIX}….json, where no other audio's transcript belongs."
        )
        raise Refused(403, "output-not-allowed", detail)
    return key


def _copy(store: Store, key: str, done: Done) -> None:
    """Write the caller's own copy; the newest wins, since nothing depends on it."""
    assert done.transcript
    for _ in range(ROUNDS):
        current = store.head(key)
        try:
            store.put(key, done.transcript.to_json(), content_type=JSON, if_match=current.etag if current else ABSENT)
        except PreconditionFailed:
            continue
        return
    raise Contended(f"the copy {key} kept changing")


def _save(upload: UploadFile, target: Path) -> None:
    with target.open("wb") as file:
        shutil.copyfileobj(upload.file, file, 1 << 20)


def _json(document: BaseModel, status: int = 200) -> Response:
    return Response(document.model_dump_json(exclude_none=True), status, media_type=JSON)
