"""What threads wait for, for greenlets: whoever waits is not ready."""

from collections.abc import Callable, Sequence
from typing import Any

from tests.faults.simulation.scheduler import Actor, Process, Scheduler


class Lock:
    """`threading.Lock`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._held = False
        self._waiting: list[Actor] = []

    def __enter__(self) -> None:
        while self._held:
            self._waiting.append(self._scheduler.current)
            self._scheduler.park()
        self._held = True

    def __exit__(self, *_: object) -> None:
        self._held = False
        while self._waiting:
            self._scheduler.wake(self._waiting.pop())


class Flag:
    """`threading.Event`."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._set = False
        self.waiting: list[Actor] = []

    def is_set(self) -> bool:
        return self._set

    def set(self) -> None:
        self._set = True
        while self.waiting:
            self._scheduler.wake(self.waiting.pop())

    def wait(self, seconds: float | None = None) -> bool:
        if not self._set:
            wait_for_any(self._scheduler, [self], seconds)
        return self._set


def wait_for_any(scheduler: Scheduler, flags: Sequence[Flag], seconds: float | None) -> None:
    actor = scheduler.current
    for flag in flags:
        flag.waiting.append(actor)
    try:
        scheduler.park(seconds)
    finally:
        for flag in flags:
            if actor in flag.waiting:
                flag.waiting.remove(actor)


class Task:
    """A call in a greenlet of its own; does for a thread, a Future and an asyncio.Task."""

    def __init__(self, scheduler: Scheduler, process: Process, call: Callable[[], Any]) -> None:
        self._call = call
        self.over = Flag(scheduler)
        self._result: Any = None
        self._error: Exception | None = None
        self._cancelled = False
        self._begun = False
        self._number = next(scheduler.numbers)
        self._callbacks: list[Callable[[Task], object]] = []
        self.actor = scheduler.spawn(process, self._run)

    def _run(self) -> None:
        if self._cancelled:
            return
        self._begun = True
        try:
            self._result = self._call()
        except Exception as error:  # for whoever asks for the result; its traceback would keep the whole schedule alive
            self._error = error.with_traceback(None)
        for callback in self._callbacks:
            callback(self)
        self.over.set()

    def __hash__(self) -> int:
        """A set of tasks has one order, whatever their addresses are."""
        return self._number

    def __eq__(self, other: object) -> bool:
        return self is other

    def fail(self, error: Exception) -> None:
        """Whoever waits need not wait any longer."""
        if not self.over.is_set():
            self._error = error.with_traceback(None)  # which would keep the whole schedule alive
            self.over.set()

    def done(self) -> bool:
        return self.over.is_set()

    def wait(self, seconds: float | None = None) -> bool:
        return self.over.wait(seconds)

    def result(self) -> Any:
        if self._error:
            raise self._error
        return self._result

    def exception(self) -> Exception | None:
        return self._error

    def cancel(self) -> bool:
        if not self._begun:
            self._cancelled = True
            self.over.set()
        return self._cancelled

    def cancelled(self) -> bool:
        return self._cancelled

    def add_done_callback(self, callback: "Callable[[Task], object]") -> None:
        self._callbacks.append(callback)
