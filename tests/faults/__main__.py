"""`make faults`: the long version of the fault suite, part by part, and its table.

The short version is this folder's tests. The same seed makes the same faults and uploads; where real processes run,
they do not meet at the same instants again. Each part puts its results into bench/results/faults.md.
"""

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Annotated

import typer
from rich.console import Console

from tests.faults import report
from tests.faults.chaos import parts as chaos_parts
from tests.faults.chaos.storm import Shape
from tests.faults.fuzz import parts as fuzz_parts
from tests.faults.load import parts as load_parts
from tests.faults.points import run as points_run
from tests.faults.simulation import simulate
from tests.faults.table import Part

SEED = 6
Seed = Annotated[int, typer.Option(help="of everything that is random")]
Rounds = Annotated[int, typer.Option(help="of about 90 small runs")]
OneIn = Annotated[int, typer.Option(help="of the faults, one in so many")]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help=__doc__)
console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)


def say(line: str) -> None:
    console.print(line, markup=False)


@app.command()
def simulation(schedules: int = 1_000_000, cores: int = 2, seed: Seed = simulate.LONG_SEED) -> None:
    """Router, worker and combine in a simulated world: random schedules, faults between any two steps."""
    show("simulation", partial(simulate.run, schedules, seed, cores, say), seed)


@app.command()
def points(one_in: OneIn = 1, processes: int = points_run.PROCESSES) -> None:
    """A fault at every external call of a session, alone and in pairs."""
    show("points", partial(points_run.run, one_in=one_in, processes=processes, say=say), SEED)


@app.command()
def processes(rounds: Rounds = 3, seed: Seed = SEED) -> None:
    """Kills, broken servers, full disks, clocks that jump, a GPU that fails: one fault a run, on real processes.

    Small disks are mounted for it: that takes root, or `unshare --map-root-user --mount make faults`.
    """
    check_rights()
    show("processes", partial(chaos_parts.processes, rounds=rounds, seed=seed, say=say), seed)


@app.command()
def aws(rate: Annotated[float, typer.Option(help="of requests that fail")] = 0.3, seed: Seed = SEED) -> None:
    """AWS, and the way to the server, fail all the time."""
    show("aws", partial(chaos_parts.aws, rate=rate, seed=seed), seed)


@app.command()
def chaos(seed: Seed = SEED) -> None:
    """Everything at once, and the same uploads with nothing but duplicates."""
    show("chaos", partial(chaos_parts.chaos, Shape(), seed=seed), seed)


@app.command()
def fuzz(seconds: Annotated[int, typer.Option(help="for each parser")] = 30, seed: Seed = SEED) -> None:
    """Requests, messages, keys, media: random, and broken."""
    show("fuzz", partial(fuzz_parts.run, seconds=seconds, seed=seed, say=say), seed)


@app.command()
def load() -> None:
    """Bursts, and far more than the server can take."""
    show("load", partial(load_parts.run, say=say), SEED)


@app.command(name="all")
def everything() -> None:
    """All parts, one after the other: some hours. Rights as for `processes`."""
    check_rights()
    missed = False
    for part in (simulation, points, processes, aws, chaos, fuzz, load):
        try:
            part()
        except typer.Exit:
            missed = True
    parts = report.read()
    rows = [*report.head(parts), *(row for kept in parts.values() for row in kept.part.rows)]
    console.rule("all of it")
    console.print(report.table(rows))
    if missed or any(row.reached is False for row in rows):
        raise typer.Exit(1)


def check_rights() -> None:
    """Status 2 at once, not after an hour."""
    if os.geteuid() != 0:
        say("the full disks are mounted, which takes root: unshare --map-root-user --mount make faults")
        raise typer.Exit(2)


def show(name: str, run: Callable[[], Part], seed: int) -> None:
    """One part with its own table, kept for the page. Status 1 when something was not reached."""
    console.rule(f"{name}, seed {seed}")
    began = time.monotonic()
    part = run()
    report.keep(name, part, seconds=time.monotonic() - began, seed=seed)
    for kind, times in sorted(part.kinds.items()):
        say(f"{times:12,}  {kind}")
    console.print(report.table(part.rows))
    if any(row.reached is False for row in part.rows):
        raise typer.Exit(1)


if __name__ == "__main__":
    app()
