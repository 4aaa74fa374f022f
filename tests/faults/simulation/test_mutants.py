"""The simulation's short version, second half; and what it is worth: every rule that is taken away is missed."""

import ast
from pathlib import Path

import pytest

from tests.faults.simulation.mutants import Mutant
from tests.faults.simulation.plan import draw
from tests.faults.simulation.rules import MUTANTS
from tests.faults.simulation.simulate import simulate

SEEDS = range(30_000, 50_000)
BUDGET = 25_000  # schedules until a mutant counts as alive
EQUIVALENT_BUDGET = 300
FOUND_BY_THE_SIMULATION = [one for one in MUTANTS if not (one.equivalent or one.guarded)]


def test_no_schedule_violates_anything() -> None:
    result = simulate(SEEDS)
    assert result.violations == {}, "replay one with: python -m tests.faults.simulation SEED"
    assert result.schedules == len(SEEDS)


@pytest.mark.parametrize("mutant", FOUND_BY_THE_SIMULATION, ids=lambda mutant: mutant.rule)
def test_a_rule_that_is_taken_away_is_missed(mutant: Mutant) -> None:
    with mutant.applied():
        assert simulate(mutant.seeds(BUDGET), stop_at=1).violations


@pytest.mark.parametrize("mutant", [one for one in MUTANTS if one.equivalent], ids=lambda mutant: mutant.rule)
def test_a_rule_that_others_stand_in_for_is_still_there(mutant: Mutant) -> None:
    with mutant.applied():
        assert simulate(mutant.seeds(EQUIVALENT_BUDGET)).violations == {}, mutant.equivalent


@pytest.mark.parametrize("mutant", [one for one in MUTANTS if one.guarded], ids=lambda mutant: mutant.rule)
def test_a_rule_that_another_test_guards_is_still_there_and_so_is_that_test(mutant: Mutant) -> None:
    file, _, name = mutant.guarded.partition("::")
    tests = [node.name for node in ast.parse(Path(file).read_text()).body if isinstance(node, ast.FunctionDef)]
    with mutant.applied():
        assert name in tests


def test_events_that_lambda_gives_up_are_lost_without_a_failure_destination() -> None:
    assert simulate(range(BUDGET), stop_at=1, failure_destination=False).violations


def test_the_sweep_alone_repairs_lost_events() -> None:
    """The schedules that lose events sweep; without the sweep they must fail, else they show nothing."""
    plans = [draw(seed) for seed in range(2000)]
    some = [plan.seed for plan in plans if any(not upload.deliveries for upload in plan.uploads)]
    all_of_them = [plan.seed for plan in plans if not any(upload.deliveries for upload in plan.uploads)]
    assert len(some) > len(all_of_them) > 100
    assert simulate(some).violations == {}
    assert len(simulate(all_of_them, sweeps=False).violations) == len(all_of_them)
