"""The in-memory ports do what S3, SQS and Auto Scaling do, on moto and on MiniStack."""

from collections.abc import Callable, Iterator

import pytest
from hypothesis import settings
from moto import mock_aws

from shared.queues import Message, Queue, QueueUnavailable
from tests.fakes import MemoryQueue
from tests.faults.points.parity import Cloud, FleetMachine, QueueMachine, StoreMachine, cloud_at, compare, new_queue
from tests.patience import eventually

EXAMPLES, STEPS = 8, 25


@pytest.fixture(params=["moto", "ministack"])
def cloud(request: pytest.FixtureRequest) -> Iterator[Cloud]:
    if request.param == "ministack":
        yield cloud_at(request.getfixturevalue("endpoint"))
        return
    with mock_aws():
        yield cloud_at(None)


@pytest.mark.parametrize("machine", [StoreMachine, QueueMachine, FleetMachine])
def test_the_same_calls_have_the_same_answers(cloud: Cloud, machine: type) -> None:
    compare(machine, cloud, settings(max_examples=EXAMPLES, stateful_step_count=STEPS))


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def received_after(queue: Queue, clock: Clock, seconds: float) -> list[Message]:
    clock.now += seconds
    return eventually(lambda: queue.receive(most=10, wait=1, visibility=1), "a message")


def test_what_was_delayed_comes(cloud: Cloud) -> None:
    clock = Clock()

    def history(queue: Queue) -> tuple[str, int]:
        queue.send_raw("later", delay=1)
        [message] = received_after(queue, clock, 1)
        return message.body, message.receive_count

    memory: Callable[[], object] = MemoryQueue(clock=clock, at_once=0)  # type: ignore[assignment]
    assert history(new_queue(cloud)) == history(memory)  # type: ignore[arg-type]


def test_what_nobody_renews_comes_back_and_can_still_be_deleted(cloud: Cloud) -> None:
    clock = Clock()

    def history(queue: Queue) -> list[object]:
        queue.send_raw("at once")
        [first] = queue.receive(most=10, wait=0, visibility=2)
        [again] = received_after(queue, clock, 2)
        clock.now += 1
        eventually(lambda: queue.backlog().visible, "the end of its lease")
        queue.delete(again)
        return [again.body, again.receive_count, first.receipt != again.receipt, queue.backlog()]

    memory: Callable[[], object] = MemoryQueue(clock=clock, at_once=0)  # type: ignore[assignment]
    assert history(new_queue(cloud)) == history(memory)  # type: ignore[arg-type]


def test_no_receive_brings_more_than_ten(cloud: Cloud) -> None:
    for queue in (MemoryQueue(), new_queue(cloud)):
        for number in range(12):
            queue.send_raw(f"message {number}")
        assert len(queue.receive(most=50, wait=0, visibility=60)) == 10
        assert (queue.backlog().visible, queue.backlog().in_flight) == (2, 10)


def test_a_receipt_that_was_never_given_is_refused(cloud: Cloud) -> None:
    for queue in (MemoryQueue(), new_queue(cloud)):
        with pytest.raises(QueueUnavailable):
            queue.delete(Message("x", "no receipt", "", 1))
