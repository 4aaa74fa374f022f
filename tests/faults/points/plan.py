"""Where a fault is to strike and of what kind; and what was called, so that every call gets its fault once.

A point is named by who calls what for which time, not by a running number: threads of one actor read side by
side, and their order is nobody's promise.
"""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import NoReturn, TypeVar

T = TypeVar("T")

CHANGES = frozenset(
    {"PutObject", "SendMessage", "SendMessageBatch", "ReceiveMessage", "ChangeMessageVisibility"}
    | {"DeleteMessage", "DeleteMessageBatch", "POST"}
    | {"SetDesiredCapacity", "SetInstanceProtection", "TerminateInstanceInAutoScalingGroup"}
)


class Kind(StrEnum):
    """What happens to one call. A client's own retry is part of its call."""

    FAIL_BEFORE = "fails before"  # nothing done, and the client gives up
    FAIL_AFTER = "fails after"  # done, the answer lost, and the client gives up
    DONE_TWICE = "done twice"  # done, the answer lost, and the client's own retry goes through
    CRASH_BEFORE = "crash before"
    CRASH_AFTER = "crash after"


class Crash(BaseException):
    """The process was killed: no `except Exception` may catch it, and what `finally` does is not done any more."""


@dataclass(frozen=True, order=True)
class Point:
    actor: str
    call: str
    nth: int

    def __str__(self) -> str:
        return f"{self.actor}: {self.call} #{self.nth}"


@dataclass(frozen=True, order=True)
class Fault:
    point: Point
    kind: Kind

    def __str__(self) -> str:
        return f"{self.kind} at {self.point}"


def all_kinds(point: Point) -> Iterable[Kind]:
    return Kind


def kinds_apart(point: Point) -> Iterable[Kind]:
    """Those that differ in what they leave behind: a read leaves nothing, so before and after it are one."""
    return Kind if point.call.partition(" ")[0] in CHANGES else (Kind.FAIL_BEFORE, Kind.CRASH_BEFORE)


class Plan:
    """The faults of one run.

    `calls`: every point in order; `fired`: the faults that struck; `unexpected`: errors that no port of ours raises.
    """

    def __init__(self, *faults: Fault) -> None:
        self.faults = faults
        self.calls: list[Point] = []
        self.fired: list[Fault] = []
        self.unexpected: list[str] = []
        self._waiting = {fault.point: fault for fault in faults}
        self._counts: Counter[tuple[str, str]] = Counter()
        self._lock = threading.Lock()

    def arrive(self, actor: str, call: str) -> Kind | None:
        """A call is about to be made; what is to happen to it."""
        with self._lock:
            self._counts[actor, call] += 1
            point = Point(actor, call, self._counts[actor, call])
            self.calls.append(point)
            fault = self._waiting.pop(point, None)
            if fault:
                self.fired.append(fault)
            return fault.kind if fault else None

    def later_faults(self, kinds: Callable[[Point], Iterable[Kind]]) -> list[Fault]:
        """Every fault that a further run can add to these ones: at each call since the last of them struck."""
        last = max((self.calls.index(fault.point) for fault in self.fired), default=-1)
        return [Fault(point, kind) for point in self.calls[last + 1 :] for kind in kinds(point)]


class Life:
    """One life of an actor (a Lambda's environment, a worker, a server), from its start to its crash.

    After that it does nothing more, whatever its threads and its `finally` clauses still try.
    """

    def __init__(self, plan: Plan, actor: str) -> None:
        self.plan = plan
        self.actor = actor
        self.over = False

    def call(self, name: str, do: Callable[[], T], failure: Callable[[], Exception]) -> T:
        """Make a call as the plan has it. `failure`: what its client raises when it gives up."""
        kind = self.arrive(name)
        if kind is None:
            return do()
        if kind is Kind.FAIL_BEFORE:
            raise failure()
        if kind is Kind.CRASH_BEFORE:
            self.end()
        with suppress(Exception):  # whatever it was: its answer is lost
            do()
        if kind is Kind.FAIL_AFTER:
            raise failure()
        if kind is Kind.CRASH_AFTER:
            self.end()
        return do()

    def arrive(self, name: str) -> Kind | None:
        if self.over:
            raise Crash
        return self.plan.arrive(self.actor, name)

    def end(self) -> NoReturn:
        self.over = True
        raise Crash


def missed(plan: Plan) -> Sequence[Fault]:
    """Faults that never struck: their run shows nothing."""
    return [fault for fault in plan.faults if fault not in plan.fired]
