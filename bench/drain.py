"""`python -m bench.drain`: a queue of sessions drained by the real worker and server, beside the engine alone.

How busy is the recognizer between the first job and the last, and how much of the bare stitched engine's speed is left?
"""

import itertools
import os
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Annotated

import boto3
import ctranslate2
import typer
from rich.console import Console

from bench import about, ours, random_weights, speech
from bench.__main__ import MODELS, RESULTS
from bench.children import Model, Work, environment, run_child
from bench.measure import Timed, cpu_seconds, peak_bytes
from gpu_server.engines import models
from infra.local import processes
from shared.jobs import Job, Reason
from shared.keys import Session
from shared.queues import MAX_BATCH, Queue

AT_ONCE = 4  # sessions that were recorded at the same time, and that the bare engine hears at the same time
TOKENS = 20  # that random weights say for a window
LOOK_SECONDS = 0.5

console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)


@dataclass(frozen=True)
class Drained:
    """`seconds`: from the first job at the server to the end of the last; `busy`: of them, the recognizer's.

    Both as the worker reports them. `cpu`: processor seconds by program, where the system tells.
    """

    seconds: float
    busy: float
    worker_bytes: int | None
    cpu: dict[str, float]


@dataclass(frozen=True)
class Alone:
    """The engine alone: the mean of a run before the drain and one after it, for this machine's speed wanders."""

    seconds: float
    cpu_seconds: float
    apart: float  # how far the two were, of the mean

    @classmethod
    def mean(cls, *runs: Timed) -> "Alone":
        seconds = fmean(run.wall for run in runs)
        apart = (max(run.wall for run in runs) - min(run.wall for run in runs)) / seconds
        return cls(seconds, fmean(run.cpu_seconds or 0 for run in runs), apart)


