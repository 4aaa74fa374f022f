"""`make bench`: our server beside stock WhisperX and a plain server, in one run, on the same machine and speech."""

import importlib.util
import os
import signal
import sys
import tempfile
from pathlib import Path
from typing import Annotated, Literal

import ctranslate2
import typer
from rich.console import Console

from bench import about, random_weights, report, speech
from bench.children import Model
from bench.random_weights import SHAPES
from bench.run import LONG, WAYS, Bench
from bench.targets import targets
from gpu_server.engines import ModelMissing, models

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench/results"
MODELS = ROOT / ".local/bench"
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)


def main(
    engine: Annotated[Literal["auto", "whisperx", "faster-whisper"], typer.Option(help="our server's engine")] = "auto",
    model: Annotated[str, typer.Option(help="a model's name, or a folder with one")] = "tiny.en",
    shape: Annotated[
        str | None,
        typer.Option("--random-weights", help=f"a model of this shape with random weights: {', '.join(SHAPES)}"),
    ] = None,
    tokens: Annotated[int, typer.Option("--random-tokens", help="how many tokens it says for a window")] = 20,
    device: Annotated[Literal["auto", "cpu", "cuda"], typer.Option(help="where all ways run")] = "auto",
    rows: Annotated[str, typer.Option(help=f"only these, with commas: {', '.join(WAYS)}")] = ",".join(WAYS),
    minutes: Annotated[float | None, typer.Option(help="of speech, again where there is less; else all")] = None,
    in_flight: Annotated[str, typer.Option(help="uploads at once, with commas; on a GPU also 64")] = "",
    long: Annotated[bool, typer.Option("--long", help="also the memory for a file of 3 hours: takes minutes")] = False,
    results: Annotated[Path, typer.Option(help="the folder for bench.md, bench.png and bench.json")] = RESULTS,
) -> None:
    """Measure, and say what was reached."""
    wanted = _ways(rows) | ({LONG} if long else set())
    if device == "auto":
        device = "cuda" if ctranslate2.get_cuda_device_count() else "cpu"
    chosen: str = engine
    if engine == "auto":
        chosen = "whisperx" if importlib.util.find_spec("whisperx") else "faster-whisper"
    if chosen == "faster-whisper":
        wanted.discard("light")  # the same once more
    with tempfile.TemporaryDirectory(prefix="bench-") as temporary:
        folder = Path(temporary)
        try:
            with console.status("preparing speech and model"):
                path = random_weights.build(shape, MODELS, tokens=tokens) if shape else models.resolve(model)
                recordings = speech.prepare(folder / "speech", minutes=minutes)
        except (ModelMissing, ValueError) as error:
            raise typer.BadParameter(str(error)) from error
        used = Model(str(path), device, "float16" if device == "cuda" else "int8", chosen)
        bench = Bench(
            used,
            recordings,
            folder,
            console,
            in_flight=_numbers(in_flight) or ((1, 4, 16, 64) if device == "cuda" else (1, 4, 16)),
            with_wer=shape is None,
        )
        bench.run(wanted)
    notes = about.notes(used, f"{shape}, random weights" if shape else models.display_name(model), recordings)
    if shape:
        notes.append(f"random weights say {tokens} tokens for every window, long or short; the words mean nothing")
    found = targets({row.id: row for row in bench.rows}, with_wer=shape is None)
    report.show(console, bench.rows, found)
    report.write(results, bench.rows, found, notes)
    console.print(f"\nin {os.path.relpath(results)}: bench.md, bench.png, bench.json")
    console.print(report.headline({row.id: row for row in bench.rows}), style="bold", soft_wrap=True)


def _ways(names: str) -> set[str]:
    wanted = {name.strip() for name in names.split(",") if name.strip()}
    if unknown := wanted - {*WAYS, LONG}:
        raise typer.BadParameter(f"no such row: {', '.join(sorted(unknown))}", param_hint="--rows")
    return wanted


def _numbers(text: str) -> tuple[int, ...]:
    return tuple(int(number) for number in text.split(",") if number.strip())


def _interrupt(number: int, frame: object) -> None:
    """Clean up, once: further signals must not cut that short."""
    for every in INTERRUPTS:
        signal.signal(every, signal.SIG_IGN)
    raise KeyboardInterrupt


if __name__ == "__main__":
    for each in INTERRUPTS:
        signal.signal(each, _interrupt)
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
