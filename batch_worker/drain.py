"""The loop: receive while the server lives, work in parallel, delete what is done, leave the rest to the queue."""

import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from aws_lambda_powertools import Logger

from batch_worker.arrivals import Arrivals
from batch_worker.grouping import Unit, chunk_message, units
from batch_worker.lease import Leases
from batch_worker.stopping import Stopping
from batch_worker.work import Result, Unauthorized, Worker
from shared.errors import BadMessage, TransientError
from shared.queues import Message, Queue, QueueUnavailable
from shared.server import Limits
from shared.telemetry import MESSAGES_HANDLED, Observe, unobserved

HEALTH_LIMITS = Limits(connect=2.0, total=5.0)
HEALTH_POLL_SECONDS = 1.0
MAX_BACKOFF_SECONDS = 60
STOP_POLL_SECONDS = 0.2
RECOVERY_SECONDS = 5.0  # before the queue is asked again

T = TypeVar("T")

logger = Logger(service="batch-worker", child=True)


class ServerGone(TransientError):
    """No server answered for as long as we were told to wait."""


@dataclass
class Tally:
    """What happened in a run, by result; `parked`: bodies nobody could read, now in the dead-letter queue."""

    observe: Observe = unobserved
    results: Counter[Result] = field(default_factory=Counter)
    parked: set[str] = field(default_factory=set)
    unauthorized: str = ""

    def count(self, results: Iterable[Result]) -> None:
        for result in results:
            self.results[result] += 1
            self.observe(MESSAGES_HANDLED, result)

    def park(self, body: str) -> None:
        if body not in self.parked:
            self.parked.add(body)
            self.observe(MESSAGES_HANDLED, "parked")


