"""The simulation's short version, first half; and that it is what it says it is: replayable, and full of faults."""

import subprocess
import sys

import pytest

from tests.faults.simulation.faults import KINDS
from tests.faults.simulation.mutants import FOUND, Mutant
from tests.faults.simulation.oracle import Oracle
from tests.faults.simulation.plan import draw
from tests.faults.simulation.rules import MUTANTS
from tests.faults.simulation.simulate import run, simulate

SEEDS = range(30_000)
COMEBACK = Mutant("an event may be forgotten whose audio has come back", Oracle.forgotten, "and not came_back", "")
RULES = {mutant.rule: mutant for mutant in (*MUTANTS, COMEBACK)}


def test_no_schedule_violates_anything_and_every_kind_of_fault_fires() -> None:
    result = simulate(SEEDS)
    assert result.violations == {}, "replay one with: python -m tests.faults.simulation SEED"
    assert result.schedules == len(SEEDS)
    assert [kind for kind in KINDS if not result.fired[kind]] == []


@pytest.mark.parametrize("seed", FOUND, ids=str)
def test_what_once_went_wrong_goes_right(seed: str) -> None:
    assert simulate([int(seed)]).violations == {}, FOUND[seed]["what"]


@pytest.mark.parametrize("seed", FOUND, ids=str)
def test_what_once_went_wrong_still_does_without_its_rule(seed: str) -> None:
    with RULES[FOUND[seed]["rule"]].applied():
        assert simulate([int(seed)]).violations, FOUND[seed]["what"]


def test_a_seed_is_the_same_schedule_in_every_process() -> None:
    seeds = list(range(25))
    script = (
        "from tests.faults.simulation.simulate import simulate\n"
        f"print([(one.steps, sorted(one.fired.items())) for one in (simulate([seed]) for seed in {seeds})])"
    )
    answers = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={"PYTHONHASHSEED": str(hashes), "PYTHONPATH": "."},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for hashes in (1, 2)
    }
    assert len(answers) == 1


def test_the_schedules_are_of_every_sort() -> None:
    plans = [draw(seed) for seed in range(2000)]
    assert {plan.chunks for plan in plans} == {1, 2, 3, 4, 7}
    assert sum(plan.sweeps for plan in plans) < 0.3 * len(plans)
    assert sum(plan.only_duplicates for plan in plans) > 0.05 * len(plans)
    assert any(upload.deliveries == 0 for plan in plans for upload in plan.uploads)
    assert all(plan.sweeps for plan in plans for upload in plan.uploads if upload.deliveries == 0)


def test_the_long_version_says_what_it_did() -> None:
    lines: list[str] = []
    part = run(400, seed=77, processes=2, say=lines.append)
    assert next(row.reached for row in part.rows)
    assert sum(part.kinds.values()) > 400
    assert lines[-1].startswith("400 schedules")
