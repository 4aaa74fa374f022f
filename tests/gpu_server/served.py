"""A server in the test's own process: real HTTP application, real decoder; a recognizer that can be watched."""

from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from fastapi.testclient import TestClient

from gpu_server.app import create_app
from gpu_server.decode_pool import DecodePool
from gpu_server.metrics import ServerMetrics
from gpu_server.readiness import Phase, Readiness
from gpu_server.service import Service
from gpu_server.settings import ServerSettings
from gpu_server.transcriber import Transcriber
from shared.combine import Combiner, SessionTranscribed
from tests.fakes import MemoryStore
from tests.gpu_server.ears import HeldRecognizer, Reader, held_engine

HELLO = Path(__file__).parents[1] / "data/hello.wav"
KEY = "users/u/audio/sessions/s/chunk-1.webm"
API_KEY = "correct horse"


class Served:
    """A server in this process, its store and its engine."""

    def __init__(
        self,
        store: MemoryStore,
        decoders: DecodePool,
        workspace: Path,
        *,
        recognizer: HeldRecognizer | Reader | None = None,
        **settings: Any,
    ) -> None:
        self.store = store
        self.engine: Any = recognizer or HeldRecognizer()
        self.events: list[SessionTranscribed] = []
        self.faults: list[bool] = []
        values = {"api_key": API_KEY, "audio_bucket": store.bucket, "aws_region": "us-east-2", "max_in_flight": 2}
        self.settings = ServerSettings(**(values | settings))
        self.readiness = Readiness(self.settings.max_in_flight)
        metrics = ServerMetrics()
        self.service = Service(
            self.readiness,
            metrics,
            workspace=workspace,
            store=store,
            combiner=Combiner(store, self.events.append),
            context_seconds=self.settings.live_context,
            restitch=self.settings.session_finish == "restitch",
        )
        self.service.transcriber = Transcriber(
            held_engine(self.engine), decoders, metrics, detectors=1, on_fault=lambda: self.faults.append(True)
        )
        self.readiness.phase = Phase.READY

        @asynccontextmanager
        async def lifespan(app: FastAPI):  # type: ignore[no-untyped-def]
            yield

        self.app = create_app(self.service, self.settings, lifespan=lifespan)
        self.client = TestClient(self.app, raise_server_exceptions=False)

    def post(self, path: str, **arguments: Any) -> Any:
        return self.client.post(path, headers={"X-API-Key": API_KEY}, **arguments)

    def upload(self, body: bytes | None = None) -> Any:
        return self.post("/transcribe", files={"file": ("../../etc/x.m3u8", body or HELLO.read_bytes())})

    def from_s3(self, key: str = KEY, **more: Any) -> Any:
        return self.post("/transcribe-s3", json={"s3_input_path": f"s3://{self.store.bucket}/{key}", **more})
