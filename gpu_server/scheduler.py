"""One thread owns the model, and everyone's windows share its batches.

Every request has a queue of its own, and batches are filled from the queues in turn: an hour-long file gets its share
and no more, so a 5-second chunk is in the next batch. Neighbouring chunks of one session that wait at the same moment
go into one window: the busier the server, the fewer windows, and the fewer words that are cut by a chunk's edge.
"""

import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import numpy as np
from aws_lambda_powertools import Logger

from gpu_server.engines import SAMPLE_RATE, EngineFault, Heard, OutOfMemory, Recognizer, Window, Word
from gpu_server.windows import padded_frames, run_around

COMPANY_SECONDS = 0.03  # an idle recognizer waits for others that are on their way
CLOSE_SECONDS = 10.0  # for the batch that runs; a device that hangs must not keep the process
PREPARERS = 4  # threads that compute features
ALIKE = 1.5  # a window is not padded to more than this many times its length to share a batch
FRAMES_PER_BATCH = {"cpu": 24_000, "cuda": 96_000}  # 8 and 32 full windows

logger = Logger(service="gpu-server", child=True)


@dataclass(frozen=True)
class Place:
    """Where a chunk stands: next to it in `session` is the one with the next `index`. `lead`: see `windows.Placed`."""

    session: Hashable
    index: int
    lead: int = 0


@dataclass(eq=False)
class _Item:
    """A window that waits."""

    window: Window
    key: Hashable  # the recognizer's: windows with equal ones may share a batch
    place: Place | None
    future: Future[Heard] = field(default_factory=Future)

    @property
    def session(self) -> Hashable:
        """Only chunks with the same wishes can share a window."""
        assert self.place
        return self.place.session, self.window.options

    @property
    def index(self) -> int:
        assert self.place
        return self.place.index

    @property
    def samples(self) -> int:
        return len(self.window.audio)

    @property
    def lead(self) -> int:
        return self.place.lead if self.place else 0


@dataclass(frozen=True)
class _Group:
    """A window for the recognizer, and the items that share it."""

    window: Window
    items: tuple[_Item, ...]


@dataclass
class Observer:
    """Told what the recognizer does; each is called in the recognizer's thread."""

    worked: Callable[[float, int, int], None] = lambda seconds, windows, items: None
    waiting: Callable[[int], None] = lambda items: None


