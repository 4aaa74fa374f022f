"""What a night did and cost: `reports/batch/{date}.json`, one document a day, into which each run is merged.

Runs of several workers end at the same time: a write is conditional on the document it was merged into. A run is told
by its id, so that one written twice, or again and again while it goes on, counts once.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from heapq import nlargest
from typing import Literal

from pydantic import BaseModel, ConfigDict
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from shared.errors import Contended
from shared.outcomes import JSON
from shared.prices import Prices, prices
from shared.store import ABSENT, PreconditionFailed, Store

PREFIX = "reports/batch/"
HOUR = 3600.0
WRITE_TRIES = 10  # a fleet may end within one second
TOLD = 5  # slow jobs in words

# What is worth a word in `tune`: shares of time, and of messages.
MUCH_BOOT = 0.3
MUCH_IDLE = 0.3
LITTLE_BUSY = 0.7
MANY_LATER = 0.1


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True)


class Failures(_Part):
    """Failures of one kind that were recorded; of their keys only the first few."""

    type: str
    message: str
    count: int
    keys: tuple[str, ...]


class SlowJob(_Part):
    """One request to the server: `chunks` of a session together, `key` the first of them; or one file."""

    key: str
    chunks: int
    seconds: float


class Host(_Part):
    """The instance that a run was on, up since before it."""

    id: str
    type: str
    market: str
    up_since: datetime


class Run(_Part):
    """One run of one worker.

    `finished`: False while it goes on, and for ever if it was killed. `results`: how messages ended. `chunks`: audio
    transcribed, single files included; `sessions`: completed. `working_seconds`: from the first job's start to the last
    one's end; `busy_seconds`: of the server's recognizer, as far as it told. `boot_seconds`: from the instance's start
    to the first job's, None without a job.
    """

    id: str
    started: datetime
    ended: datetime
    finished: bool
    instance: Host | None = None
    results: dict[str, int]
    chunks: int
    sessions: int
    audio_seconds: float
    working_seconds: float
    busy_seconds: float
    boot_seconds: float | None = None
    failures: tuple[Failures, ...] = ()
    slowest: tuple[SlowJob, ...] = ()


class Totals(_Part):
    """Of all runs of the day.

    `speed`: audio seconds that one worker transcribed in a second of its work. `instance_hours`: by type and market.
    `dollars`: those hours at the price table's prices, without disk and traffic; None if there is no price for some.
    """

    chunks: int
    sessions: int
    failed: int
    audio_hours: float
    speed: float | None
    instance_hours: dict[str, dict[str, float]]
    dollars: float | None
    dollars_per_audio_hour: float | None
    prices_of: str


class Day(_Part):
    """The document."""

    version: Literal[1] = 1
    date: str
    totals: Totals
    tune: tuple[str, ...]
    runs: tuple[Run, ...]

    def to_json(self) -> bytes:
        return self.model_dump_json(indent=2).encode()


def report_key(started: datetime) -> str:
    """The day is UTC's, of a run's start."""
    return f"{PREFIX}{_date(started)}.json"


def merge(day: Day | None, run: Run, table: Prices) -> Day:
    """The day with this run in it, in place of what was said of it before."""
    others = [other for other in day.runs if other.id != run.id] if day else []
    runs = tuple(sorted((*others, run), key=lambda run: (run.started, run.id)))
    totals = _totals(runs, table)
    return Day(date=_date(run.started), totals=totals, tune=tuple(_tune(runs, totals)), runs=runs)


def write(store: Store, run: Run, table: Prices | None = None) -> Day:
    """Merge a run into its day's document.

    Raises:
        Contended: too many others did the same.
        StoreUnavailable, and pydantic's ValidationError where the document in S3 is none of ours.
    """
    key = report_key(run.started)
    try:
        for attempt in Retrying(
            retry=retry_if_exception_type(PreconditionFailed),
            stop=stop_after_attempt(WRITE_TRIES),
            wait=wait_random_exponential(multiplier=0.1, max=2),
            reraise=True,
        ):
            with attempt:
                stored = store.get(key)
                day = merge(Day.model_validate_json(stored.body) if stored else None, run, table or prices())
                store.put(key, day.to_json(), content_type=JSON, if_match=stored.etag if stored else ABSENT)
                return day
    except PreconditionFailed as error:
        raise Contended(f"{key} kept changing") from error
    raise AssertionError("tenacity returns or raises")


def in_words(day: Day) -> Iterator[str]:
    """The document in lines for a person."""
    totals = day.totals
    killed = sum(not run.finished for run in day.runs)
    yield f"{day.date}, runs: {len(day.runs)}" + (f", {killed} of them at work still, or killed" if killed else "")
    yield (
        f"{totals.chunks} chunks, {totals.sessions} sessions, {totals.audio_hours:g} hours of audio, "
        f"{totals.failed} failed"
    )
    for type, markets in totals.instance_hours.items():
        for market, hours in markets.items():
            yield f"{hours:g} hours of {type} {market}"
    if totals.dollars is not None:
        each = totals.dollars_per_audio_hour
        share = "" if each is None else f", {each:g} for an hour of audio"
        yield f"{totals.dollars:g} dollars{share} (prices of {totals.prices_of})"
    for failure in (failure for run in day.runs for failure in run.failures):
        yield f"failed, {failure.count}x: {failure.type}: {failure.message}: {', '.join(failure.keys)}"
    for job in nlargest(TOLD, (job for run in day.runs for job in run.slowest), key=lambda job: job.seconds):
        yield f"slow: {job.seconds:g} s for {job.key}" + (f" and {job.chunks - 1} more" if job.chunks > 1 else "")
    yield from (f"to tune: {advice}" for advice in day.tune)


def _date(when: datetime) -> str:
    return when.astimezone(UTC).date().isoformat()


def _totals(runs: Sequence[Run], table: Prices) -> Totals:
    audio = sum(run.audio_seconds for run in runs)
    working = sum(run.working_seconds for run in runs)
    hours: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for host, seconds in _instances(runs):
        hours[host.type][host.market] += seconds / HOUR
    costs = [
        None if price is None else price * spent
        for type, markets in hours.items()
        for market, spent in markets.items()
        for price in [table.an_hour(type, market)]
    ]
    dollars = None if None in costs else sum(filter(None, costs))
    return Totals(
        chunks=sum(run.chunks for run in runs),
        sessions=sum(run.sessions for run in runs),
        failed=sum(failure.count for run in runs for failure in run.failures),
        audio_hours=round(audio / HOUR, 4),
        speed=round(audio / working, 2) if working else None,
        instance_hours={
            type: {market: round(spent, 4) for market, spent in markets.items()} for type, markets in hours.items()
        },
        dollars=None if dollars is None else round(dollars, 4),
        dollars_per_audio_hour=None if dollars is None or not audio else round(dollars / (audio / HOUR), 4),
        prices_of=table.date,
    )


def _instances(runs: Sequence[Run]) -> list[tuple[Host, float]]:
    """Each instance once, and its seconds from its start to the end of its last run."""
    spans: dict[str, tuple[Host, datetime]] = {}
    for run in runs:
        if run.instance:
            host, until = spans.get(run.instance.id, (run.instance, run.ended))
            spans[run.instance.id] = (min(host, run.instance, key=lambda host: host.up_since), max(until, run.ended))
    return [(host, (until - host.up_since).total_seconds()) for host, until in spans.values()]


def _tune(runs: Sequence[Run], totals: Totals) -> Iterator[str]:
    """What the day's figures say for certain, in words for whoever sets the variables."""
    hosted = [run for run in runs if run.instance]
    there = sum(seconds for _, seconds in _instances(runs))
    booting = sum(_boots(hosted).values())
    idle = there - booting - sum(run.working_seconds for run in hosted)
    told = [run for run in runs if run.busy_seconds]
    working = sum(run.working_seconds for run in told)
    busy = sum(run.busy_seconds for run in told)
    messages = sum(sum(run.results.values()) for run in runs)
    later = sum(run.results.get("later", 0) for run in runs)
    if booting > MUCH_BOOT * there:
        yield (
            f"{booting / there:.0%} of the instances' time was their start: raise LEAST_JOBS, so that they start for "
            "more, or TARGET_MINUTES, so that fewer start"
        )
    if idle > MUCH_IDLE * there:
        yield f"{idle / there:.0%} of the instances' time they had no job: lower IDLE_TIMEOUT_MINUTES"
    if busy < LITTLE_BUSY * working:
        yield (
            f"the recognizer was busy for {busy / working:.0%} of the time between first and last job: raise "
            "WORKER_CONCURRENCY, or GROUP_MESSAGES where sessions are long"
        )
    if later > MANY_LATER * messages:
        yield f"{later} of {messages} messages had to be tried again: `later` in the worker's log says why"
    if hosted and totals.speed:
        yield f"INSTANCE_SPEED: {totals.speed:g} is what a worker did"
    if totals.dollars is None:
        yield "there are instances without a price in shared/prices.json: no dollars"


def _boots(hosted: Sequence[Run]) -> dict[str, float]:
    """Seconds from each instance's start to its first job."""
    boots: dict[str, float] = {}
    for run in hosted:
        if run.instance and run.boot_seconds is not None:
            boots[run.instance.id] = min(run.boot_seconds, boots.get(run.instance.id, run.boot_seconds))
    return boots
