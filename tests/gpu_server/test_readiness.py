"""Slots: how many jobs at once, and one that wants no other beside it."""

import pytest

from gpu_server import readiness
from gpu_server.problems import Refused
from gpu_server.readiness import KEPT_SECONDS, Phase, Readiness


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, which stands until somebody changes it."""
    now = [1000.0]
    monkeypatch.setattr(readiness.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def ready(now: list[float]) -> Readiness:
    ready = Readiness(2)
    ready.phase = Phase.READY
    return ready


def is_refused(ready: Readiness, *, alone: bool = False) -> bool:
    try:
        ready.take_slot(alone=alone)
    except Refused as error:
        assert (error.status, error.type) == (429, "saturated")
        return True
    return False


def test_a_full_server_refuses(ready: Readiness) -> None:
    assert [is_refused(ready) for _ in range(3)] == [False, False, True]
    assert ready.reason == "saturated"
    ready.free_slot(1.0)
    assert ready.reason is None


def test_beside_a_job_alone_there_is_no_other(ready: Readiness) -> None:
    assert not is_refused(ready, alone=True)
    assert ready.reason == "saturated"
    assert is_refused(ready)
    assert is_refused(ready, alone=True)
    ready.free_slot(1.0)
    assert [is_refused(ready) for _ in range(3)] == [False, False, True]


def test_while_one_waits_to_be_alone_the_others_leave_and_none_comes(ready: Readiness, now: list[float]) -> None:
    assert not is_refused(ready)
    assert is_refused(ready, alone=True)
    assert is_refused(ready)
    ready.free_slot(1.0)
    assert is_refused(ready)
    assert not is_refused(ready, alone=True)
    ready.free_slot(1.0)
    assert not is_refused(ready)


def test_one_that_does_not_come_back_is_not_waited_for(ready: Readiness, now: list[float]) -> None:
    assert not is_refused(ready)
    assert is_refused(ready, alone=True)
    now[0] += KEPT_SECONDS
    assert not is_refused(ready)
