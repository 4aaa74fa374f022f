"""One fault and two faults in one run, on the in-memory ports: some here, all of the pairs in `make faults`."""

from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import Any

import pytest

from batch_worker.drain import Drain
from batch_worker.launcher import Launcher
from batch_worker.letters import Letters
from batch_worker.stay import Stay
from batch_worker.work import Worker
from gpu_server.service import Service
from router_lambda.route import Router
from shared.combine import Combined, Combiner, Status
from shared.queues import Message
from tests.faults.points.plan import Fault, Kind, Point
from tests.faults.points.stage import SLEPT
from tests.faults.points.suite import Case, Results, apart, in_memory, pairs_after, singles, spread

ONE_IN = 23  # of the faults that can follow a first one; to no multiple of the number of kinds


@pytest.fixture(scope="module")
def cases() -> list[Case]:
    return apart(singles())


def test_no_two_faults_lose_or_spoil_anything(cases: list[Case]) -> None:
    results = Results()
    for number, first in enumerate(spread(cases, 1)):
        results.merge(pairs_after(first, each=ONE_IN, offset=number))
    assert not results.broken, "\n".join(results.broken)
    assert results.runs > 100


def test_a_fault_that_does_not_strike_is_no_success(tmp_path: Path) -> None:
    never = Fault(Point("router", "SendMessage jobs", 99), Kind.FAIL_BEFORE)
    assert in_memory(Case("night", (never,)), tmp_path).found == [f"{SLEPT}: {never}"]


def test_a_killed_actor_does_nothing_more(tmp_path: Path) -> None:
    crash = Fault(Point("worker", "DeleteMessageBatch jobs", 1), Kind.CRASH_BEFORE)
    run = in_memory(Case("night", (crash,)), tmp_path)
    at = run.plan.calls.index(crash.point)
    assert run.plan.calls[at + 1].call == "GET /health"  # of the next life: this one gives no leases back
    assert not run.found


Method = Callable[..., Any]


def forget_first(work: Method) -> Method:
    def mistaken(drain: Drain, message: Message) -> None:
        drain.queue.delete(message)
        work(drain, message)

    return mistaken


def forget_letters_first(settled: Method) -> Method:
    def mistaken(letters: Letters, message: Message) -> bool:
        letters.queue.delete(message)
        return bool(settled(letters, message))

    return mistaken


def swallow_errors(handle: Method) -> Method:
    def mistaken(router: Router, event: Any, **arguments: Any) -> None:
        try:
            handle(router, event, **arguments)
        except Exception:
            return

    return mistaken


def leave_sessions(complete: Method) -> Method:
    return lambda worker, audio: None


def look_at_json_only(combine: Method) -> Method:
    """The derived files are taken for right when the session transcript is there."""

    def mistaken(combiner: Combiner, session: Any) -> Combined:
        if combiner._store.head(session.output_key):
            return Combined(Status.COMPLETE)
        result: Combined = combine(combiner, session)
        return result

    return mistaken


def fail_once(method: Method) -> Method:
    """Of an error of our own, which the next try would hide."""
    tries = count()

    def mistaken(*arguments: Any, **named: Any) -> Any:
        if next(tries) == 0:
            raise TypeError("not what any port raises")
        return method(*arguments, **named)

    return mistaken


def start_nobody(run: Method) -> Method:
    return lambda launcher, occasion: None


def end_at_once(run: Method) -> Method:
    """The instance goes before it has looked at the queue."""

    def mistaken(stay: Stay) -> Any:
        if stay.member:
            stay.member.end()
        return stay.batch.summary()

    return mistaken


@pytest.mark.parametrize(
    ("owner", "name", "mistake", "scene", "actor"),
    [
        (Drain, "_work", forget_first, "letters", "worker"),
        (Letters, "_settled", forget_letters_first, "letters", "worker"),
        (Router, "handle", swallow_errors, "night", "router"),
        (Worker, "_complete_session", leave_sessions, "night", "server"),
        (Combiner, "combine", look_at_json_only, "night", "server"),
        (Router, "handle", fail_once, "night", "router"),
        (Service, "start_job", fail_once, "live", "server"),
        (Launcher, "run", fail_once, "fleet", "launcher"),
        (Launcher, "run", start_nobody, "fleet", "launcher"),
        (Stay, "run", end_at_once, "fleet", "worker"),
    ],
)
def test_a_mistake_is_seen(
    cases: list[Case],
    owner: type,
    name: str,
    mistake: Callable[[Method], Method],
    scene: str,
    actor: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    monkeypatch.setattr(owner, name, mistake(getattr(owner, name)))
    some = [case for case in cases if case.scene == scene and case.faults[0].point.actor == actor]
    found = (line for case in (Case(scene, ()), *some) for line in in_memory(case, tmp_path).found)
    assert any(not line.startswith(SLEPT) for line in found)
