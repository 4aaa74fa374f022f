"""Which instances have to end, and how many never came to work."""

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_worker.reaper import Activity, End, Instance, failed_boots, to_end

NOW = datetime(2026, 1, 2, 3, 0, tzinfo=UTC)
UNHEALTHY = "At 2026-01-02T02:20:00Z an instance was taken out of service in response to a user health-check."


def instance(id: str, *, hours: float, protected: bool = False) -> Instance:
    """One that was launched so many hours ago."""
    return Instance(id, NOW - timedelta(hours=hours), protected)


def replaced(*, hours: float, cause: str = UNHEALTHY) -> Activity:
    return Activity(NOW - timedelta(hours=hours), cause)


def ended(*instances: Instance, hours: float = 12, gave_up: bool = False, spare: int = 9) -> dict[str, End]:
    return {one.id: end for one, end in to_end(instances, hours=hours, gave_up=gave_up, spare=spare, now=NOW)}


@pytest.mark.parametrize(
    "cause",
    [
        "At 2026-01-02T02:20:00Z an instance was taken out of service in response to an EC2 health check "
        "indicating it has been terminated or stopped.",
        "At 2026-01-02T02:20:00Z an instance was taken out of service in response to an EC2 instance rebalance "
        "recommendation.",
        "At 2026-01-02T02:20:00Z instance i-1 was taken out of service in response to a user request, shrinking the "
        "capacity from 2 to 1.",
        "At 2026-01-02T02:20:00Z an instance was started in response to a difference between desired and actual "
        "capacity, increasing the capacity from 0 to 1.",
    ],
)
def test_only_an_instance_that_said_it_is_unhealthy_is_a_failed_boot(cause: str) -> None:
    assert failed_boots([replaced(hours=1), replaced(hours=1, cause=cause)], [], NOW) == 1


def test_a_failed_boot_is_forgotten_after_three_hours() -> None:
    assert failed_boots([replaced(hours=2.9), replaced(hours=3.1)], [], NOW) == 1


@pytest.mark.parametrize(
    ("alive", "count"),
    [
        (instance("works, and came after the first", hours=1.5, protected=True), 1),
        (instance("works, and came after both", hours=0.5, protected=True), 0),
        (instance("worked before them", hours=2.5, protected=True), 2),
        (instance("boots", hours=0.5), 2),
    ],
)
def test_an_instance_that_works_shows_that_boots_go_well_again(alive: Instance, count: int) -> None:
    assert failed_boots([replaced(hours=2), replaced(hours=1)], [alive], NOW) == count


def test_what_is_up_for_too_long_ends_be_it_at_work_or_not() -> None:
    young, old = instance("young", hours=11.9), instance("old", hours=12)
    assert ended(young, old, instance("busy", hours=13, protected=True)) == {
        "busy": End.TOO_LONG,
        "old": End.TOO_LONG,
    }


def test_who_gave_up_ends_those_without_work_and_leaves_the_others() -> None:
    fleet = instance("boots", hours=0.2), instance("works", hours=1, protected=True)
    assert ended(*fleet, gave_up=True) == {"boots": End.GAVE_UP}
    assert ended(*fleet) == {}


@pytest.mark.parametrize(("spare", "gone"), [(2, ["c", "a"]), (1, ["c"]), (0, []), (-1, [])])
def test_the_group_keeps_as_many_as_it_must_have_and_loses_the_oldest(spare: int, gone: list[str]) -> None:
    fleet = instance("a", hours=14), instance("b", hours=13), instance("c", hours=15)
    assert list(ended(*fleet, spare=spare)) == gone


fleets = st.lists(st.tuples(st.floats(0, 48), st.booleans()), max_size=8).map(
    lambda drawn: [instance(str(n), hours=hours, protected=busy) for n, (hours, busy) in enumerate(drawn)]
)


@given(fleets, st.floats(0.01, 200), st.booleans(), st.integers(-2, 10))
def test_nothing_young_that_works_is_ever_ended_and_nothing_twice(
    fleet: list[Instance], hours: float, gave_up: bool, spare: int
) -> None:
    ends = to_end(fleet, hours=hours, gave_up=gave_up, spare=spare, now=NOW)
    assert len({one.id for one, _ in ends}) == len(ends) <= max(0, spare)
    for one, end in ends:
        too_long = NOW - one.launched >= timedelta(hours=hours)
        assert end is (End.TOO_LONG if too_long else End.GAVE_UP)
        assert too_long or (gave_up and not one.protected)
