"""Coverage-guided fuzzing of the parsers: short here, long in `make faults`."""

from pathlib import Path

import pytest

from tests.faults.fuzz.guided import AVAILABLE, WHY_NOT, fuzz
from tests.faults.fuzz.seeds import seeds
from tests.faults.fuzz.targets import TARGETS

pytestmark = pytest.mark.skipif(not AVAILABLE, reason=WHY_NOT)

RUNS = 2000


@pytest.mark.parametrize("target", TARGETS)
def test_no_input_breaks_a_rule(target: str, tmp_path: Path) -> None:
    ended = fuzz(target, seeds(target), tmp_path, runs=RUNS, seed=6)
    assert ended.breaker is None, ended.words
    assert ended.inputs >= RUNS
    assert ended.branches > 0


def test_an_input_that_breaks_a_rule_is_found(tmp_path: Path) -> None:
    ended = fuzz("picky", [b"aaa"], tmp_path, runs=200_000, seed=6)
    assert ended.breaker is not None
    assert ended.breaker.startswith(b"OggS")
    assert "AssertionError" in ended.words
