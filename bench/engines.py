"""`make bench`: the engines on real speech, whole and in 5-second chunks, beside WhisperX as its README uses it.

One run each, one after the other, same machine, same weights (tiny.en, int8). Decoding is not counted: it is the same
for all. The table goes to bench/results/engines.md; the last line printed is the headline.
"""

import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import jiwer
import numpy as np
import whisperx
from rich.console import Console
from rich.table import Table

from cli.demo import NORMALIZE
from gpu_server.decode_pool import load_pcm
from gpu_server.decoding import SAMPLE_RATE, Limits, decode
from gpu_server.engines import Audio, Options, load_engine, models

ROOT = Path(__file__).resolve().parents[1]
SAMPLES = [ROOT / "tests/data/session-a", ROOT / "tests/data/session-b"]
RESULT = ROOT / "bench/results/engines.md"

Recognize = Callable[[Audio], str]


@dataclass(frozen=True)
class Row:
    """`speed`: audio seconds per second. `latency`: median seconds a call."""

    engine: str
    way: str
    speed: float
    latency: float
    wer: float


def main() -> None:
    recognizers = {
        "stock WhisperX": stock_whisperx(),
        "whisperx": ours("whisperx"),
        "faster-whisper": ours("faster-whisper"),
    }
    rows = [
        measure(name, way, recognize, pattern)
        for way, pattern in (("5 s chunks", "chunk-*.webm"), ("whole", "whole.opus"))
        for name, recognize in recognizers.items()
    ]
    show(rows)


def stock_whisperx() -> Recognize:
    model = whisperx.load_model(str(models.resolve("tiny.en")), "cpu", compute_type="int8", language="en")
    return lambda audio: " ".join(part["text"].strip() for part in model.transcribe(audio, batch_size=8)["segments"])


def ours(kind: str) -> Recognize:
    engine = load_engine(kind, model="tiny.en", device="cpu", compute_type="int8")  # type: ignore[arg-type]
    return lambda audio: engine.transcribe(audio, Options(language="en")).text


def measure(name: str, way: str, recognize: Recognize, pattern: str) -> Row:
    recognize(np.zeros(SAMPLE_RATE, np.float32))  # warm
    seconds, audio_seconds, errors, words = [], 0.0, 0.0, 0
    for folder in SAMPLES:
        texts = []
        for path in sorted(folder.glob(pattern)):
            audio = samples(path)
            began = time.perf_counter()
            texts.append(recognize(audio))
            seconds.append(time.perf_counter() - began)
            audio_seconds += len(audio) / SAMPLE_RATE
        said = " ".join((folder / "text.txt").read_text().split())
        count = len(said.split())
        errors += jiwer.wer(said, " ".join(texts), NORMALIZE, NORMALIZE) * count
        words += count
    return Row(name, way, audio_seconds / sum(seconds), statistics.median(seconds), errors / words)


def samples(path: Path) -> Audio:
    with tempfile.TemporaryDirectory() as folder:
        pcm = Path(folder, "pcm")
        decode(path, pcm, limits=Limits())
        return load_pcm(pcm)


def show(rows: list[Row]) -> None:
    stock = {row.way: row for row in rows if row.engine == "stock WhisperX"}
    head = ("engine", "audio", "x real time", "vs stock", "seconds a call", "WER")
    lines = [
        (
            row.engine,
            row.way,
            f"{row.speed:.1f}",
            f"{row.speed / stock[row.way].speed:.2f}",
            f"{row.latency:.2f}",
            f"{row.wer:.1%}",
        )
        for row in rows
    ]
    table = Table(*head, box=None)
    for line in lines:
        table.add_row(*line)
    Console(width=100).print(table)
    markdown = ["| " + " | ".join(line) + " |" for line in (head, ("---",) * len(head), *lines)]
    note = f"\n\ntiny.en, int8, {platform.machine()}, CPU; one run of `make bench`.\n"
    RESULT.write_text("\n".join(markdown) + note)
    best = max((row for row in rows if row.way == "5 s chunks"), key=lambda row: row.speed)
    print(  # noqa: T201
        f"5-second chunks: {best.engine} {best.speed:.1f}x real time, "
        f"{best.speed / stock['5 s chunks'].speed:.2f}x stock WhisperX, WER {best.wer:.1%}"
    )


if __name__ == "__main__":
    main()
