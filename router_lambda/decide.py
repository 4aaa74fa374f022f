"""What the router decides, as pure functions: before a server is asked, and after it has answered."""

from dataclasses import dataclass
from datetime import datetime, time
from enum import StrEnum

from shared.combine import Combined, Status
from shared.jobs import Job, Reason
from shared.outcomes import Standing
from shared.server import Answer, Said

RETRY_WAITS = (1.0, 2.0, 4.0)  # seconds between tries
ATTEMPTS = len(RETRY_WAITS) + 1
JITTER = 0.25  # of a wait, so that a burst of chunks does not come back as a burst
CONNECT_SECONDS = 2.0
ANSWER_SECONDS = 22.0  # to connect and to answer, in all
QUEUE_RESERVE_SECONDS = 10.0  # kept for sending the job to the queue, whatever happens
RESTITCH_SECONDS = 5.0  # for a server to say that it will hear a session once more
MAX_RETRY_AFTER_SECONDS = 10.0  # a longer wait is cheaper in the queue than in a Lambda


class Decision(StrEnum):
    """What became of an event; also the metric's name."""

    IGNORED = "ignored"
    SKIPPED = "skipped"
    DIRECT = "direct"
    ACCEPTED = "accepted"
    QUEUED = "queued"
    FAILED = "failed"
    CHECKED = "checked"


@dataclass(frozen=True)
class Policy:
    """When a job is not even tried now. Sizes in bytes; `live_window` is local wall-clock time.

    `restitch`: a session whose chunks were heard alone is heard once more, whole.
    """

    batch_only: bool = False
    defer_above: int | None = None
    long_above: int = 5_000_000
    live_window: tuple[time, time] | None = None
    restitch: bool = True


@dataclass(frozen=True)
class Skip:
    standing: Standing


@dataclass(frozen=True)
class Refuse:
    type: str
    message: str


@dataclass(frozen=True)
class Enqueue:
    reason: Reason
    why: str


@dataclass(frozen=True)
class Post:
    """Ask a server. `wait` False: it is long, so don't hold the Lambda for it. `new`: nothing lies where it writes."""

    wait: bool
    new: bool = False


def triage(
    job: Job, *, standing: Standing, force_batch: bool, policy: Policy, now: datetime
) -> Skip | Refuse | Enqueue | Post:
    """What to do with audio, before any server is asked. `now` is in the policy's time zone."""
    if not standing.is_open:
        return Skip(standing)
    if job.size == 0:
        return Refuse("media-empty", "the object has no bytes")
    if force_batch:
        return Enqueue(Reason.FORCED, "the event asks for the batch")
    if policy.batch_only:
        return Enqueue(Reason.DEFERRED, "ROUTING=batch")
    if policy.defer_above is not None and (job.size or 0) > policy.defer_above:
        return Enqueue(Reason.DEFERRED, "larger than DEFER_ABOVE_BYTES")
    if not _is_live(policy, now):
        return Enqueue(Reason.DEFERRED, "outside LIVE_HOURS")
    return Post(wait=(job.size or 0) <= policy.long_above, new=standing is Standing.NEW)


def wants_stitching(combined: Combined, *, policy: Policy, now: datetime) -> bool:
    """Whether a session is complete, could be better, and a server may be asked now. The batch betters the others."""
    betterable = combined.status is Status.COMPLETE and combined.live > 0
    return betterable and policy.restitch and not policy.batch_only and _is_live(policy, now)


def _is_live(policy: Policy, now: datetime) -> bool:
    return policy.live_window is None or _within(now.time(), policy.live_window)


def _within(moment: time, window: tuple[time, time]) -> bool:
    """A window that ends before it starts goes over midnight."""
    start, end = window
    return start <= moment < end if start <= end else moment >= start or moment < end


@dataclass(frozen=True)
class Retry:
    after: float


@dataclass(frozen=True)
class Settled:
    decision: Decision


def after_answer(
    answer: Answer, *, attempt: int, remaining: float, jitter: float
) -> Settled | Refuse | Enqueue | Retry:
    """What to do with a server's answer to try number `attempt` (from 1).

    Args:
        remaining: seconds left to the Lambda.
        jitter: in [-1, 1], how far to move the wait.
    """
    match answer.said:
        case Said.DONE:
            return Settled(Decision.DIRECT)
        case Said.ACCEPTED:
            return Settled(Decision.ACCEPTED)
        case Said.REFUSED:
            return Refuse(answer.type, answer.message)
        case Said.NOT_YET:
            return Enqueue(Reason.DEFERRED, answer.message)
        case Said.UNAUTHORIZED:
            return Enqueue(Reason.FAILED, f"the server does not accept our key or bucket (HTTP {answer.status})")
        case Said.BUSY | Said.UNTRIED | Said.FAILED:
            return _again(answer, attempt, remaining, jitter)


def _again(answer: Answer, attempt: int, remaining: float, jitter: float) -> Retry | Enqueue:
    why = answer.message or f"HTTP {answer.status}"
    if attempt >= ATTEMPTS:
        return Enqueue(Reason.FAILED, f"{ATTEMPTS} tries: {why}")
    after = RETRY_WAITS[attempt - 1] * (1 + JITTER * jitter)
    if answer.retry_after is not None:
        after = max(after, answer.retry_after)
        if answer.retry_after > MAX_RETRY_AFTER_SECONDS:
            return Enqueue(Reason.UNHEALTHY, f"busy for {answer.retry_after:.0f} s: {why}")
    if not may_post(remaining - after):
        return Enqueue(Reason.FAILED, f"no time for another try: {why}")
    return Retry(after)


def may_post(remaining: float) -> bool:
    """True when a try that takes all the time it may still leaves what the queue send needs."""
    return remaining >= ANSWER_SECONDS + QUEUE_RESERVE_SECONDS
