"""Real processes under fire, in short: some faults one by one, AWS failing at 30 %, and everything at once.

`make faults` has all of it, many times over.
"""

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest

from tests.faults.chaos import storm
from tests.faults.chaos.drills import run
from tests.faults.chaos.faults import PROCESSES
from tests.faults.chaos.rules import SQS
from tests.faults.chaos.storm import SMALL
from tests.faults.chaos.system import System, a_system

SEED = 1
SOME = (
    "kill -9 of the server",
    "kill -9 of the worker",
    "kill -9 of a function",
    "AWS away and back",
    "GPU broken for good",
)
FEW = replace(SMALL, first=501, sessions=1, deliveries=1, overwritten=1)
CALM = replace(FEW, deliveries=4, seconds=2.0)

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    with a_system() as system:
        yield system


@pytest.mark.parametrize(("number", "kind"), list(enumerate(SOME, 901)))
def test_after_a_fault_nothing_is_lost_and_nothing_wrong(system: System, number: int, kind: str) -> None:
    ended = run(system, kind, PROCESSES[kind], number=number, choice=random.Random(f"{SEED} {number}"))
    assert ended.fired
    assert ended.wrong == ()


def test_kills_an_outage_duplicates_and_late_manifests_at_once_lose_nothing(system: System) -> None:
    great = storm.chaos(system, SMALL, seed=SEED)
    assert great.wrong == []
    assert great.done == great.chunks
    struck = {kind for kind, times in great.kinds.items() if times}
    assert struck >= {storm.OUTAGE, "kill -9 of the server", "kill -9 of the worker", "kill -9 of a function"}
    assert great.outage_seconds >= SMALL.outage_seconds


def test_duplicates_alone_have_no_version_heard_twice() -> None:
    with a_system(**storm.ALONE) as system:
        calm = storm.duplicates(system, CALM, seed=SEED)
    assert calm.wrong == []
    assert calm.done == calm.chunks
    assert set(calm.heard.values()) == {1}
    assert calm.again == 3 * calm.uploads


def test_an_answer_without_messages_is_not_lost_and_does_not_count(system: System) -> None:
    kind = "SQS receive done, answer lost"
    queue = system.sqs.create_queue(QueueName="of-this-test")["QueueUrl"]
    through_proxy = system.client("sqs", system.aws.url)
    before = system.aws.fired()[kind]
    system.aws.set({kind: SQS[kind] | {"times": 1}})
    assert "Messages" not in through_proxy.receive_message(QueueUrl=queue)
    assert system.aws.fired()[kind] == before
    system.sqs.send_message(QueueUrl=queue, MessageBody="lost")
    assert "Messages" not in through_proxy.receive_message(QueueUrl=queue)  # the SDK's second try finds it in hand
    assert system.aws.fired()[kind] == before + 1
    system.aws.clear()


def test_every_chunk_is_transcribed_in_the_end_though_30_percent_of_requests_fail(system: System) -> None:
    before = system.aws.fired()
    failing = storm.aws(system, FEW, seed=SEED)
    assert failing.wrong == []
    assert failing.done == failing.chunks
    assert sum(failing.kinds[kind] > before[kind] for kind in failing.kinds) >= 10
