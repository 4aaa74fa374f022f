"""Mutants: a rule is taken away from the running code, and the simulation must find something.

A mutant replaces one piece of a function's text. Nothing in the programs knows of it, and a mutant whose text is gone
fails its test, so that the table (`rules.py`) follows the code.
"""

import contextlib
import inspect
import itertools
import json
import textwrap
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FunctionType
from typing import Any, cast

from tests.faults.simulation.plan import CHUNK_1, MANIFEST, Plan, draw
from tests.faults.simulation.server import BAD, DEADLY, HEADLESS

# What the long run found, by seed: which rule, if it is taken away, goes wrong there, and what it looks like.
FOUND: dict[str, dict[str, str]] = json.loads(Path(__file__).with_name("seeds.json").read_text())


@dataclass(frozen=True)
class Mutant:
    """`rule` goes when `old` becomes `new` in `target`.

    `focus`: the sort of schedules that can tell at all, where that is few. `equivalent`: why nothing can tell.
    `guarded`: the test that fails, where what the rule keeps (work, time, quality) is not what the simulation judges.
    """

    rule: str
    target: Callable[..., Any]
    old: str
    new: str
    focus: Callable[[Plan], bool] = lambda plan: True
    equivalent: str = ""
    guarded: str = ""

    def seeds(self, budget: int) -> Iterator[int]:
        """Those that the long run found for it come first."""
        found = (int(seed) for seed, what in FOUND.items() if what["rule"] == self.rule)
        others = (seed for seed in itertools.count() if self.focus(draw(seed)))
        return itertools.islice(itertools.chain(found, others), budget)

    @contextlib.contextmanager
    def applied(self) -> Iterator[None]:
        function = cast(FunctionType, self.target)
        source = textwrap.dedent(inspect.getsource(function))
        assert source.count(self.old) == 1, f"{self.rule}: {self.old!r} is {source.count(self.old)} times in the code"
        made: dict[str, Any] = {}
        exec(source.replace(self.old, self.new), dict(function.__globals__), made)
        before, function.__code__ = function.__code__, made[function.__name__].__code__
        try:
            yield
        finally:
            function.__code__ = before


def deletes_audio(plan: Plan) -> bool:
    return any(upload.deleted_after is not None for upload in plan.uploads)


def overwrites(plan: Plan) -> bool:
    """A chunk's audio changes."""
    keys = [upload.key for upload in plan.uploads if upload.key != MANIFEST]
    return len(set(keys)) < len(keys)


def overwrites_the_complete(plan: Plan) -> bool:
    """In quick succession, while combiners of the session are at work."""
    return overwrites(plan) and plan.uploads[0].key == MANIFEST and plan.job_seconds == 0 and plan.server_up


def overwrites_unseen(plan: Plan) -> bool:
    """The sweep alone can find what is new."""
    return plan.sweeps and overwrites(plan)


def has_two_failures(plan: Plan) -> bool:
    """Two versions of one chunk's audio."""
    failing = [upload.key for upload in plan.uploads if upload.body.startswith(BAD)]
    return len(set(failing)) < len(failing)


def has_two_manifests(plan: Plan) -> bool:
    """Of which both can be used."""
    return sum(upload.body.startswith(b"{") for upload in plan.uploads) > 1


def has_two_failures_of_few(plan: Plan) -> bool:
    """And little else that goes on meanwhile."""
    return has_two_failures(plan) and plan.chunks <= 2 and plan.server_up and not plan.batch_only and not plan.long


def has_failing_rivals(plan: Plan) -> bool:
    """Two objects with one number, and one place for their records."""
    failing = [upload.key for upload in plan.uploads if upload.body.startswith(BAD)]
    return has_rivals(plan) and len(set(failing)) > 1


def has_two_bad_manifests(plan: Plan) -> bool:
    return sum(upload.key == MANIFEST and b"{" not in upload.body for upload in plan.uploads) > 1


def has_deadly(plan: Plan) -> bool:
    """Audio that kills the server, beside other audio; and no fault that would explain a failure."""
    deadly = {upload.key for upload in plan.uploads if upload.body.startswith(DEADLY)}
    return plan.faults == 0 and plan.chunks > len(deadly) > 0


def has_rivals(plan: Plan) -> bool:
    return any(upload.body.endswith(b".9") for upload in plan.uploads)


def works_by_queue(plan: Plan) -> bool:
    return plan.faults >= 3 and (plan.batch_only or not plan.server_up)


def stops_in_a_last_try(plan: Plan) -> bool:
    """A worker finds what Lambda has given up, it takes some time, and much goes wrong."""
    return plan.broken and plan.faults >= 3 and plan.workers != () and plan.job_seconds > 0


def records_want_of_a_header(plan: Plan) -> bool:
    """A chunk without its header comes before chunk 1, and somebody looks at it again later."""
    bodies = [upload.body for upload in plan.uploads]
    headless = [place for place, body in enumerate(bodies) if body.startswith(HEADLESS)]
    chunk_1 = [place for place, upload in enumerate(plan.uploads) if upload.key == CHUNK_1]
    return plan.sweeps and bool(headless) and headless[0] < chunk_1[-1]


def waits_for_chunk_1(plan: Plan) -> bool:
    """A chunk without its header comes first, long before chunk 1 and the manifest, and a worker finds it."""
    first = plan.uploads[0]
    return (
        first.body.startswith(HEADLESS) and any(upload.wait > 60 for upload in plan.uploads[1:]) and plan.workers != ()
    )
