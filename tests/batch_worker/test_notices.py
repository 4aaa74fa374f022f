"""Notices of an instance's end: which of them stop the worker, and how long it then has."""

from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from batch_worker.notices import MARGIN_SECONDS, NOTICE_SECONDS, Notices, seconds_for_work
from batch_worker.stopping import Stopping
from shared.imds import Imds
from shared.telemetry import INSTANCE_NOTICES
from tests.batch_worker.test_metrics import Observed
from tests.imds import FakeImds

NOW = datetime(2026, 1, 1, 0, 0, 0, tzinfo=UTC)
INTERRUPTION = '{"action": "terminate", "time": "2026-01-01T00:02:00Z"}'
GRACE = 25.0
PATIENCE = 20.0


@pytest.fixture
def metadata() -> Iterator[FakeImds]:
    with FakeImds(**{"autoscaling/target-lifecycle-state": "InService"}) as imds:
        yield imds


@pytest.mark.parametrize(
    ("notice", "seconds"),
    [
        (INTERRUPTION, NOTICE_SECONDS - MARGIN_SECONDS),
        (INTERRUPTION.replace("00:02:00", "00:01:00"), 60 - MARGIN_SECONDS),
        (INTERRUPTION.replace("00:02:00", "00:00:05"), 0),
        (INTERRUPTION.replace("2026", "2025"), 0),
        (INTERRUPTION.replace("2026", "2027"), NOTICE_SECONDS - MARGIN_SECONDS),  # whatever our clock says
        ('{"action": "terminate"}', NOTICE_SECONDS - MARGIN_SECONDS),
        ("soon", NOTICE_SECONDS - MARGIN_SECONDS),
    ],
)
def test_work_goes_on_until_shortly_before_the_time_of_the_notice(notice: str, seconds: float) -> None:
    assert seconds_for_work(notice, NOW) == seconds


def test_an_interruption_stops_the_worker_with_the_time_that_is_left(metadata: FakeImds) -> None:
    stopping, observed = Stopping(GRACE), Observed()
    with Notices(Imds(metadata.url), stopping, observed.observe, interval=0.01, now=lambda: NOW):
        assert not stopping.wait(0.05)
        metadata.items["spot/instance-action"] = INTERRUPTION
        assert stopping.wait(PATIENCE)
    assert GRACE < stopping.seconds_left <= NOTICE_SECONDS - MARGIN_SECONDS
    assert observed.sums(INSTANCE_NOTICES.name) == {"interruption": 1}


def test_an_instance_that_its_group_ends_has_the_usual_time(metadata: FakeImds) -> None:
    stopping, observed = Stopping(GRACE), Observed()
    with Notices(Imds(metadata.url), stopping, observed.observe, interval=0.01):
        metadata.items["autoscaling/target-lifecycle-state"] = "Terminated"
        assert stopping.wait(PATIENCE)
    assert 0 < stopping.seconds_left <= GRACE
    assert observed.sums(INSTANCE_NOTICES.name) == {"scale-in": 1}


def test_a_recommendation_to_rebalance_is_noted_once_and_the_work_goes_on(metadata: FakeImds) -> None:
    stopping, observed = Stopping(GRACE), Observed()
    metadata.items["events/recommendations/rebalance"] = '{"noticeTime": "2026-01-01T00:00:00Z"}'
    notices = Notices(Imds(metadata.url), stopping, observed.observe)
    assert not any(notices._look() for _ in range(3))
    assert not stopping.is_set()
    assert observed.sums(INSTANCE_NOTICES.name) == {"rebalance": 1}


def test_a_metadata_service_that_is_away_is_asked_again(metadata: FakeImds) -> None:
    stopping = Stopping(GRACE)
    imds = Imds(metadata.url)
    notices = Notices(imds, stopping, Observed().observe)
    answer, imds.get = imds.get, Imds("http://127.0.0.1:9").get  # type: ignore[method-assign]
    assert not notices._look()
    metadata.items["spot/instance-action"] = INTERRUPTION
    imds.get = answer  # type: ignore[method-assign]
    assert notices._look()
    assert stopping.is_set()


def test_of_several_deadlines_the_first_holds() -> None:
    stopping = Stopping(GRACE)
    assert stopping.seconds_left == float("inf")
    stopping.within(100)
    assert GRACE < stopping.seconds_left <= 100
    stopping.set()
    stopping.within(50)
    assert 0 < stopping.seconds_left <= GRACE
