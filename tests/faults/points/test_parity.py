"""The in-memory ports do what S3, SQS and Auto Scaling do, on moto and on MiniStack."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import settings
from moto import mock_aws

from shared.queues import Message, QueueUnavailable
from tests.fakes import MemoryQueue
from tests.faults.points.parity import MACHINES, Calm, Cloud, cloud_at, compare, new_queue
from tests.patience import eventually

EXAMPLES, STEPS = 8, 25


@pytest.fixture(params=["moto", "ministack"])
def cloud(request: pytest.FixtureRequest) -> Iterator[Cloud]:
    if request.param == "ministack":
        yield cloud_at(request.getfixturevalue("endpoint"))
        return
    with mock_aws():
        yield cloud_at(None)


@pytest.mark.parametrize("machine", MACHINES)
def test_the_same_calls_have_the_same_answers(cloud: Cloud, machine: type) -> None:
    compare(machine, cloud, settings(max_examples=EXAMPLES, stateful_step_count=STEPS))


@dataclass(frozen=True)
class Aged:
    """A queue, and how its time passes."""

    queue: Any
    let_pass: Callable[[float], object]


def in_memory() -> Aged:
    now = [0.0]
    return Aged(MemoryQueue(clock=lambda: sum(now), at_once=0), now.append)


def in_the_simulation() -> Aged:
    calm = Calm()
    return Aged(calm.queue(), calm.scheduler.advance)


KINDS = (in_memory, in_the_simulation)


def real(cloud: Cloud) -> Aged:
    return Aged(new_queue(cloud), lambda _: None)


def received_after(aged: Aged, seconds: float) -> list[Message]:
    aged.let_pass(seconds)
    return eventually(lambda: aged.queue.receive(most=10, wait=1, visibility=1), "a message")


def test_what_was_delayed_comes(cloud: Cloud) -> None:
    def history(aged: Aged) -> tuple[str, int]:
        aged.queue.send_raw('{"for": "later"}', delay=1)
        [message] = received_after(aged, 1)
        return message.body, message.receive_count

    expected = history(real(cloud))
    assert [history(kind()) for kind in KINDS] == [expected] * len(KINDS)


def test_what_nobody_renews_comes_back_and_can_still_be_deleted(cloud: Cloud) -> None:
    def history(aged: Aged) -> list[object]:
        queue = aged.queue
        queue.send_raw('{"for": "now"}')
        [first] = queue.receive(most=10, wait=0, visibility=2)
        [again] = received_after(aged, 2)
        aged.let_pass(1)
        eventually(lambda: queue.backlog().visible, "the end of its lease")
        queue.delete(again)
        return [again.body, again.receive_count, first.receipt != again.receipt, queue.backlog()]

    expected = history(real(cloud))
    assert [history(kind()) for kind in KINDS] == [expected] * len(KINDS)


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_not_in_flight_by_this_receipt_is_not_hidden(kind: Callable[[], Aged]) -> None:
    """As AWS documents it; the emulators hide it again."""
    aged = kind()
    aged.queue.send_raw("{}")
    [first] = aged.queue.receive(most=1, wait=0, visibility=2)
    aged.let_pass(2)
    refused(lambda: aged.queue.extend(first, 60))
    [again] = aged.queue.receive(most=1, wait=0, visibility=2)
    refused(lambda: aged.queue.extend(first, 0))
    assert aged.queue.backlog().in_flight == 1
    aged.queue.extend(again, 60)


def test_no_receive_brings_more_than_ten(cloud: Cloud) -> None:
    for queue in queues(cloud):
        for number in range(12):
            queue.send_raw(f'{{"number": {number}}}')
        assert len(queue.receive(most=50, wait=0, visibility=60)) == 10
        assert (queue.backlog().visible, queue.backlog().in_flight) == (2, 10)


def test_a_receipt_that_was_never_given_is_refused(cloud: Cloud) -> None:
    for queue in queues(cloud):
        with pytest.raises(QueueUnavailable):
            queue.delete(Message("x", "no receipt", "", 1))


def queues(cloud: Cloud) -> list[Any]:
    return [new_queue(cloud), *(kind().queue for kind in KINDS)]


def refused(call: Callable[[], object]) -> None:
    with pytest.raises(QueueUnavailable):
        call()
