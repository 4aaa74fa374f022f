"""Stock WhisperX in a process of its own, used as its README does; PyAV decodes, where it starts an ffmpeg."""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import whisperx

from bench import speech
from bench.children import Model, Recognize, child_main

BATCH_SIZE = 8


@contextmanager
def load(model: Model) -> Iterator[Recognize]:
    pipeline = whisperx.load_model(
        model.path,
        model.device,
        compute_type=model.compute_type,
        language="en",
        threads=os.cpu_count() or 4,
    )

    def recognize(file: Path) -> str:
        result = pipeline.transcribe(speech.load(file), batch_size=BATCH_SIZE, language="en")
        return " ".join(part["text"].strip() for part in result["segments"])

    yield recognize


if __name__ == "__main__":
    child_main(load)
