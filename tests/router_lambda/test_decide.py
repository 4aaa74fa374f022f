"""The router's decision table, a test per row."""

from datetime import UTC, datetime, time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from router_lambda.decide import (
    ANSWER_SECONDS,
    ATTEMPTS,
    CONNECT_SECONDS,
    JITTER,
    QUEUE_RESERVE_SECONDS,
    RETRY_WAITS,
    Decision,
    Enqueue,
    Policy,
    Post,
    Refuse,
    Retry,
    Settled,
    Skip,
    after_answer,
    may_post,
    triage,
)
from shared.jobs import Job, Reason
from shared.outcomes import Standing
from shared.server import Answer, Said

LAMBDA_SECONDS = 120
NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def job(size: int = 80_000) -> Job:
    return Job(bucket="audio-bucket", key="a.mp3", etag="e", size=size)


@pytest.mark.parametrize(
    ("standing", "size", "force", "policy", "expected"),
    [
        (Standing.TRANSCRIBED, 9, False, Policy(), Skip(Standing.TRANSCRIBED)),
        (Standing.FAILED, 9, False, Policy(), Skip(Standing.FAILED)),
        (Standing.TRANSCRIBED, 9, True, Policy(), Skip(Standing.TRANSCRIBED)),
        (Standing.OPEN, 0, False, Policy(), Refuse("media-empty", "the object has no bytes")),
        (Standing.OPEN, 9, True, Policy(), Enqueue(Reason.FORCED, "the event asks for the batch")),
        (Standing.OPEN, 9, False, Policy(batch_only=True), Enqueue(Reason.DEFERRED, "ROUTING=batch")),
        (Standing.OPEN, 9, False, Policy(defer_above=8), Enqueue(Reason.DEFERRED, "larger than DEFER_ABOVE_BYTES")),
        (Standing.OPEN, 8, False, Policy(defer_above=8), Post(wait=True)),
        (Standing.OPEN, 9, False, Policy(long_above=8), Post(wait=False)),
        (Standing.OPEN, 8, False, Policy(long_above=8), Post(wait=True)),
    ],
)
def test_what_is_decided_before_a_server_is_asked(
    standing: Standing, size: int, force: bool, policy: Policy, expected: object
) -> None:
    assert triage(job(size), standing=standing, force_batch=force, policy=policy, now=NOON) == expected


@pytest.mark.parametrize(
    ("window", "now", "live"),
    [
        (("08:00", "18:00"), "07:59", False),
        (("08:00", "18:00"), "08:00", True),
        (("08:00", "18:00"), "18:00", False),
        (("22:00", "02:00"), "23:30", True),
        (("22:00", "02:00"), "01:59", True),
        (("22:00", "02:00"), "12:00", False),
    ],
)
def test_outside_live_hours_jobs_wait_in_the_queue(window: tuple[str, str], now: str, live: bool) -> None:
    policy = Policy(live_window=(time.fromisoformat(window[0]), time.fromisoformat(window[1])))
    moment = datetime.combine(NOON.date(), time.fromisoformat(now), UTC)
    step = triage(job(), standing=Standing.OPEN, force_batch=False, policy=policy, now=moment)
    assert isinstance(step, Post if live else Enqueue)


def decide(answer: Answer, attempt: int = 1, remaining: float = 100, jitter: float = 0) -> object:
    return after_answer(answer, attempt=attempt, remaining=remaining, jitter=jitter)


def test_a_done_or_accepted_job_is_settled() -> None:
    assert decide(Answer(Said.DONE, 200)) == Settled(Decision.DIRECT)
    assert decide(Answer(Said.ACCEPTED, 202)) == Settled(Decision.ACCEPTED)


def test_bad_input_is_recorded_without_a_retry() -> None:
    assert decide(Answer(Said.REFUSED, 415, "media-not-recognised", "no")) == Refuse("media-not-recognised", "no")


def test_a_chunk_whose_header_is_not_there_yet_waits_in_the_queue() -> None:
    assert decide(Answer(Said.NOT_YET, 422, message="later")) == Enqueue(Reason.DEFERRED, "later")


def test_our_own_misconfiguration_is_queued_and_never_blamed_on_the_audio() -> None:
    step = decide(Answer(Said.UNAUTHORIZED, 401))
    assert isinstance(step, Enqueue)
    assert step.reason is Reason.FAILED


@pytest.mark.parametrize("said", [Said.FAILED, Said.BUSY])
def test_failures_are_retried_after_one_two_and_four_seconds_and_then_queued(said: Said) -> None:
    steps = [decide(Answer(said, 503), attempt) for attempt in range(1, ATTEMPTS + 1)]
    assert steps[:-1] == [Retry(1.0), Retry(2.0), Retry(4.0)]
    assert isinstance(steps[-1], Enqueue)


def test_a_busy_server_is_given_the_time_it_asks_for_or_left_to_the_queue() -> None:
    assert decide(Answer(Said.BUSY, 429, retry_after=3.0)) == Retry(3.0)
    step = decide(Answer(Said.BUSY, 429, retry_after=60.0))
    assert isinstance(step, Enqueue)
    assert step.reason is Reason.UNHEALTHY


tries = st.tuples(st.floats(0, ANSWER_SECONDS), st.floats(-1, 1), st.none() | st.floats(0, 30))


@given(remaining=st.floats(0, LAMBDA_SECONDS), outcomes=st.lists(tries, min_size=4))
def test_whatever_happens_the_queue_send_keeps_its_time(
    remaining: float, outcomes: list[tuple[float, float, float | None]]
) -> None:
    """Tries take any time they may, waits are jittered, the server asks for any pause: the reserve is never touched."""
    if not may_post(remaining):
        return  # the job is queued at once
    for attempt, (took, jitter, retry_after) in enumerate(outcomes, 1):
        remaining -= took
        answer = Answer(Said.BUSY, 503, retry_after=retry_after)
        step = after_answer(answer, attempt=attempt, remaining=remaining, jitter=jitter)
        if isinstance(step, Enqueue):
            break
        assert isinstance(step, Retry)
        remaining -= step.after
    else:
        raise AssertionError("it must end")
    assert remaining >= QUEUE_RESERVE_SECONDS


def test_the_lambdas_timeout_holds_four_full_tries_and_the_fallback() -> None:
    worst = 2 + ATTEMPTS * ANSWER_SECONDS + sum(RETRY_WAITS) * (1 + JITTER) + QUEUE_RESERVE_SECONDS
    assert worst < LAMBDA_SECONDS
    assert CONNECT_SECONDS < ANSWER_SECONDS
