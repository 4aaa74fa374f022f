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
from tests.faults.chaos.faults_of_services import SERVERS
from tests.faults.chaos.storm import SMALL
from tests.faults.chaos.system import System, a_system

SEED = 1
FAULTS = PROCESSES | SERVERS
SOME = (
    "kill -9 of the server",
    "kill -9 of the worker",
    "kill -9 of a function",
    "AWS away and back",
    "GPU broken for good",
    "server says 200 and did nothing",
)
FEW = replace(SMALL, first=501, sessions=2, deliveries=1, overwritten=1)

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def system() -> Iterator[System]:
    with a_system() as system:
        yield system


@pytest.mark.parametrize(("number", "kind"), list(enumerate(SOME, 901)))
def test_after_a_fault_nothing_is_lost_and_nothing_wrong(system: System, number: int, kind: str) -> None:
    ended = run(system, kind, FAULTS[kind], number=number, choice=random.Random(f"{SEED} {number}"))
    assert ended.fired
    assert ended.wrong == ()


def test_kills_an_outage_duplicates_and_late_manifests_at_once_lose_nothing(system: System) -> None:
    great = storm.chaos(system, SMALL, seed=SEED)
    assert great.wrong == []
    assert great.done == great.chunks
    struck = {kind for kind, times in great.kinds.items() if times}
    assert struck >= {storm.OUTAGE, "kill -9 of the server", "kill -9 of the worker", "kill -9 of a function"}


def test_every_chunk_is_transcribed_in_the_end_though_30_percent_of_requests_fail(system: System) -> None:
    before = system.aws.fired()
    failing = storm.aws(system, FEW, seed=SEED)
    assert failing.wrong == []
    assert failing.done == failing.chunks
    assert sum(failing.kinds[kind] > before[kind] for kind in failing.kinds) >= 10
