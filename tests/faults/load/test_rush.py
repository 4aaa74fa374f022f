"""More than the server can take: it says so at once, the rest goes through the queue, and nothing is lost."""

from pathlib import Path

import pytest

from tests.faults.load.rush import Shape, percentile, slow_numbers

pytestmark = pytest.mark.integration

SHAPE = Shape(sessions=6, chunks=20, seconds=5)
GROWTH_BYTES = 400 << 20  # some 60 MB are usual
LONG_S = 5.0  # for half of the refusals, and of the answers of /health: p99 is for `make faults`, on a quiet machine


def test_a_burst_at_ten_times_the_capacity(tmp_path: Path) -> None:
    rush = slow_numbers(tmp_path, SHAPE)
    assert rush.wrong == []
    assert rush.drained == 0
    assert rush.decisions["queued"] > 0
    assert set(rush.decisions) <= {"direct", "queued", "skipped", "checked"}
    assert [one for one in rush.posts if one.status not in (200, 429)] == []
    assert {one.status for one in rush.posts} == {200, 429}
    assert all(one.retry_after for one in rush.refusals)
    assert percentile(rush.refusals, 0.5) < LONG_S
    assert {(one.status, one.reason) for one in rush.health} == {(200, ""), (503, "saturated")}
    assert percentile(rush.health, 0.5) < LONG_S
    assert rush.grown < GROWTH_BYTES
