"""Puts the real modules on the simulation's stage: their threads, clocks, dice and folders are the simulation's."""

import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED
from dataclasses import dataclass
from datetime import datetime, timedelta, tzinfo
from random import Random
from types import SimpleNamespace
from typing import Any

from batch_worker.stopping import Stopping
from batch_worker.sweep import Swept, sweep
from router_lambda.route import Router
from shared.combine import Combiner
from shared.store import Store
from tests.fakes import EPOCH
from tests.faults.simulation.scheduler import Process, Scheduler
from tests.faults.simulation.threads import Flag, Lock, Task, wait_for_any


@dataclass
class Stage:
    """What the names that were put in place of threads and clocks stand on; one schedule at a time."""

    scheduler: Scheduler
    random: Random
    server: Process  # whose greenlets asyncio's tasks are
    files: dict[str, bytes]
    unexpected: list[str]
    coroutines: list[Any]
    sweeps: bool
    router: Router | None = None


NOBODY = Process("nobody")
stage = Stage(Scheduler(Random(), change_gap=1, limit=1), Random(), NOBODY, {}, [], [], sweeps=True)


def enter(scheduler: Scheduler, random: Random, *, sweeps: bool) -> Stage:
    """An empty stage for the next schedule. `sweeps`: batch runs sweep the bucket."""
    stage.scheduler, stage.random, stage.server, stage.sweeps = scheduler, random, NOBODY, sweeps
    stage.files, stage.unexpected, stage.coroutines, stage.router = {}, [], [], None
    return stage


def seconds() -> float:
    return stage.scheduler.now


class Clock:
    """`datetime`, as far as it is asked for the time."""

    @staticmethod
    def now(timezone: tzinfo | None = None) -> datetime:
        return EPOCH + timedelta(seconds=stage.scheduler.now)


class InlinePool:
    """`ThreadPoolExecutor` for reads that run beside each other: here one after the other, between other actors."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def __enter__(self) -> "InlinePool":
        return self

    def __exit__(self, *_: object) -> None: ...

    def map(self, call: Callable[..., Any], *items: Iterable[Any]) -> Iterator[Any]:
        return iter(list(map(call, *items)))

    def submit(self, call: Callable[..., Any], *arguments: Any) -> "Ended":
        return Ended(call, arguments)


class Ended:
    """A `Future` whose call is over."""

    def __init__(self, call: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
        self._result: Any = None
        self._error: Exception | None = None
        try:
            self._result = call(*arguments)
        except Exception as error:  # it is for whoever asks for the result
            self._error = error.with_traceback(None)

    def result(self) -> Any:
        if self._error:
            raise self._error
        return self._result

    def done(self) -> bool:
        return True

    def cancel(self) -> bool:
        return False


class Pool:
    """`ThreadPoolExecutor` whose jobs are actors of the process that gives them."""

    def __init__(self, *_: object, **__: object) -> None: ...

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Task:
        return Task(stage.scheduler, stage.scheduler.current.process, lambda: call(*arguments))


def wait(tasks: Iterable[Task], timeout: float | None = None, return_when: str = "ALL_COMPLETED") -> SimpleNamespace:
    """`concurrent.futures.wait`."""
    tasks = list(tasks)
    until = None if timeout is None else seconds() + timeout
    while True:
        left = [task for task in tasks if not task.done()]
        enough = not left or (return_when == FIRST_COMPLETED and len(left) < len(tasks))
        if enough or (until is not None and seconds() >= until):
            return SimpleNamespace(done={task for task in tasks if task.done()}, not_done=set(left))
        wait_for_any(stage.scheduler, [task.over for task in left], None if until is None else until - seconds())


class Thread:
    """`threading.Thread`."""

    def __init__(self, target: Callable[[], object], **_: object) -> None:
        self._target = target
        self._task: Task | None = None

    def start(self) -> None:
        self._task = Task(stage.scheduler, stage.scheduler.current.process, self._target)

    def join(self) -> None:
        if self._task:
            self._task.wait()


class Stop(Stopping):
    """The real one, but for how it waits."""

    def __init__(self, grace: float) -> None:
        super().__init__(grace)
        self._signal = Flag(stage.scheduler)

    def within(self, seconds: float) -> None:
        super().within(seconds)
        self._signal.set()

    def wait(self, timeout: float | None = None) -> bool:
        return self._signal.wait(timeout)


class Inline:
    """An awaitable that is there as soon as it is waited for: the coroutine around it runs through in its greenlet."""

    def __init__(self, call: Callable[[], Any]) -> None:
        self._call = call

    def __await__(self) -> Iterator[Any]:
        return self._call()
        yield


def create_task(coroutine: Any) -> Task:
    def drive() -> Any:
        try:
            coroutine.send(None)
        except StopIteration as end:
            return end.value
        raise AssertionError("an awaitable that is not inline")

    stage.coroutines.append(coroutine)
    return Task(stage.scheduler, stage.server, drive)


LOOP = SimpleNamespace(run_in_executor=lambda _, call: Inline(call))
ASYNCIO = SimpleNamespace(create_task=create_task, get_running_loop=lambda: LOOP)


class Folder(str):
    """`Path`, as far as folders are made and files named. No disk is touched."""

    __slots__ = ()

    def __new__(cls, *parts: str) -> "Folder":
        return super().__new__(cls, "/".join(parts))

    def __truediv__(self, name: str) -> "Folder":
        return Folder(self, name)

    def mkdir(self) -> None: ...


class TemporaryDirectory:
    def __init__(self, **_: object) -> None: ...

    def __enter__(self) -> str:
        return f"/{next(stage.scheduler.numbers)}"

    def __exit__(self, *_: object) -> None: ...


@dataclass(frozen=True)
class Track:
    pieces: tuple[bytes, ...]


def join(_: Folder, parts: Sequence[Folder], *, breaks: Sequence[int] = ()) -> Track:
    return Track(tuple(stage.files[part] for part in parts))


def whole(pcm: Folder) -> Track:
    return Track((stage.files[pcm],))


def maybe_sweep(store: Store, combiner: Combiner) -> Swept:
    """The sweep mends so much that it hides what is broken: most schedules go without."""
    return sweep(store, combiner) if stage.sweeps else Swept([], [], [])


def unexpected(error: BaseException) -> None:
    """Our code did not mean to raise this: a bug."""
    stage.unexpected.append("".join(traceback.format_exception(error)[-3:]))


class Quiet:
    """A logger, or metrics, that nobody reads; but an exception that our code did not expect is a bug."""

    def exception(self, *_: object, **__: object) -> None:
        if error := sys.exc_info()[1]:
            unexpected(error)

    def __getattr__(self, _: str) -> Any:
        return self

    def __call__(self, *_: object, **__: object) -> Any:
        return self


QUIET = Quiet()
DICE = SimpleNamespace(
    uniform=lambda low, high: stage.random.uniform(low, high),
    shuffle=lambda items: stage.random.shuffle(items),
    sample=lambda items, count: stage.random.sample(items, count),
)
TIME = SimpleNamespace(monotonic=seconds)
THREADING = SimpleNamespace(
    Lock=lambda: Lock(stage.scheduler), Event=lambda: Flag(stage.scheduler), Thread=Thread, get_ident=lambda: 0
)
TEMPFILE = SimpleNamespace(TemporaryDirectory=TemporaryDirectory)
