"""The results for people: tables and bars in the terminal, Markdown, a picture, raw numbers, the headline."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from rich.console import Console
from rich.table import Table

from bench.measure import Row
from bench.targets import LONE_16, STOCK, Target

COLUMNS = ("way", "in flight", "x real time", "vs stock", "p50 s", "p95 s", "WER", "CPU s/min", "peak MB", "busy")
MARKS = {True: "✓", False: "✗", None: "?"}
BAR_WIDTH = 50
OURS, THEIRS = "#2a6f97", "#b8b8b8"


def cells(row: Row, stock: Row | None) -> tuple[str, ...]:
    """One line of the table, as text."""
    if row.failed:
        return (row.way, str(row.in_flight), "failed", *[""] * (len(COLUMNS) - 3))
    return (
        row.way,
        str(row.in_flight),
        f"{row.speed:.1f}",
        f"{row.speed / stock.speed:.2f}" if stock and not stock.failed else "-",
        f"{row.p50:.2f}",
        f"{row.p95:.2f}",
        "-" if row.wer is None else f"{row.wer:.2%}",
        "-" if row.cpu_seconds is None else f"{60 * row.cpu_seconds / row.audio_seconds:.1f}",
        "-" if row.peak_bytes is None else f"{row.peak_bytes / 1e6:.0f}",
        "-" if row.busy_share is None else f"{row.busy_share:.0%}",
    )


def headline(rows: Mapping[str, Row]) -> str:
    """What there is to say in one line."""
    ours, stock = rows.get(LONE_16), rows.get(STOCK)
    if not ours or ours.failed:
        return "5-second chunks, 16 in flight: not measured"
    said = f"5-second chunks, 16 in flight: {ours.speed:.0f}x real time"
    if not stock or stock.failed:
        return said
    said += f", {ours.speed / stock.speed:.1f}x stock WhisperX"
    if ours.wer is None or stock.wer is None:
        return said
    return f"{said}, WER {100 * ours.wer:.1f} % (stock {100 * stock.wer:.1f} %)"


def show(console: Console, rows: Sequence[Row], targets: Sequence[Target]) -> None:
    stock = _stock(rows)
    table = Table(box=None, header_style="bold")
    for number, column in enumerate(COLUMNS):
        table.add_column(column, justify="right" if number else "left")
    for row in rows:
        table.add_row(*cells(row, stock))
    console.print(table)
    for row in rows:
        if row.failed:
            console.print(f"{row.way}, {row.in_flight} in flight: {row.failed}", style="red", markup=False)
    console.print()
    fastest = max((row.speed for row in rows), default=0.0)
    bars = Table.grid(padding=(0, 1))
    for row in rows:
        if not row.failed:
            size = max(1, round(BAR_WIDTH * row.speed / fastest)) if fastest else 0
            bars.add_row(f"{row.way}, {row.in_flight}", f"[cyan]{'█' * size}[/] {row.speed:.1f}x")
    console.print(bars)
    console.print()
    reached = Table("to reach", "wanted", "measured", "", box=None, header_style="bold")
    for target in targets:
        style = {True: "green", False: "red", None: "dim"}[target.reached]
        reached.add_row(target.what, target.wanted, target.measured, f"[{style}]{MARKS[target.reached]}[/]")
    console.print(reached)


def markdown(rows: Sequence[Row], targets: Sequence[Target], notes: Sequence[str]) -> str:
    """The page bench.md."""
    stock = _stock(rows)
    failures = [f"- {row.way}, {row.in_flight} in flight: failed: {row.failed}" for row in rows if row.failed]
    parts = [
        "# Benchmark",
        headline({row.id: row for row in rows}),
        _table(COLUMNS, [cells(row, stock) for row in rows]),
        *(["\n".join(failures)] if failures else []),
        "## To reach",
        _table(
            ("what", "wanted", "measured", ""),
            [(target.what, target.wanted, target.measured, MARKS[target.reached]) for target in targets],
        ),
        "## How",
        "\n".join(f"- {note}" for note in notes),
        "![throughput and word errors](bench.png)",
    ]
    return "\n\n".join(parts) + "\n"


def write(folder: Path, rows: Sequence[Row], targets: Sequence[Target], notes: Sequence[str]) -> None:
    """bench.md, bench.json and bench.png in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "bench.md").write_text(markdown(rows, targets, notes))
    raw = {
        "headline": headline({row.id: row for row in rows}),
        "notes": list(notes),
        "rows": [asdict(row) | {"speed": row.speed} for row in rows],
        "targets": [asdict(target) for target in targets],
    }
    (folder / "bench.json").write_text(json.dumps(raw, indent=1) + "\n")
    draw(folder / "bench.png", [row for row in rows if not row.failed])


def draw(path: Path, rows: Sequence[Row]) -> None:
    """Throughput, and WER where it means something, one bar a row."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    stock = _stock(rows)
    names = [f"{row.way} ({row.in_flight})" for row in rows]
    colours = [OURS if row.way.startswith("ours") else THEIRS for row in rows]
    with_wer = any(row.wer is not None for row in rows)
    figure, axes = plt.subplots(
        1,
        2 if with_wer else 1,
        figsize=(13 if with_wer else 9, 1.4 + 0.42 * len(rows)),
        sharey=True,
        squeeze=False,
        width_ratios=[3, 2] if with_wer else [1],
        layout="constrained",
    )
    speed = axes[0][0]
    bars = speed.barh(names, [row.speed for row in rows], color=colours)
    labels = [f"{row.speed:.0f}x" + (f"  ({row.speed / stock.speed:.1f}x stock)" if stock else "") for row in rows]
    speed.bar_label(bars, labels, padding=4, fontsize=9)
    speed.set_title("audio seconds per second (requests in flight)", fontsize=11)
    speed.margins(x=0.25)
    speed.invert_yaxis()
    if with_wer:
        errors = axes[0][1]
        bars = errors.barh(names, [100 * (row.wer or 0) for row in rows], color=colours)
        errors.bar_label(bars, ["" if row.wer is None else f"{row.wer:.1%}" for row in rows], padding=4, fontsize=9)
        errors.set_title("word error rate, %", fontsize=11)
        errors.margins(x=0.2)
    for axis in figure.axes:
        axis.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _table(head: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, ["---"] * len(head), *lines))


def _stock(rows: Sequence[Row]) -> Row | None:
    return next((row for row in rows if row.id == STOCK and not row.failed), None)
