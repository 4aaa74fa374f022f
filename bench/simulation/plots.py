"""The experiments as pictures."""

from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING

from batch_worker.capacity import HOUR, Mode
from bench.simulation.experiments import LOADS, Run
from bench.simulation.ledger import Histogram, Outcome
from bench.simulation.model import Result
from bench.simulation.scenario import DAY, MINUTE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLOURS = {Mode.SCHEDULED: "#2a6f97", Mode.ON_DEMAND: "#e09f3e", Mode.ALWAYS: "#9e2a2b"}
BLUE, RED, GREY = "#2a6f97", "#9e2a2b", "#b8b8b8"
INCH_PER_BAR = 0.42

Runs = Mapping[str, Sequence[Run]]


def write(folder: Path, found: Runs) -> None:
    """One PNG each, of the experiments that were run."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (needed, draw) in PLOTS.items():
        if needed <= found.keys():
            _save(folder / f"{name}.png", draw, found)


def _modes(figure: "Figure", found: Runs) -> None:
    """What an hour of audio costs and how long it takes, by mode and load."""
    cost, wait = figure.subplots(1, 2)
    for offset, mode in enumerate(Mode):
        results = [result for _, result in found["modes"] if result.scenario.mode is mode]
        places = [place + (offset - 1) * 0.27 for place in range(len(results))]
        dollars = [result.dollars_an_audio_hour for result in results]
        bars = cost.bar(places, dollars, 0.25, color=COLOURS[mode], label=mode)
        cost.bar_label(bars, [f"{each:.3f}" if each < 1 else f"{each:.2f}" for each in dollars], fontsize=8, padding=2)
        wait.bar(places, [result.seconds(0.95) for result in results], 0.25, color=COLOURS[mode], alpha=0.45)
        wait.bar(places, [result.seconds(0.5) for result in results], 0.25, color=COLOURS[mode])
    for axis, title in ((cost, "$ an hour of audio"), (wait, "upload to transcript: median, and 95 % (pale)")):
        axis.set_yscale("log")
        axis.set_title(title, fontsize=11)
        axis.set_xticks(range(len(LOADS)), [f"{load:,} chunks a day" for load in LOADS])
    cost.margins(y=0.15)
    _times(wait)
    cost.legend(frameon=False)


def _day(figure: "Figure", found: Runs) -> None:
    """Backlog and capacity over two days with the most chunks, in each mode."""
    axes = figure.subplots(2, len(Mode), sharex=True)
    biggest = [result for _, result in found["modes"] if result.scenario.chunks == max(LOADS)]
    for column, result in enumerate(biggest):
        colour = COLOURS[result.scenario.mode]
        hours = [sample.at / HOUR for sample in result.series]
        axes[0][column].fill_between(hours, [sample.jobs / 1000 for sample in result.series], color=colour, alpha=0.6)
        axes[1][column].fill_between(
            hours, [sample.alive for sample in result.series], color=colour, alpha=0.6, step="pre"
        )
        axes[0][column].set_title(
            f"{result.scenario.mode}, {result.dollars / result.scenario.days:,.2f} $ a day", fontsize=11
        )
        axes[1][column].set_xlabel("hours since midnight")
    axes[0][0].set_ylabel("jobs in the queue, thousands")
    axes[1][0].set_ylabel("instances")


def _latency(figure: "Figure", found: Runs) -> None:
    """The share of all chunks that is done in a time, by mode and route, for the middle load."""
    axes = figure.subplots(1, len(Mode), sharey=True)
    middle = [result for _, result in found["modes"] if result.scenario.chunks == sorted(LOADS)[1]]
    for axis, result in zip(axes, middle, strict=True):
        for outcome, colour in ((Outcome.DIRECT, COLOURS[Mode.ALWAYS]), (Outcome.QUEUE, COLOURS[Mode.SCHEDULED])):
            histogram = result.latency[outcome]
            if histogram.total:
                seconds = [Histogram.middle(place) for place in range(Histogram.BINS)]
                shares = [count / result.chunks for count in accumulate(histogram.counts)]
                label = f"{outcome}: {histogram.total / result.chunks:.0%}"
                axis.step(seconds, shares, color=colour, label=label)
        axis.set_xscale("log")
        axis.set_xlim(0.5, 2 * DAY)
        ticks = (1, 10, MINUTE, 10 * MINUTE, HOUR, 10 * HOUR)
        axis.set_xticks(ticks, ["1 s", "10 s", "1 min", "10 min", "1 h", "10 h"])
        axis.minorticks_off()
        axis.set_title(str(result.scenario.mode), fontsize=11)
        axis.legend(frameon=False, loc="center")
    axes[0].set_ylabel("share of all chunks")


def _scale(figure: "Figure", found: Runs) -> None:
    """Instances and dollars from a thousand to ten million chunks."""
    instances, dollars, hour = figure.subplots(1, 3)
    for name, colour, label in (("scale", BLUE, "in 1 h"), ("night", RED, "in 8 h")):
        results = [result for _, result in found[name]]
        chunks = [result.scenario.chunks for result in results]
        instances.plot(chunks, [result.most for result in results], "o-", color=colour, label=label)
        dollars.plot(chunks, [result.dollars / result.scenario.days for result in results], "o-", color=colour)
        hour.plot(chunks, [result.dollars_an_audio_hour for result in results], "o-", color=colour)
    titles = ("instances at once", "$ a day", "$ an hour of audio")
    for axis, title in zip((instances, dollars, hour), titles, strict=True):
        axis.set_xscale("log")
        axis.set_yscale("linear" if axis is hour else "log")
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("chunks a day")
        axis.grid(alpha=0.3)
    hour.set_ylim(bottom=0)
    instances.legend(frameon=False, title="TARGET")


def _targets(figure: "Figure", found: Runs) -> None:
    """TARGET_MINUTES: instances, cost, and when the queue is empty."""
    results = [result for _, result in found["targets"]]
    minutes = [result.scenario.target / MINUTE for result in results]
    panels: tuple[tuple[str, Callable[[Result], float]], ...] = (
        ("instances at once", lambda result: result.most),
        ("$ an hour of audio", lambda result: result.dollars_an_audio_hour),
        ("minutes until the queue is empty", lambda result: result.emptied / MINUTE),
    )
    axes = figure.subplots(1, len(panels))
    for axis, (title, value) in zip(axes, panels, strict=True):
        axis.plot(minutes, [value(result) for result in results], "o-", color=BLUE)
        axis.set_title(title, fontsize=11)
        axis.set_xlabel("TARGET_MINUTES")
        axis.set_xscale("log")
        axis.set_xticks(minutes, [f"{each:g}" for each in minutes])
        axis.minorticks_off()
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[2].plot(minutes, minutes, ":", color=GREY)


def _troubles(figure: "Figure", found: Runs) -> None:
    """Interruptions, droughts and instances that never become healthy: what they cost in money and time."""
    nights = [*found["spot"], *found["boots"]]
    runs = [(label, result) for label, result in nights[::-1] if result.scenario.mode is Mode.SCHEDULED]
    labels = [label for label, _ in runs]
    cost, wait = figure.subplots(1, 2, sharey=True)
    bars = cost.barh(labels, [result.dollars for _, result in runs], color=BLUE)
    cost.bar_label(bars, [f"{result.dollars:.2f} $" for _, result in runs], padding=4, fontsize=9)
    cost.set_title("cost", fontsize=11)
    hours = [result.emptied / HOUR for _, result in runs]
    bars = wait.barh(labels, hours, color=BLUE)
    wait.bar_label(bars, [f"{each:.1f} h" for each in hours], padding=4, fontsize=9)
    wait.set_title("hours from midnight until the queue is empty", fontsize=11)
    for axis in (cost, wait):
        axis.margins(x=0.2)


def _gate(figure: "Figure", found: Runs) -> None:
    """LEAST_JOBS: cost against patience."""
    axis = figure.subplots()
    for label, result in found["gate"]:
        hours = result.seconds(0.95) / HOUR
        axis.plot(hours, result.dollars_an_audio_hour, "o", color=BLUE, markersize=9)
        axis.annotate(label, (hours, result.dollars_an_audio_hour), xytext=(10, 4), textcoords="offset points")
    axis.set_xlabel("hours until 95 % of the transcripts are there")
    axis.set_ylabel("$ an hour of audio")
    axis.margins(x=0.25, y=0.15)
    axis.set_xlim(left=0)
    axis.set_ylim(bottom=0)
    axis.grid(alpha=0.3)


def _times(axis: "Axes") -> None:
    ticks = (1, 10, MINUTE, 10 * MINUTE, HOUR, 10 * HOUR)
    axis.set_yticks(ticks, ["1 s", "10 s", "1 min", "10 min", "1 h", "10 h"])
    axis.minorticks_off()


def _save(path: Path, draw: Callable[["Figure", Runs], None], found: Runs) -> None:
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    figure = plt.figure(figsize=(13, 4.6 if draw is not _day else 6.5), layout="constrained")
    draw(figure, found)
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)
    plt.close(figure)


PLOTS: dict[str, tuple[set[str], Callable[["Figure", Runs], None]]] = {
    "modes": ({"modes"}, _modes),
    "day": ({"modes"}, _day),
    "latency": ({"modes"}, _latency),
    "scale": ({"scale", "night"}, _scale),
    "targets": ({"targets"}, _targets),
    "troubles": ({"spot", "boots"}, _troubles),
    "gate": ({"gate"}, _gate),
}
