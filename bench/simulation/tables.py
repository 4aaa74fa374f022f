"""Results for people: one line a run, in the terminal and as Markdown; and one line for all."""

import math
from collections.abc import Sequence

from rich.console import Console
from rich.table import Table

from batch_worker.capacity import HOUR
from bench.simulation.experiments import Run
from bench.simulation.ledger import Outcome
from bench.simulation.model import Result

COLUMNS = (
    "run",
    "audio h",
    "direct",
    "p50",
    "p95",
    "empty",
    "instances",
    "hours",
    "busy",
    "twice",
    "$ a day",
    "$/audio h",
)
LEGEND = (
    "direct: the share that a server heard as it came; p50, p95: from upload to transcript; empty: when the queue was, "
    "after the last day's midnight; instances: at once, at most; hours: of instances, a day; busy: their share at "
    "useful work; twice: the share of the audio that was heard once more, whole"
)


def cells(label: str, result: Result) -> tuple[str, ...]:
    return (
        label,
        f"{result.audio / HOUR:,.0f}" if result.audio >= 10 * HOUR else f"{result.audio / HOUR:.1f}",
        f"{result.outcomes[Outcome.DIRECT] / result.chunks:.0%}",
        duration(result.seconds(0.5)),
        duration(result.seconds(0.95)),
        duration(result.emptied),
        f"{result.most}",
        f"{result.instance_seconds / HOUR / result.scenario.days:,.1f}",
        f"{result.busy_share:.0%}",
        f"{result.reheard / result.audio:.0%}",
        f"{result.dollars / result.scenario.days:,.2f}",
        f"{result.dollars_an_audio_hour:.4f}",
    )


def duration(seconds: float) -> str:
    """In the unit that suits; a dash for nothing."""
    if math.isnan(seconds) or seconds == 0:
        return "-"
    for size, unit in ((HOUR, "h"), (60.0, "min")):
        if abs(seconds) >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"


def show(console: Console, title: str, runs: Sequence[Run]) -> None:
    table = Table(title=title, title_justify="left", box=None, header_style="bold")
    for number, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if number else "left", no_wrap=True)
    for label, result in runs:
        table.add_row(*cells(label, result))
    console.print(table)


def markdown(title: str, runs: Sequence[Run]) -> str:
    lines = (COLUMNS, ["---"] * len(COLUMNS), *(cells(*run) for run in runs))
    return f"## {title}\n\n" + "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def headline(result: Result) -> str:
    """All of a run's promises were checked, or there would be no result."""
    days = result.scenario.days
    return (
        f"{result.chunks // days:,} chunks ({result.audio / days / HOUR:,.0f} h of audio) a day: 0 lost, at most "
        f"{result.most} instances and then {result.scenario.floor}, the queue empty {duration(result.emptied)} after "
        f"midnight, {result.dollars / days:,.2f} $ a day, {result.dollars_an_audio_hour:.4f} $ an hour of audio"
    )
