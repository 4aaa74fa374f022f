"""Commands for an operator, on AWS or on the local stack: dead letters, the report, the backfill of an archive.

Settings come from the environment and, where that is silent, from `.env` (ENV_FILE names another file).
"""

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Any

import boto3
import typer
from dotenv import dotenv_values
from pydantic import Field
from rich import progress
from rich.console import Console

from batch_worker.backfill import Bookmark, Inventoried, Listing, Pace, Progress, Source, backfill
from batch_worker.dead_letters import Choice, DeadLetter, Look, give_up, redrive, standings
from batch_worker.inventory import read_inventory
from batch_worker.report import PREFIX, Day, in_words
from shared.bus import publisher
from shared.combine import Combiner
from shared.errors import RouterError
from shared.jobs import Job, Reason
from shared.queues import RECEIVE_CONFIG, Queue
from shared.settings import AwsSettings, load
from shared.store import CLIENT_CONFIG, S3Store

ROOT = Path(__file__).resolve().parents[1]
BOOKMARKS = Path(os.environ.get("LOCAL_HOME") or ROOT / ".local")
SHORT_ID = 8  # of a message's id: enough to name it

console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
dlq = typer.Typer(no_args_is_help=True, help="Dead letters and the router's failures: look, send again, give up.")


class Queues(StrEnum):
    """Where letters lie that nobody works on."""

    DEAD_LETTERS = "dead-letters"
    FAILURES = "failures"


class OperatorSettings(AwsSettings):
    sqs_queue_url: str = Field(description="URL of the jobs queue; step-020 of infra/scripts prints it")
    sqs_dlq_url: str = Field(description="URL of its dead-letter queue")
    sqs_failures_queue_url: str = Field(description="URL of the router's failure destination")


@dataclass(frozen=True)
class Place:
    """The deployment that is operated on."""

    settings: OperatorSettings

    def client(self, service: str) -> Any:
        config = RECEIVE_CONFIG if service == "sqs" else CLIENT_CONFIG
        # The stubs want a literal name.
        return boto3.client(service, region_name=self.settings.aws_region, config=config)  # type: ignore[call-overload]

    def store(self, bucket: str | None = None) -> S3Store:
        """The audio bucket, or another one of ours."""
        settings = self.settings
        return S3Store(
            self.client("s3"), bucket or settings.audio_bucket, expected_owner=settings.expected_bucket_owner
        )

    def queue(self, which: Queues | None = None) -> Queue:
        """The jobs queue, or one of letters."""
        settings = self.settings
        letters = {Queues.DEAD_LETTERS: settings.sqs_dlq_url, Queues.FAILURES: settings.sqs_failures_queue_url}
        return Queue(self.client("sqs"), letters[which] if which else settings.sqs_queue_url)

    def combiner(self) -> Combiner:
        return Combiner(self.store(), publisher(self.client("events"), self.settings.event_bus_name))


def this_place() -> Place:
    """Raises SettingsError."""
    known = dotenv_values(os.environ.get("ENV_FILE") or ROOT / ".env")
    for name, value in known.items():
        if value:
            os.environ.setdefault(name, value)  # boto3 looks there for the endpoint, the profile and the rest
    return Place(load(OperatorSettings))


# Dead letters ------------------------------------------------------------------------------------------------------

WHICH = typer.Option(Queues.DEAD_LETTERS, "--queue", help="which queue")
ID = typer.Argument(help="the message's id, or its beginning")


@dlq.command("list")
def list_letters(which: Queues = WHICH, most: int = typer.Option(1000, min=1, help="how many, at most")) -> None:
    """What lies there: id, age, how often received, key, reason. Takes nothing; to look counts as a receive."""
    ages: list[datetime] = []
    count = 0
    with Look(this_place().queue(which)) as look:
        for count, letter in enumerate(islice(look, most), 1):  # noqa: B007  how many there were
            message = letter.message
            ages += [message.sent_at] if message.sent_at else []
            line = (message.id[:SHORT_ID], _age(message.sent_at), f"{message.receive_count}x", *letter.keys)
            _say("  ".join((*line, f"({letter.why})")))
    _say(f"{count} in {which}" + (f", the oldest {_age(min(ages))} old" if ages else ""))


@dlq.command()
def show(id: str = ID, which: Queues = WHICH) -> None:
    """One message, whole, and how its job stands by what S3 holds."""
    place = this_place()
    with Look(place.queue(which)) as look:
        letter = _find(look, id)
        console.print_json(json.dumps(_described(letter)))
        for key, how in standings(place.store(), letter).items():
            _say(f"{how}: {key}")


@dlq.command("redrive")
def send_again(
    every: bool = typer.Option(False, "--all", help="all of them"),
    id: str = typer.Option("", help="only the message with this id, or beginning of one"),
    key: str = typer.Option("", help="only messages for keys that begin so"),
    reason: str = typer.Option("", help="only messages whose reason has these words"),
    which: Queues = WHICH,
) -> None:
    """Send messages to the jobs queue again, with all their tries; each is deleted after it was sent."""
    if every == bool(id or key or reason):
        raise typer.BadParameter("say which: --all, or --id, --key or --reason")
    place = this_place()
    with Look(place.queue(which)) as look:
        sent, left = redrive(look, place.queue(), Choice(id, key, reason))
    _say(f"{sent} sent to the jobs queue" + (f", {left} left that nobody can read" if left else ""))


