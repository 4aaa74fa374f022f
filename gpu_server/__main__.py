"""`python -m gpu_server`: wires settings, S3, engine and HTTP together, and decides how the process ends."""

import asyncio
import contextlib
import os
import signal
import sys
import tempfile
import threading
import wave
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import boto3
import uvicorn
from aws_lambda_powertools import Logger
from fastapi import FastAPI

from gpu_server.app import Lifespan, create_app
from gpu_server.decode_pool import DecodePool
from gpu_server.decoding import SAMPLE_RATE, Limits
from gpu_server.engines import EngineError, load_engine
from gpu_server.engines.light import cores
from gpu_server.machine import this_machine
from gpu_server.metrics import ServerMetrics, Snapshots
from gpu_server.readiness import Phase, Readiness
from gpu_server.remembering import RememberingStore
from gpu_server.service import Service
from gpu_server.settings import ServerSettings
from gpu_server.track import whole
from gpu_server.transcriber import Transcriber
from shared.bus import publisher
from shared.combine import Combiner
from shared.errors import SettingsError
from shared.jobs import Options
from shared.settings import load
from shared.store import CLIENT_CONFIG, S3Store
from shared.telemetry import Observe, Pulse, Telemetry, counted, unobserved

EXIT_SETTINGS = 2
EXIT_START = 3  # no model; or uvicorn's own, when the port is taken
EXIT_ENGINE = 70  # sysexits' EX_SOFTWARE: the supervisor is to restart us
NICE = 5  # of recognizer and decoders: a third of the loop's share where both want the same core

logger = Logger(service="gpu-server", stream=sys.stderr)


class Exit:
    """The exit status, set by whatever ends the process."""

    status = 0

    def now(self, status: int) -> None:
        self.status = status
        os.kill(os.getpid(), signal.SIGTERM)


def main() -> int:
    try:
        settings = load(ServerSettings)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return EXIT_SETTINGS
    leave = Exit()
    # uvicorn raises the signal that stopped it once more when it is done: then we leave, with our own status.
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: sys.exit(leave.status))
    with tempfile.TemporaryDirectory(prefix="transcription-") as workspace:
        telemetry = Telemetry(settings.queue_prefix) if settings.metrics == "emf" else None
        service = _service(settings, Path(workspace), telemetry.observe if telemetry else unobserved)
        app = create_app(service, settings, lifespan=_lifespan(service, settings, leave))
        pulse = Pulse(_beat(service, telemetry)) if telemetry else contextlib.nullcontext()
        with pulse:
            try:
                uvicorn.run(
                    app,
                    host=settings.fast_api_host,
                    port=settings.fast_api_port,
                    timeout_graceful_shutdown=int(settings.drain_timeout / 2),  # for callers; then for work without one
                    timeout_keep_alive=5,
                    server_header=False,
                    log_level="warning",
                )
            except SystemExit as left:  # the handler's, above; or uvicorn's
                return int(left.code or 0)
    return leave.status


def _beat(service: Service, telemetry: Telemetry) -> Callable[[], None]:
    snapshots = Snapshots(
        service.metrics,
        telemetry.observe,
        machine=this_machine(),
        is_ready=lambda: service.readiness.phase is Phase.READY,
    )

    def beat() -> None:
        snapshots()
        telemetry.flush()

    return beat


def _service(settings: ServerSettings, workspace: Path, observe: Observe) -> Service:
    store = combiner = None
    if settings.audio_bucket:
        s3 = boto3.client("s3", region_name=settings.aws_region, config=CLIENT_CONFIG)
        events = boto3.client("events", region_name=settings.aws_region, config=CLIENT_CONFIG)
        store = RememberingStore(S3Store(s3, settings.audio_bucket, expected_owner=settings.expected_bucket_owner))
        combiner = Combiner(store, counted(publisher(events, settings.event_bus_name), observe))
    readiness = Readiness(settings.max_in_flight)
    return Service(
        readiness,
        ServerMetrics(),
        workspace=workspace,
        store=store,
        combiner=combiner,
        context_seconds=settings.live_context,
        restitch=settings.session_finish == "restitch",
    )


def _lifespan(service: Service, settings: ServerSettings, leave: Exit) -> Lifespan:
    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        loading = asyncio.create_task(_load(service, settings, leave))
        yield
        loading.cancel()
        await service.drain(settings.drain_timeout / 2)

    return lifespan


async def _load(service: Service, settings: ServerSettings, leave: Exit) -> None:
    """Load the model while /health says so. A server without its model is of no use to anyone: it exits."""
    try:
        service.transcriber = await asyncio.to_thread(_transcriber, service, settings, leave)
    except Exception as error:  # whatever it is, this process is of no use to anyone
        known = isinstance(error, EngineError)
        logger.error("the server cannot work", extra={"reason": str(error)}, exc_info=not known)
        service.readiness.phase = Phase.BROKEN
        leave.now(EXIT_START)
        return
    service.readiness.phase = Phase.READY
    engine = service.transcriber.engine
    logger.info("ready", extra={"model": engine.model, "engine": engine.name, "device": engine.device})


def _be_patient() -> None:
    """This thread, and all threads and processes that come of it, leave the processor to the loop that answers callers.

    On Linux a thread has a priority of its own: https://man7.org/linux/man-pages/man2/setpriority.2.html
    """
    if sys.platform == "linux":
        thread = threading.get_native_id()
        os.setpriority(os.PRIO_PROCESS, thread, os.getpriority(os.PRIO_PROCESS, thread) + NICE)


def _transcriber(service: Service, settings: ServerSettings, leave: Exit) -> Transcriber:
    _be_patient()
    limits = Limits(max_seconds=settings.max_audio_seconds)
    decoders = DecodePool(workers=settings.decoders, limits=limits, timeout_s=settings.decode_timeout)
    decoders.warm_up()
    engine = load_engine(
        settings.engine,
        model=settings.whisper_model,
        device=settings.device,
        compute_type=settings.compute_type,
        threads=settings.threads,
        beam_size=settings.beam_size,
        vad=settings.vad,
        align_model_dir=settings.align_model_dir,
    )

    def broken() -> None:
        if service.readiness.phase is not Phase.BROKEN:
            service.readiness.phase = Phase.BROKEN
            leave.now(EXIT_ENGINE)

    transcriber = Transcriber(engine, decoders, service.metrics, detectors=cores(), on_fault=broken)
    _check(transcriber)
    return transcriber


def _check(transcriber: Transcriber) -> None:
    """Put a second of silence through every stage: a server that cannot do that must not take anybody's job."""
    with tempfile.TemporaryDirectory() as folder:
        media, pcm = Path(folder, "media"), Path(folder, "pcm")
        with wave.open(str(media), "wb") as audio:
            audio.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
            audio.writeframes(bytes(2 * SAMPLE_RATE))
        transcriber.decode(media, pcm)
        transcriber.listen(whole(pcm), Options())
        # Silence is not heard by the recognizer: it gets some by itself.
        transcriber.listener.warm_up()


if __name__ == "__main__":
    status = main()
    with contextlib.suppress(Exception):  # whatever a library made of the streams
        sys.stdout.flush()
        sys.stderr.flush()
    # Not sys.exit: that would wait for threads whose work is given up already.
    os._exit(status)