def main(
    sessions: Annotated[int, typer.Option(help="how many")] = 20,
    chunks: Annotated[int, typer.Option(help="of 5 seconds, in all sessions together")] = 500,
    model: Annotated[str, typer.Option(help="a model's name, or a folder with one")] = "tiny.en",
    shape: Annotated[
        str | None, typer.Option("--random-weights", help="a model of this shape with random weights")
    ] = None,
    results: Annotated[Path, typer.Option(help="the folder for drain.md")] = RESULTS,
) -> None:
    """Drain a queue with one worker and one server, as on an instance; on a GPU where there is one."""
    device, precision = ("cuda", "float16") if ctranslate2.get_cuda_device_count() else ("cpu", "int8")
    with tempfile.TemporaryDirectory(prefix="drain-") as temporary:
        folder = Path(temporary)
        with console.status("preparing speech and model"):
            path = random_weights.build(shape, MODELS, tokens=TOKENS) if shape else models.resolve(model)
            used = Model(str(path), device, precision, "whisperx")
            recordings = speech.prepare(folder / "speech", minutes=None)
            recorded = cut_sessions(recordings, sessions, chunks // sessions, folder / "sessions")
        work = Work("bare", [str(session.chunks[0].parent) for session in recorded], AT_ONCE)
        with console.status("the engine alone"):
            before = run_child("bench.bare", used, [work], folder / "log")["bare"]
        with console.status("the drain"), ours.local_bucket(folder / "aws") as bucket:
            drained = drain(used, bucket, recorded, folder / "log")
        with console.status("the engine alone, once more"):
            after = run_child("bench.bare", used, [work], folder / "log")["bare"]
        alone = Alone.mean(before, after)
    notes = about.notes(used, f"{shape}, random weights" if shape else models.display_name(model), recorded)
    text = report(recorded, alone, drained, notes)
    results.mkdir(parents=True, exist_ok=True)
    (results / "drain.md").write_text(text)
    console.print(text, markup=False)
    console.print(f"in {os.path.relpath(results)}: drain.md")
    console.print(headline(recorded, alone, drained), style="bold", soft_wrap=True)


def cut_sessions(
    recordings: Sequence[speech.Recording], count: int, length: int, folder: Path
) -> list[speech.Recording]:
    """Sessions of `length` chunks each, in folders of their own, from the recordings again and again."""
    source = itertools.cycle([chunk for recording in recordings for chunk in recording.chunks])
    found = []
    for number in range(count):
        place = folder / f"{number:03}"
        place.mkdir(parents=True)
        chunks = []
        for index, chunk in enumerate(itertools.islice(source, length), 1):
            chunks.append(place / f"chunk-{index:03}{chunk.suffix}")
            chunks[-1].symlink_to(chunk)
        seconds = sum(len(speech.load(chunk)) for chunk in chunks) / speech.MODEL_RATE
        found.append(speech.Recording(place.name, "", seconds, chunks[0], tuple(chunks)))
    return found


def drain(used: Model, bucket: ours.Bucket, recorded: Sequence[speech.Recording], logs: Path) -> Drained:
    """Everything is in the queue when the worker starts; the server is warm.

    Raises RuntimeError when the worker leaves something undone.
    """
    sqs = boto3.client(
        "sqs",
        region_name=ours.REGION,
        endpoint_url=bucket.environment["AWS_ENDPOINT_URL"],
        aws_access_key_id=bucket.environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=bucket.environment["AWS_SECRET_ACCESS_KEY"],
    )
    queue = Queue(sqs, sqs.create_queue(QueueName="jobs")["QueueUrl"])
    jobs = upload(bucket, recorded)
    for start in range(0, len(jobs), MAX_BATCH):
        queue.send_all(jobs[start : start + MAX_BATCH], Reason.UNHEALTHY)
    with ours.our_server(used, bucket, logs) as server:
        server.load([[server.upload(chunk)] for chunk in recorded[0].chunks], in_flight=AT_ONCE)  # warm
        settings = bucket.environment | {
            "AUDIO_BUCKET": ours.BUCKET,
            "SQS_QUEUE_URL": queue.url,
            "FAST_API_SERVER_URL": server.url,
            "POLL_SECONDS": "1",
        }
        worker = processes.start(
            [sys.executable, "-m", "batch_worker", "--until-empty"],
            environment=environment(settings),
            log=logs / "worker.log",
        )
        peak, programs = None, {"server": server.pid, "worker": worker.pid, "S3 and SQS": bucket.pid}
        before = {name: cpu_seconds(pid) or 0.0 for name, pid in programs.items()}
        now = before
        while worker.poll() is None:
            peak = peak_bytes(worker.pid) or peak
            now = {name: cpu_seconds(pid) or now[name] for name, pid in programs.items()}
            time.sleep(LOOK_SECONDS)
    if worker.returncode:
        raise RuntimeError(f"the worker left something undone: {processes.tail(logs / 'worker.log', 3)}")
    [run] = [run for day in bucket.reports() for run in day.runs]
    cpu = {name: now[name] - before[name] for name in programs}
    return Drained(run.working_seconds, run.busy_seconds, peak, cpu)


def upload(bucket: ours.Bucket, recorded: Sequence[speech.Recording]) -> list[Job]:
    """Put the sessions into the bucket; their jobs, in the order in which the chunks of AT_ONCE recorders come."""
    jobs: list[Job] = []
    for start in range(0, len(recorded), AT_ONCE):
        together = [bucket.put_session(Session("drain", one.id), one) for one in recorded[start : start + AT_ONCE]]
        for chunks in zip(*together, strict=True):
            jobs += [Job(bucket=ours.BUCKET, key=chunk.key, etag=chunk.etag) for chunk in chunks]
    return jobs


def report(recorded: Sequence[speech.Recording], alone: Alone, drained: Drained, notes: Sequence[str]) -> str:
    audio = sum(one.seconds for one in recorded)
    share, left = drained.busy / drained.seconds, alone.seconds / drained.seconds
    cpu = ", ".join(f"{name} {seconds:.1f}" for name, seconds in drained.cpu.items())
    memory = "-" if drained.worker_bytes is None else f"{drained.worker_bytes / 1e6:.0f} MB"
    return "\n".join(
        [
            "# Drain",
            "",
            headline(recorded, alone, drained),
            "",
            "| | seconds | x real time | recognizer busy | processor seconds |",
            "| --- | --- | --- | --- | --- |",
            f"| engine alone, {AT_ONCE} sessions at once | {alone.seconds:.1f} | {audio / alone.seconds:.1f} | - |"
            f" {alone.cpu_seconds:.1f} |",
            f"| queue, worker, server and S3 | {drained.seconds:.1f} | {audio / drained.seconds:.1f} | {share:.1%} |"
            f" {cpu} |",
            "",
            "| to reach | wanted | measured | |",
            "| --- | --- | --- | --- |",
            f"| recognizer busy, first job to last | >= 95 % | {share:.1%} | {_mark(share >= 0.95)} |",
            f"| speed of the engine alone that is left | >= 0.9 | {left:.2f} | {_mark(left >= 0.9)} |",
            "",
            f"The engine alone ran before the drain and after it, {alone.apart:.0%} apart; the table has their mean.",
            "",
            f"The worker took {memory} of memory at most. Worker, server and the local S3 and SQS"
            " share the processors of one machine.",
            "",
            *(f"- {note}" for note in notes),
            "",
        ]
    )


def headline(recorded: Sequence[speech.Recording], alone: Alone, drained: Drained) -> str:
    audio, chunks = sum(one.seconds for one in recorded), sum(len(one.chunks) for one in recorded)
    return (
        f"{chunks} chunks of {len(recorded)} sessions: recognizer busy {drained.busy / drained.seconds:.0%} of the "
        f"drain, {audio / drained.seconds:.0f}x real time, {alone.seconds / drained.seconds:.2f} of the engine alone"
    )


def _mark(reached: bool) -> str:
    return "✓" if reached else "✗"


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