@dlq.command()
def fail(
    id: str = ID,
    reason: str = typer.Option("by an operator", help="goes into the record"),
    which: Queues = WHICH,
) -> None:
    """Give a message up: its failure is recorded, so that its session can complete, and it is deleted."""
    place = this_place()
    with Look(place.queue(which)) as look:
        letter = _find(look, id)
        ended = give_up(place.store(), place.combiner(), letter, reason)
        for key, how in ended.items():
            _say(f"{how}: {key}")
        if not ended:
            _say(f"there was nothing to record; the message was:\n{letter.message.body}")
        look.take(letter)


def _find(look: Look, id: str) -> DeadLetter:
    for letter in look:
        if letter.message.id.startswith(id):
            return letter
    _say(f"no message there has an id that begins with {id!r}: it is hidden while somebody works on it, or gone")
    raise typer.Exit(1)


def _described(letter: DeadLetter) -> dict[str, Any]:
    message = letter.message
    return {
        "id": message.id,
        "sent_at": message.sent_at and message.sent_at.isoformat(),
        "receives": message.receive_count,
        "reason": letter.why,
        "attributes": dict(message.attributes),
        "body": message.document() if letter.letters else message.body,
    }


def _age(since: datetime | None) -> str:
    """In its two largest units."""
    if since is None:
        return "?"
    minutes = int((datetime.now(UTC) - since).total_seconds() // 60)
    days, hours = minutes // 1440, minutes // 60 % 24
    return f"{days} d {hours} h" if days else f"{hours} h {minutes % 60} min" if hours else f"{minutes} min"


# The report --------------------------------------------------------------------------------------------------------


def tell(date: str = typer.Argument("", help="UTC, as 2026-01-31; empty: the latest one")) -> None:
    """What the batch runs of a day did and cost, and what to tune."""
    store = this_place().store()
    key = f"{PREFIX}{date}.json" if date else max((info.key for info in store.list(PREFIX)), default="")
    stored = store.get(key) if key else None
    if stored is None:
        _say(f"there is no report {f'of {date}' if date else 'yet'} in {store.bucket}")
        raise typer.Exit(1)
    for line in in_words(Day.model_validate_json(stored.body)):
        _say(line)


# Backfill ----------------------------------------------------------------------------------------------------------


def queue_archive(
    prefix: str = typer.Option("", help="only keys that begin so"),
    inventory: str = typer.Option("", help="s3://bucket/…/manifest.json of an S3 Inventory, read instead of a listing"),
    dry_run: bool = typer.Option(False, "--dry-run", help="only count"),
    rate: float = typer.Option(200.0, min=0.1, help="jobs a second, at most"),
    most: int | None = typer.Option(None, min=1, help="stop after so many jobs; the next run goes on there"),
) -> None:
    """Queue all audio that has no transcript and no recorded failure. Stopped, it goes on where it was."""
    place = this_place()
    source = _source(place, prefix, inventory)
    bookmark = Bookmark(BOOKMARKS, source)
    queue, pace = place.queue(), Pace(rate)

    def send(jobs: Sequence[Job]) -> None:
        if not dry_run:
            pace.wait_for(len(jobs))
            queue.send_all(jobs, Reason.BACKFILL)

    last = Progress(source=source.name) if dry_run else bookmark.load()
    if last.after:
        _say(f"goes on after {last.after} (without {bookmark.path} it begins again)")
    with _bar(source, last) as show_progress:

        def save(done: Progress) -> None:
            nonlocal last
            last = done
            if not dry_run:
                bookmark.save(done)
            show_progress(done)

        ended = backfill(place.store(), source, last, send=send, save=save, most=most)
    if ended and not dry_run:
        bookmark.remove()
    verb = "would be queued" if dry_run else "queued"
    _say(f"{last.looked_at} objects looked at, {last.queued} {verb}" + ("" if ended else "; there may be more"))


def _source(place: Place, prefix: str, inventory: str) -> Source:
    if not inventory:
        return Listing(place.store(), prefix)
    bucket, _, key = inventory.removeprefix("s3://").partition("/")
    return Inventoried(read_inventory(place.store(bucket), key, of=place.settings.audio_bucket), prefix)


@contextmanager
def _bar(source: Source, start: Progress) -> Iterator[Callable[[Progress], None]]:
    """A progress bar, and what moves it. How much there is, a thread counts meanwhile."""
    columns = (
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[rate]:.0f}/s, {task.fields[queued]} queued,"),
        progress.TimeRemainingColumn(),
    )
    began = time.monotonic()
    with progress.Progress(*columns, console=console) as bar:
        task = bar.add_task("", total=None, completed=start.looked_at, rate=0.0, queued=start.queued)

        def count() -> None:
            with suppress(RouterError):  # the backfill itself says what is wrong
                bar.update(task, total=start.looked_at + sum(1 for _ in source.entries(start.after)))

        def show(done: Progress) -> None:
            rate = (done.looked_at - start.looked_at) / max(time.monotonic() - began, 1e-3)
            bar.update(task, completed=done.looked_at, rate=rate, queued=done.queued)

        threading.Thread(target=count, daemon=True).start()
        yield show


def _say(text: str) -> None:
    """Keys are data: no markup, and no line breaks where they would be cut."""
    console.print(text, markup=False, soft_wrap=True)
