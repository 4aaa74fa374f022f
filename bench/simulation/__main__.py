"""`make simulate`: a day of uploads through router, queue and fleet, with the launcher's own decisions."""

import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from batch_worker.capacity import Mode
from bench.simulation import plots, tables
from bench.simulation.experiments import EXPERIMENTS, Run, loaded
from bench.simulation.ledger import Violation
from bench.simulation.model import simulate
from bench.simulation.scenario import MINUTE, ROOT, Scenario, measured

RESULTS = ROOT / "bench/results/simulation"
BRIEFLY = ("modes", "scale")

console = Console(highlight=False, width=None if sys.stdout.isatty() else 140)


def main(
    chunks: Annotated[
        int | None, typer.Option(min=1, help="one day of so many chunks, instead of the standard runs")
    ] = None,
    uploads: Annotated[
        Path | None, typer.Option(exists=True, dir_okay=False, help="a CSV of time, key, audio_seconds to replay")
    ] = None,
    mode: Annotated[Mode, typer.Option(help="MODE")] = Mode.SCHEDULED,
    target: Annotated[float, typer.Option(min=1, help="TARGET_MINUTES")] = 60,
    largest: Annotated[int, typer.Option("--max", min=1, help="MAX_INSTANCES")] = 1000,
    speed: Annotated[
        float | None, typer.Option(min=0.1, help="INSTANCE_SPEED; else what make bench measured for stitched sessions")
    ] = None,
    instance_type: Annotated[str, typer.Option(help="of the price table")] = "g4dn.xlarge",
    market: Annotated[str, typer.Option(help="of the price table")] = "spot",
    interruptions: Annotated[float, typer.Option(min=0, help="of spot instances, an instance-hour")] = 0.0,
    lost: Annotated[float, typer.Option(min=0, max=1, help="share of events that never come")] = 0.0,
    seed: Annotated[int, typer.Option(help="of all chance")] = 1,
    every: Annotated[bool, typer.Option("--all", help="all experiments, with their plots: takes minutes")] = False,
    results: Annotated[Path, typer.Option(help="the folder for what --all writes")] = RESULTS,
) -> None:
    """Simulate, and say what it took. Stops at the first promise that is broken."""
    began = time.monotonic()
    speeds = measured() if speed is None else measured().scaled(speed)
    base = Scenario(
        speeds=speeds,
        mode=mode,
        target=target * MINUTE,
        largest=largest,
        instance_type=instance_type,
        market=market,
        seed=seed,
    )
    base = replace(base, cloud=replace(base.cloud, interruptions=interruptions, lost=lost))
    try:
        console.print(
            f"{instance_type}, {market}, {base.price} $ an hour, {speeds.stitched:.1f} x real time", style="dim"
        )
        if chunks or uploads:
            scenario = replace(base, replay=uploads) if uploads else loaded(base, chunks or 1)
            runs = [(f"{mode}", simulate(scenario))]
            tables.show(console, "one day", runs)
        else:
            runs = _standard(base, tuple(EXPERIMENTS) if every else BRIEFLY, results if every else None)
    except (ValueError, Violation) as error:
        console.print(f"{error}", style="red", markup=False)
        raise typer.Exit(1) from error
    console.print(f"\n{tables.LEGEND}", style="dim")
    console.print(f"simulated in {time.monotonic() - began:.0f} s; every run was checked: none lost, back to zero\n")
    console.print(tables.headline(runs[-1][1]), style="bold", soft_wrap=True)


def _standard(base: Scenario, names: tuple[str, ...], folder: Path | None) -> list[Run]:
    """Run experiments; the runs of the one that scales, for the headline."""
    found: dict[str, list[Run]] = {}
    for name in names:
        with console.status(name):
            found[name] = list(EXPERIMENTS[name](base))
        tables.show(console, f"\n{EXPERIMENTS[name].__doc__}", found[name])
    if folder:
        plots.write(folder, found)
        sections = [tables.markdown(EXPERIMENTS[name].__doc__ or name, runs) for name, runs in found.items()]
        (folder / "simulation.md").write_text("\n".join(["# Simulation", "", tables.LEGEND + ".", "", *sections]))
        console.print(f"\nin {os.path.relpath(folder)}: simulation.md and the plots")
    return found["scale"]


if __name__ == "__main__":
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command()(main)
    app()
