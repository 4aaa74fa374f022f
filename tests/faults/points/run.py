"""The long version: every fault at every call on the local AWS, every pair of faults in memory, long random parity."""

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import settings
from moto import mock_aws

from infra.local import stack
from tests.faults.points.parity import MACHINES, cloud_at, compare
from tests.faults.points.stage import Run
from tests.faults.points.suite import TELL_EVERY, Results, apart, hushed, kind_of, on_emulator, pairs, singles
from tests.faults.table import Part, Row, Say

PROCESSES = 3  # on two cores: each waits now and then
EXAMPLES, STEPS = 100, 50  # of a machine; they take a second each


def run(*, one_in: int = 1, processes: int = PROCESSES, examples: int = EXAMPLES, say: Say = lambda line: None) -> Part:
    """All of it; or one single fault in `one_in` on the local AWS, and one first fault in `one_in` of the pairs.

    All of it takes about a quarter of an hour for the single faults, ten minutes for the parity, and 50 for the 330,000
    pairs, on two cores.
    """
    with hushed():
        cases = singles()
        with _emulator() as endpoint:
            alone, alone_seconds = _timed(lambda: _all(on_emulator(cases[::one_in], endpoint, lanes=processes), say))
            differences = parity(endpoint, examples)
        both, both_seconds = _timed(lambda: pairs(apart(cases)[::one_in], processes=processes, say=say))
    rows = [
        _row("one fault, on the local AWS with boto3", alone, alone_seconds),
        _row("two faults, on the in-memory ports", both, both_seconds),
        Row(
            "random calls that the in-memory ports answer otherwise than moto or MiniStack",
            f"0 in {2 * len(MACHINES) * examples} sequences",
            str(len(differences)) + "".join(f"\n{difference}" for difference in differences),
            not differences,
        ),
    ]
    kinds: Counter[str] = Counter({kind_of(case.faults[0]): 0 for case in cases})
    for part in (alone, both):
        kinds.update(part.kinds)  # not the sum: that would forget the kinds that never fired
    return Part(rows, kinds)


@contextmanager
def _emulator() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as folder:
        emulator = stack.start_emulator(Path(folder))
        try:
            yield emulator.endpoint
        finally:
            stack.stop(emulator.pid, grace_seconds=2)


def _all(runs: Iterable[Run], say: Say) -> Results:
    results = Results()
    for one in runs:
        results.add(one)
        if results.runs % TELL_EVERY == 0:
            say(f"single faults: {results.runs:,} runs")
    return results


def _timed(work: Callable[[], Results]) -> tuple[Results, float]:
    began = time.monotonic()
    return work(), time.monotonic() - began


def parity(endpoint: str, examples: int) -> list[str]:
    """What is answered differently, in hypothesis' words."""
    found = []
    how_long = settings(max_examples=examples, stateful_step_count=STEPS)
    for machine in MACHINES:
        for name in ("moto", "ministack"):
            try:
                if name == "moto":
                    with mock_aws():
                        compare(machine, cloud_at(None), how_long)
                else:
                    compare(machine, cloud_at(endpoint), how_long)
            except AssertionError as error:
                found.append(f"{name}: {machine.__name__}: {error}")
    return found


def _row(what: str, results: Results, seconds: float) -> Row:
    measured = f"{len(results.broken)} of {results.runs:,} runs in {seconds:,.0f} s"
    reached = results.runs > 0 and not results.broken
    return Row(what, "0 lost, 0 wrong", "\n".join([measured, *results.broken[:5]]), reached)