@dataclass
class Drain:
    """Drains one queue through one worker."""

    queue: Queue
    dead_letters: Queue | None
    worker: Worker
    leases: Leases
    stopping: Stopping
    concurrency: int
    visibility: int
    poll_seconds: int
    server_wait: float
    group_messages: int
    tally: Tally = field(default_factory=Tally)
    arrivals: Arrivals | None = None
    _ready: deque[Unit] = field(default_factory=deque, init=False)  # received, leased, and not started yet
    _pool: ThreadPoolExecutor = field(init=False)

    def __post_init__(self) -> None:
        self._pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="job")

    def run(self, *, until_empty: bool) -> None:
        """Work until told to stop, or until the queue is empty. Without `until_empty` it waits for whatever is away.

        Raises:
            ServerGone: no server answers in time.
            Unauthorized: the server does not accept our key.
            QueueUnavailable: SQS stays away.
        """
        self._work_until(self.is_empty if until_empty else None)

    def run_until_lull(self) -> int:
        """Work until a long poll brings nothing, whatever others hold; how many messages came. Raises as `run`."""
        return self._work_until(lambda: True)

    def is_empty(self) -> bool:
        """After an empty long poll: the counters agree. Delayed messages are safety nets, which the sweep covers."""
        backlog = self.queue.backlog()
        return backlog.visible == 0 and backlog.in_flight == 0

    def run_alone(self, call: Callable[[], T]) -> T | None:
        """Run `call` in a thread of the pool, which is idle, and wait; None if it does not end in time for a stop."""
        return next(iter(self.run_all([call])), None)

    def run_all(self, calls: Sequence[Callable[[], T]]) -> list[T]:
        """Run `calls` in the pool, which is idle, and wait; the results of those that end in time for a stop."""
        futures = {self._pool.submit(call) for call in calls}
        self._wait_for(futures)
        return [future.result() for future in futures if future.done() and not future.cancelled()]

    def arrived(self, messages: Sequence[Message]) -> None:
        """The transcripts that these messages asked for have just come."""
        if self.arrivals and messages:
            self.arrivals.observe_all(messages)

    def await_server(self) -> None:
        """Wait until a server would answer. Raises ServerGone."""
        self._await_server(forever=False)

    def _work_until(self, is_over: Callable[[], bool] | None) -> int:
        """`is_over`: asked when nothing comes and nothing is in work here; without it, patience has no end."""
        forever = is_over is None
        running: set[Future[None]] = set()
        came = 0
        try:
            while not self.stopping.is_set():
                running = {future for future in running if not future.done()}
                try:
                    if self.tally.unauthorized and not forever:
                        raise Unauthorized(self.tally.unauthorized)
                    if not running:  # with jobs in flight their own answers tell
                        self._await_server(forever=forever)
                    started = self._start_some(running)
                    came += started
                    if started == 0 and not running and is_over and is_over():
                        break
                except QueueUnavailable as error:
                    if not forever:
                        raise
                    logger.warning("the queue stays away", extra={"reason": str(error)})
                    self.stopping.wait(RECOVERY_SECONDS)
        finally:
            self._finish(running)
        return came

    def _start_some(self, running: set[Future[None]]) -> int:
        """Start what there is room for, received first if nothing waits here; how many messages that was."""
        if self.stopping.is_set() or len(running) >= self.concurrency:
            wait(running, timeout=1, return_when=FIRST_COMPLETED)
            return 0
        if not self._ready:
            messages = self._receive(self.concurrency - len(running), busy=bool(running))
            self._ready.extend(units(messages, self.worker.store.bucket))
        started = 0
        while self._ready and len(running) < self.concurrency and not self.stopping.is_set():
            unit = self._ready.popleft()
            started += len(unit.messages)
            if unit.alone:
                self._wait_for(running)
                if not self.stopping.is_set():
                    self.run_alone(partial(self._work_on, unit))
            else:
                running.add(self._pool.submit(self._work_on, unit))
        return started

    def _wait_for(self, futures: set[Future[T]]) -> None:
        """Wait until all are done. Once we are told to stop, none begins, and the others get what time there is."""
        while wait(futures, timeout=min(STOP_POLL_SECONDS, self.stopping.seconds_left)).not_done:
            if self.stopping.is_set():
                for future in futures:
                    future.cancel()
            if not self.stopping.seconds_left:
                return

    def _receive(self, room: int, *, busy: bool) -> list[Message]:
        """One message for each free place; and all that come at once, up to GROUP_MESSAGES, while there are chunks.

        Whatever is in work: the next group is fetched and decoded while the recognizer has this one.
        """
        messages = batch = self._lease(room, 1 if busy else self.poll_seconds)
        while any(chunk_message(message, self.worker.store.bucket) for message in batch):
            most = self.group_messages - len(messages)
            if most <= 0 or self.stopping.is_set():
                break
            try:
                batch = self._lease(most, 1)
            except QueueUnavailable:  # what came already is worked on; the next receive says so again
                break
            messages = messages + batch
        return messages

    def _lease(self, most: int, seconds: int) -> list[Message]:
        """Receive messages; from now on they are ours, however long they wait for their turn."""
        messages = self.queue.receive(most=most, wait=seconds, visibility=self.visibility)
        for message in messages:
            self.leases.hold(self.queue, message)
        return messages

    def _await_server(self, *, forever: bool) -> None:
        """Receives nothing while no server lives: every receive counts towards the dead-letter queue."""
        deadline = time.monotonic() + self.server_wait
        while not self.stopping.is_set():
            health = self.worker.server.health(HEALTH_LIMITS)
            if health.ready or health.alive:
                return
            if not forever and time.monotonic() >= deadline:
                raise ServerGone(f"the server at {self.worker.server.url} is not ready: {health.reason}")
            self.stopping.wait(HEALTH_POLL_SECONDS)

    def _work_on(self, unit: Unit) -> None:
        """Settle a unit's messages. Those a stitched pass leaves open get their own turn each, in the ordinary way."""
        if not unit.jobs:
            self._work(unit.messages[0])
            return
        settled = self._stitch(unit)
        done: list[Message] = []
        arrived: list[Message] = []
        for message, job in zip(unit.messages, unit.jobs, strict=True):
            if job.job_id not in settled:
                self._ready.append(Unit((message,)))
                continue
            result, settled[job.job_id] = settled[job.job_id], Result.SKIPPED  # of duplicates only one did the work
            self.tally.count([result])
            done.append(message)
            if result is Result.TRANSCRIBED:
                arrived.append(message)
        self._delete(done)
        for message in done:
            self.leases.release(message)
        self.arrived(arrived)

    def _stitch(self, unit: Unit) -> dict[str, Result]:
        try:
            return self.worker.stitch(unit.jobs)
        except TransientError as error:
            logger.warning("a stitched pass was not finished", extra={"reason": str(error)})
        except Exception:  # a bug of ours must not end the run: each job gets its own turn
            logger.exception("a stitched pass failed unexpectedly")
        return {}

    def _work(self, message: Message) -> None:
        try:
            try:
                results = self.worker.handle(message.document(), attempts=message.receive_count)
            except BadMessage as error:
                self._park(message, error)
                return
            except Unauthorized as error:
                self.tally.unauthorized = str(error)
                results = [Result.LATER]
            except TransientError as error:
                logger.warning("later", extra={"message_id": message.id, "reason": str(error)})
                results = [Result.LATER]
            except Exception:  # a bug of ours must not end the run: the message stays and counts its receives
                logger.exception("a job failed unexpectedly", extra={"message_id": message.id})
                results = [Result.LATER]
            self.tally.count(results)
            self._settle(message, results)
        finally:
            self.leases.release(message)
        if Result.TRANSCRIBED in results:
            self.arrived([message])

    def _settle(self, message: Message, results: list[Result]) -> None:
        if Result.LATER in results:
            backoff = 0 if self.stopping.is_set() else min(2**message.receive_count, MAX_BACKOFF_SECONDS)
            self.leases.give_back([message], after=backoff)
            return
        self._delete([message])

    def _delete(self, messages: Sequence[Message]) -> None:
        try:
            self.queue.delete_all(messages)
        except TransientError as error:
            # They come again and are found done. SQS also refuses handles of messages that were received once more.
            logger.warning("messages not deleted", extra={"count": len(messages), "reason": str(error)})

    def _park(self, message: Message, error: BadMessage) -> None:
        """A message nobody can read goes to the dead-letter queue at once, with the reason, instead of cycling."""
        logger.error("unreadable message", extra={"message_id": message.id, "reason": error.message})
        if self.dead_letters is None:
            return
        try:
            self.dead_letters.send_raw(message.body, attributes={"reason": error.message[:256]})
            self.queue.delete(message)
            self.tally.park(message.body)
        except TransientError as failure:
            logger.warning("message not parked", extra={"message_id": message.id, "reason": str(failure)})

    def _finish(self, running: set[Future[None]]) -> None:
        """Give back what has not begun; let jobs in flight end while there is time; give back the rest."""
        waiting = [message for unit in self._ready for message in unit.messages]
        self._ready.clear()
        given_back = self.leases.give_back(waiting)
        wait(running, timeout=self.stopping.seconds_left if self.stopping.is_set() else None)
        given_back += self.leases.give_back()
        if given_back:
            logger.warning("gave messages back", extra={"count": given_back})
