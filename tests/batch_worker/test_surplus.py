"""Which instances are surplus: enough always stay, all agree, and a steady load ends in a steady group."""

import math
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_worker.surplus import FULL, Load, Look, Surplus, is_surplus, load_between

IDLE = 600.0
LULL = 20.0
EPSILON = 1e-9  # of floating-point sums


@pytest.mark.parametrize(
    ("instances", "share", "needs"),
    [(1, 0.0, 1), (10, 0.0, 1), (10, 0.05, 1), (10, 0.1, 2), (10, 0.5, 8), (10, 0.69, 10), (10, 1.0, 15), (2, 0.3, 1)],
)
def test_a_load_needs_instances_that_are_busy_for_seven_tenths_of_the_time(
    instances: int, share: float, needs: int
) -> None:
    assert Load(instances, share).needs == needs


@pytest.mark.parametrize(
    ("me", "others", "share", "surplus"),
    [
        ("i-2", {"i-1"}, 0.3, True),
        ("i-2", {"i-1"}, 0.4, False),  # both are needed
        ("i-1", {"i-2"}, 0.0, False),  # the first
        ("i-2", set(), 0.0, False),  # nobody else stays
        ("i-2", {"i-3", "i-4"}, 0.0, False),  # they come after it
        ("i-4", {"i-1", "i-2", "i-3"}, 0.5, True),
    ],
)
def test_who_comes_after_enough_others_is_surplus(me: str, others: set[str], share: float, surplus: bool) -> None:
    assert is_surplus(me, others, Load(len(others | {me}), share)) is surplus


def test_the_load_of_a_time_in_which_the_group_changed_is_that_of_the_greater_group() -> None:
    many, few = frozenset({"i-1", "i-2", "i-3"}), frozenset({"i-1"})
    assert load_between(Look(0, 100, many), Look(600, 160, few)) == Load(3, 0.1)
    assert load_between(Look(0, 100, few), Look(600, 160, many)) == Load(3, 0.1)


def _staying(shares: list[float]) -> int:
    """How many stay when all decide at once."""
    group = [f"i-{number:03}" for number in range(len(shares))]
    return sum(not is_surplus(me, group, Load(len(group), share)) for me, share in zip(group, shares, strict=True))


@given(count=st.integers(1, 100), share=st.floats(0, 1))
def test_those_that_are_equally_busy_agree(count: int, share: float) -> None:
    assert _staying([share] * count) == min(count, Load(count, share).needs)


@given(st.lists(st.floats(0, 1), min_size=1, max_size=50))
def test_all_never_leave(shares: list[float]) -> None:
    assert _staying(shares) >= 1


@given(shares=st.lists(st.floats(FULL, 1.0), min_size=1, max_size=50), mean=st.floats(0, 1))
def test_enough_stay_while_none_is_much_less_busy_than_the_mean(shares: list[float], mean: float) -> None:
    """`shares`: of the mean, for the least busy; whoever is busier only wants more to stay."""
    load = mean * len(shares)
    assert _staying([share * mean for share in shares]) >= min(len(shares), math.ceil(load - EPSILON))


@dataclass
class Group:
    """Instances that share a load. `counted_on`: by the others, as AWS tells of it. `log`: how many there were."""

    load: float
    working: dict[str, "Place"] = field(default_factory=dict)
    counted_on: set[str] = field(default_factory=set)
    now: float = 0.0
    log: list[int] = field(default_factory=list)

    def join(self, id: str) -> "Place":
        self.counted_on.add(id)
        self.working[id] = Place(self, id)
        return self.working[id]

    def passes(self, seconds: float) -> None:
        self.now += seconds
        for place in self.working.values():
            place.busy += min(1.0, self.load / len(self.working)) * seconds
        self.log.append(len(self.working))


@dataclass
class Place:
    group: Group
    id: str
    busy: float = 0.0
    knows: bool = True

    def __post_init__(self) -> None:
        self.surplus = Surplus(self, IDLE)

    def working(self) -> frozenset[str]:
        return frozenset(self.group.counted_on) if self.knows else frozenset()

    def looks(self) -> None:
        """At a lull: it goes if it may."""
        if self.surplus.is_due(self.group.now, self.busy):
            self.group.counted_on.remove(self.id)
            if self.surplus.is_confirmed():
                del self.group.working[self.id]
            else:
                self.group.counted_on.add(self.id)


@given(starts=st.lists(st.integers(0, 40), min_size=1, max_size=12), load=st.floats(0, 10))
def test_a_steady_load_ends_in_a_steady_group_that_was_never_too_small(starts: list[int], load: float) -> None:
    """Whenever each began to look; so the launcher never asks for one more, and nothing comes and goes in turn."""
    group = Group(load)
    places = [group.join(f"i-{number:02}") for number in range(len(starts))]
    for step in range(40 + len(starts) * 2 * int(IDLE / LULL)):
        group.passes(LULL)
        for place, start in zip(places, starts, strict=True):
            if step >= start and place.id in group.working:
                place.looks()
    assert min(group.log) >= min(len(starts), math.ceil(load - EPSILON))
    wanted = {max(1, math.ceil(load / FULL + epsilon)) for epsilon in (-EPSILON, EPSILON)}
    assert group.log[-1] in {min(len(starts), each) for each in wanted}
    assert set(group.log[-int(2 * IDLE / LULL) :]) == {group.log[-1]}


def _quiet_pair() -> tuple[Group, Place, Place]:
    """Two that have little to do, and have looked once."""
    group = Group(load=0.2)
    first, second = group.join("i-1"), group.join("i-2")
    assert not first.surplus.is_due(0, 0)
    assert not second.surplus.is_due(0, 0)
    return group, first, second


def test_of_a_quiet_pair_the_second_leaves_after_the_idle_time() -> None:
    group, first, second = _quiet_pair()
    group.passes(IDLE - 1)
    assert not second.surplus.is_due(group.now, second.busy)
    group.passes(1)
    assert second.surplus.is_due(group.now, second.busy)
    assert not first.surplus.is_due(group.now, first.busy)


def test_who_counted_on_one_that_leaves_too_stays() -> None:
    """As the first may that was idle."""
    group, _, second = _quiet_pair()
    group.passes(IDLE)
    assert second.surplus.is_due(group.now, second.busy)
    group.counted_on -= {"i-1", "i-2"}
    assert not second.surplus.is_confirmed()


def test_a_server_that_started_again_is_watched_anew() -> None:
    group, _, second = _quiet_pair()
    group.passes(IDLE)
    assert second.surplus.is_due(group.now, second.busy)
    group.passes(IDLE)
    assert not second.surplus.is_due(group.now, 1.0)
    group.passes(IDLE)
    assert second.surplus.is_due(group.now, 61.0)


def test_when_the_group_is_not_known_nobody_leaves() -> None:
    group, _, second = _quiet_pair()
    second.knows = False
    group.passes(IDLE)
    assert not second.surplus.is_due(group.now, second.busy)
    second.knows = True
    group.passes(IDLE)
    assert not second.surplus.is_due(group.now, second.busy)  # how many there were before is not known
    group.passes(IDLE)
    assert second.surplus.is_due(group.now, second.busy)
