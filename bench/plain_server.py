"""A plain server, the way of whisper-asr-webservice: faster-whisper with its defaults behind one lock."""

import os
import threading
from typing import Annotated

import uvicorn
from fastapi import FastAPI, File, UploadFile
from faster_whisper import WhisperModel
from faster_whisper.audio import decode_audio

BEAM_SIZE = 5


def create_app(model: WhisperModel) -> FastAPI:
    app = FastAPI()
    lock = threading.Lock()

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ready"}

    @app.post("/asr")
    def asr(audio_file: Annotated[UploadFile, File()]) -> dict[str, str]:
        audio = decode_audio(audio_file.file)
        with lock:
            segments, _ = model.transcribe(audio, language="en", beam_size=BEAM_SIZE)
            text = " ".join(segment.text.strip() for segment in segments)  # here is the work: segments come lazily
        return {"text": text}

    return app


def main() -> None:
    model = WhisperModel(
        os.environ["PLAIN_MODEL"],
        device=os.environ["PLAIN_DEVICE"],
        compute_type=os.environ["PLAIN_COMPUTE_TYPE"],
        cpu_threads=os.cpu_count() or 4,
        local_files_only=True,
    )
    uvicorn.run(
        create_app(model),
        host=os.environ["FAST_API_HOST"],
        port=int(os.environ["FAST_API_PORT"]),
        log_level="warning",
    )


if __name__ == "__main__":
    main()
