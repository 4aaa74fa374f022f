"""What a rush is judged by can fail."""

import itertools
from collections.abc import Callable

import pytest

from bench.measure import rss_bytes
from shared.jobs import Job
from shared.keys import Session
from shared.store import StoredObject
from tests.fakes import transcript_for
from tests.faults.load.clients import HEALTH, REFUSED, TAKEN, Asked, Look, foretold
from tests.faults.load.parts import FORETOLD
from tests.faults.load.rush import known, misheard
from tests.faults.oracle import Found

POSTS = [TAKEN] * 10 + [REFUSED] * 90


def looks(health: Callable[[int], int]) -> list[Look]:
    return [Look(Asked(health(post), 0.1), Asked(post, 0.1)) for post in POSTS]


def least(seen: list[Look]) -> float:
    return min(foretold(seen, TAKEN), foretold(seen, REFUSED))


def test_health_that_says_what_posts_get_is_truthful_though_a_job_may_end_in_between() -> None:
    seen = looks(HEALTH.__getitem__)
    assert least(seen) == 1
    changed = [Look(Asked(HEALTH[TAKEN], 0.1), Asked(REFUSED, 0.1)) for _ in range(5)]
    assert FORETOLD < least(seen + changed) < 1


@pytest.mark.parametrize("always", [200, 503])
def test_health_that_always_says_the_same_is_not(always: int) -> None:
    assert least(looks(lambda post: always)) == 0


def test_health_that_guesses_is_not() -> None:
    turns = itertools.cycle((200, 503))
    assert least(looks(lambda post: next(turns))) == pytest.approx(0.5)


def test_health_is_not_shown_to_be_truthful_by_a_server_that_is_never_full() -> None:
    assert foretold(looks(HEALTH.__getitem__)[:10], REFUSED) == 0


def test_memory_that_cannot_be_read_is_not_little() -> None:
    with pytest.raises(AssertionError, match="cannot be read"):
        known(rss_bytes(2**22 + 1))


@pytest.mark.parametrize(
    ("says", "wrong"), [("One two, three four.", 0), ("one two three five", 1), ("of another session", 1), (None, 1)]
)
def test_a_session_that_says_something_else_or_nothing_is_misheard(says: str | None, wrong: int) -> None:
    session = Session("user", "s")
    job = Job(bucket="bucket", key=f"{session.audio_prefix}chunk-1.webm", etag="e")
    objects = {session.output_key: StoredObject(transcript_for(job, says).to_json(), "e")} if says else {}
    assert len(misheard(Found("b", objects, []), {session: "one two three four"})) == wrong
