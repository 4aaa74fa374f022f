"""Which faults there are, where they may strike, and how often each did."""

from collections import Counter
from collections.abc import Callable
from random import Random

from tests.faults.simulation.scheduler import NEVER, Crash, Scheduler

CRASHES = ("crash before", "crash after")
ERRORS = ("error before", "error after")
MENU: dict[str, tuple[str, ...]] = {
    "head": (*CRASHES, *ERRORS),
    "get": (*CRASHES, *ERRORS),
    "list": (*CRASHES, *ERRORS),
    "download": (*CRASHES, *ERRORS),
    "put": (*CRASHES, *ERRORS, *CRASHES, *ERRORS, "412 after it was written", "409 to the end"),
    "send": (*CRASHES, *ERRORS, "sent twice"),
    "send batch": (*CRASHES, *ERRORS, "some are not sent"),
    "receive": (*CRASHES, *ERRORS, "delivered twice"),
    "extend": (*CRASHES, *ERRORS),
    "delete": (*CRASHES, *ERRORS, "some are not deleted", "comes back though it was deleted"),
    "count": (*CRASHES, *ERRORS),
    "health": (*CRASHES, "no answer", "says saturated", "says broken"),
    "post": (
        *CRASHES, "no connection", "the answer is lost", "429", "503", "200 for nothing", "500",
        "never answers", "401", "404 of a proxy",
    ),
    "publish": (*CRASHES, "lost"),
    "listen": (*CRASHES, "out of memory", "engine broken"),
}  # fmt: skip
NO_START = "the function does not start"  # for most of a schedule
WORLD = ("the server dies", "spot kill", "SIGTERM", "the clock jumps", "leases expire", "the server is away for long")
KINDS = (*dict.fromkeys(f"{call}: {kind}" for call, kinds in MENU.items() for kind in kinds), *WORLD, NO_START)
WORLD_SHARE = 0.25


class Faults:
    """`due`: the fault that is to strike after the call under way has done its work.

    `strike` does what befalls the whole world; `crash` ends the process of the current actor.
    """

    def __init__(self, scheduler: Scheduler, random: Random) -> None:
        self.random = random
        self.due = ""
        self.left = 0
        self.gap = 0.0
        self.fired: Counter[str] = Counter()
        self.strike: Callable[[str], bool] = lambda _: False
        self.crash: Callable[[], None] = lambda: None
        self._scheduler = scheduler
        self._call = ""

    def arm(self, count: int, gap: float) -> None:
        self.left, self.gap = count, gap
        self._scheduler.fault_after(gap if count else 0)

    def disarm(self) -> None:
        self.left = 0
        self._scheduler.next_fault = NEVER

    def draw(self, call: str) -> str:
        """The fault that strikes this call, if it is not the world's."""
        self.left -= 1
        self._scheduler.fault_after(self.gap if self.left > 0 else 0)
        if self.random.random() < WORLD_SHARE:
            kind = self.random.choice(WORLD)
            if self.strike(kind):
                self.fired[kind] += 1
            if not self._scheduler.current.process.alive:
                raise Crash
            return ""
        kind = self.random.choice(MENU[call])
        self._call = call
        if kind == "crash before":
            self._count(kind)
            self.crash()
        return kind

    def before(self, call: str) -> bool:
        """True when the call fails, with nothing done."""
        kind = self.draw(call)
        if kind in ("error before", "409 to the end"):
            self._count(kind)
            return True
        self.due = kind
        return False

    def after(self) -> bool:
        """True when the call has done its work, and its answer is lost."""
        kind = self.due
        self.due = ""
        if kind == "crash after":
            self._count(kind)
            self.crash()
        if kind == "error after":
            self._count(kind)
            return True
        return False  # a fault for another outcome of this call

    def settle(self) -> None:
        """The fault that was due has struck."""
        self._count(self.due)
        self.due = ""

    def strikes(self, call: str) -> str:
        """For calls that know what to do with their faults: the one that strikes now."""
        kind = self.draw(call)
        if kind:
            self._count(kind)
        return kind

    def _count(self, kind: str) -> None:
        self.fired[f"{self._call}: {kind}"] += 1