class Scheduler:
    """Safe to call from many threads.

    on_fault: told once the engine is broken for good; everything that waits fails with EngineFault.
    """

    def __init__(
        self, recognizer: Recognizer, *, on_fault: Callable[[], None], observer: Observer | None = None
    ) -> None:
        self._recognizer = recognizer
        self._on_fault = on_fault
        self._observer = observer or Observer()
        self._most_frames = FRAMES_PER_BATCH["cuda" if recognizer.device == "cuda" else "cpu"]
        self._queues: OrderedDict[Hashable, deque[_Item]] = OrderedDict()
        self._coming = 0
        self._closed = False
        self._changed = threading.Condition()
        self._preparers = ThreadPoolExecutor(PREPARERS, thread_name_prefix="features")
        self._thread = threading.Thread(target=self._run, name="recognizer", daemon=True)
        self._thread.start()

    def submit(self, window: Window, *, owner: Hashable, place: Place | None = None) -> Future[Heard]:
        """Queue a window of `owner`'s. A `place` lets it share a window with its neighbours."""
        item = _Item(window, self._recognizer.key(window), place)
        with self._changed:
            if self._closed:
                item.future.set_exception(EngineFault("The recognizer has stopped."))
                return item.future
            self._queues.setdefault(owner, deque()).append(item)
            self._changed.notify()
        return item.future

    @contextmanager
    def coming(self) -> Iterator[Callable[[], None]]:
        """Say that a window is on its way; call what is yielded when it has been submitted, or will not come."""
        arrived = False

        def arrive() -> None:
            nonlocal arrived
            if not arrived:
                arrived = True
                with self._changed:
                    self._coming -= 1
                    self._changed.notify()

        with self._changed:
            self._coming += 1
        try:
            yield arrive
        finally:
            arrive()

    def close(self) -> None:
        """Finish the batch that runs; what still waits fails."""
        self._fail_all()
        self._thread.join(CLOSE_SECONDS)
        self._preparers.shutdown(wait=False)

    def _run(self) -> None:
        try:
            self._serve()
        except Exception:  # without this thread nobody is served any more
            logger.exception("the recognizer's thread ends")
            self._fail_all()
            self._on_fault()

    def _serve(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._queues or self._closed)
                if self._closed:
                    return
                self._await_company()
                groups = self._take_batch()
                self._observer.waiting(sum(map(len, self._queues.values())))
            if groups:
                self._work(groups)

    def _await_company(self) -> None:
        """Bounded, and only while somebody is known to come: a lone chunk on an idle server goes at once."""
        deadline = time.monotonic() + COMPANY_SECONDS
        while self._coming and not self._closed and (left := deadline - time.monotonic()) > 0:
            self._changed.wait(left)

    def _take_batch(self) -> list[_Group]:
        """Fill a batch from the queues in turn, one window each a round; who got one goes to the end of the line."""
        groups: list[_Group] = []
        while True:
            before = len(groups)
            for owner in list(self._queues):
                if owner not in self._queues:  # its last window went with a neighbour's
                    continue
                group = self._group(self._queues[owner][0])
                if groups and not self._fits(group, groups):
                    continue
                for item in group.items:
                    self._remove(item)
                groups.append(group)
                if owner in self._queues:
                    self._queues.move_to_end(owner)
            if len(groups) == before:
                return groups

    def _fits(self, group: _Group, groups: Sequence[_Group]) -> bool:
        frames = [group.window.frames, *(other.window.frames for other in groups)]
        return (
            group.items[0].key == groups[0].items[0].key
            and max(frames) <= ALIKE * min(frames)
            and max(frames) * len(frames) <= self._most_frames
        )

    def _group(self, head: _Item) -> _Group:
        if head.place is None:
            return _Group(head.window, (head,))
        waiting = [item for queue in self._queues.values() for item in queue if item.place]
        run = run_around(head, waiting)
        if len(run) == 1:
            return _Group(head.window, (head,))
        audio = np.concatenate([run[0].window.audio, *(item.window.audio[item.lead :] for item in run[1:])])
        return _Group(replace(head.window, audio=audio, frames=padded_frames(len(audio))), tuple(run))

    def _remove(self, item: _Item) -> None:
        for owner, queue in self._queues.items():
            if item in queue:
                queue.remove(item)
                if not queue:
                    del self._queues[owner]
                return

    def _work(self, groups: Sequence[_Group]) -> None:
        began = time.monotonic()
        try:
            for group, heard in zip(groups, self._recognize([group.window for group in groups]), strict=True):
                _deliver(group, heard)
        except EngineFault as error:
            for group in groups:
                _deliver(group, error)
            self._fail_all()
            self._on_fault()
        finally:
            items = sum(len(group.items) for group in groups)
            self._observer.worked(time.monotonic() - began, len(groups), items)

    def _recognize(self, windows: Sequence[Window]) -> list[Heard | Exception]:
        """What fails is tried again in halves: a device that is full has room for less, and one odd window fails alone.

        Raises EngineFault.
        """
        try:
            features = list(self._preparers.map(self._recognizer.prepare, windows))
            return list(self._recognizer.recognize(windows, features))
        except EngineFault:
            raise
        except Exception as error:  # whatever it is, somebody waits for it
            if len(windows) == 1:
                return [error]
            logger.warning("a batch failed: in halves now", extra={"windows": len(windows), "reason": repr(error)})
            if isinstance(error, OutOfMemory):
                self._most_frames = max(windows[0].frames, self._most_frames // 2)
        half = len(windows) // 2
        return self._recognize(windows[:half]) + self._recognize(windows[half:])

    def _fail_all(self) -> None:
        with self._changed:
            self._closed = True
            waiting = [item for queue in self._queues.values() for item in queue]
            self._queues.clear()
            self._changed.notify()
        for item in waiting:
            item.future.set_exception(EngineFault("The recognizer has stopped."))


def _deliver(group: _Group, heard: Heard | Exception) -> None:
    if isinstance(heard, Exception):
        for item in group.items:
            item.future.set_exception(heard)
        return
    shares = share(heard, _blocks(group.items)) if len(group.items) > 1 else [heard]
    for item, own in zip(group.items, shares, strict=True):
        item.future.set_result(own)


def _blocks(items: Sequence[_Item]) -> list[tuple[float, float]]:
    """For each item where in the shared window its audio ends, and where its own time line begins (seconds)."""
    blocks = []
    end = 0
    for number, item in enumerate(items):
        origin = end - (item.lead if number else 0)
        end = origin + item.samples
        blocks.append((end / SAMPLE_RATE, origin / SAMPLE_RATE))
    return blocks


def share(heard: Heard, blocks: Sequence[tuple[float, float]]) -> list[Heard]:
    """Give a shared window's words to the block that holds their midpoint, on that block's own time line."""
    shares: list[list[Word]] = [[] for _ in blocks]
    for word in heard.words:
        middle = (word.start + word.end) / 2
        owner = next((number for number, (end, _) in enumerate(blocks) if middle < end), len(blocks) - 1)
        origin = blocks[owner][1]
        shares[owner].append(replace(word, start=word.start - origin, end=word.end - origin))
    starts = [blocks[0][1], *(end for end, _ in blocks)]
    return [
        replace(
            heard,
            text="".join(word.word for word in words),
            words=tuple(words),
            heard_from=start - origin,
            shared=True,
        )
        for words, (_, origin), start in zip(shares, blocks, starts, strict=False)
    ]
