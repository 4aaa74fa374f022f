"""More than the server can take: it says so at once, the rest goes through the queue, and nothing is lost."""

from pathlib import Path

import pytest

from tests.faults.load.clients import REFUSED, TAKEN, foretold
from tests.faults.load.rush import Shape, slow_numbers

pytestmark = pytest.mark.integration

SHAPE = Shape(sessions=6, chunks=12, seconds=4)
FORETOLD = 0.75  # one that guesses has half; of few looks, on a busy machine
GROWTH_BYTES = 400 << 20  # some 60 MB are usual


def test_a_burst_at_ten_times_the_capacity(tmp_path: Path) -> None:
    rush = slow_numbers(tmp_path, SHAPE)
    assert rush.wrong == []
    assert rush.drained == 0
    assert rush.decisions["queued"] > 0
    assert set(rush.decisions) <= {"direct", "queued", "skipped", "checked"}
    assert {one.status for one in rush.posts} == {200, 202, 429}
    assert all(one.retry_after for one in rush.refusals)
    assert len(rush.refusals) > len(rush.posts) / 2  # nobody waits for a place: how long it takes is for `make faults`
    assert {(one.status, one.reason) for one in rush.health} == {(200, ""), (503, "saturated")}
    assert foretold(rush.looks, TAKEN) > FORETOLD
    assert foretold(rush.looks, REFUSED) > FORETOLD
    assert rush.grown < GROWTH_BYTES
