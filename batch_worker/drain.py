"""The loop: receive while the server lives, work in parallel, delete what is done, leave the rest to the queue."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from functools import partial
from typing import TypeVar

from aws_lambda_powertools import Logger

from batch_worker.lease import Leases
from batch_worker.work import Result, Unauthorized, Worker
from shared.errors import BadMessage, TransientError
from shared.queues import Message, Queue, QueueUnavailable
from shared.server import Limits

HEALTH_LIMITS = Limits(connect=2.0, total=5.0)
HEALTH_POLL_SECONDS = 1.0
SUSPECT_RECEIVES = 2  # a message that came back may be what kills the server: it goes alone
MAX_BACKOFF_SECONDS = 60
RECOVERY_SECONDS = 5.0  # before the queue is asked again

T = TypeVar("T")

logger = Logger(service="batch-worker", child=True)


class ServerGone(TransientError):
    """No server answered for as long as we were told to wait."""


@dataclass
class Tally:
    """What happened in a run, by result; `parked`: bodies nobody could read, now in the dead-letter queue."""

    results: Counter[Result] = field(default_factory=Counter)
    parked: set[str] = field(default_factory=set)
    unauthorized: str = ""


@dataclass
class Drain:
    """Drains one queue through one worker."""

    queue: Queue
    dead_letters: Queue | None
    worker: Worker
    leases: Leases
    stopping: threading.Event
    concurrency: int
    visibility: int
    poll_seconds: int
    server_wait: float
    drain_timeout: float
    tally: Tally = field(default_factory=Tally)
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
        running: set[Future[None]] = set()
        try:
            while not self.stopping.is_set():
                running = {future for future in running if not future.done()}
                try:
                    if self.tally.unauthorized and until_empty:
                        raise Unauthorized(self.tally.unauthorized)
                    if not running:  # with jobs in flight their own answers tell
                        self._await_server(forever=not until_empty)
                    received = self._start_some(running)
                    if received == 0 and not running and until_empty and self._is_empty():
                        return
                except QueueUnavailable as error:
                    if until_empty:
                        raise
                    logger.warning("the queue stays away", extra={"reason": str(error)})
                    self.stopping.wait(RECOVERY_SECONDS)
        finally:
            self._finish(running)

    def run_alone(self, call: Callable[[], T]) -> T | None:
        """Run `call` in a thread of the pool, which is idle, and wait; None if we are told to stop meanwhile."""
        future = self._pool.submit(call)
        self._wait_for({future})
        return future.result() if future.done() else None

    def await_server(self) -> None:
        """Wait until a server would answer. Raises ServerGone."""
        self._await_server(forever=False)

    def _start_some(self, running: set[Future[None]]) -> int:
        """Receive what there is room for and start it; how many messages came."""
        room = self.concurrency - len(running)
        if room <= 0 or self.stopping.is_set():
            wait(running, timeout=1, return_when=FIRST_COMPLETED)
            return 0
        messages = self._receive(room, busy=bool(running))
        for message in messages:
            self.leases.hold(self.queue, message)  # from now on, however long it waits for its turn
        suspects = [message for message in messages if message.receive_count >= SUSPECT_RECEIVES]
        running |= {self._pool.submit(self._work, message) for message in messages if message not in suspects}
        for suspect in suspects:
            self._wait_for(running)
            if not self.stopping.is_set():
                self.run_alone(partial(self._work, suspect))
        return len(messages)

    def _wait_for(self, futures: set[Future[T]]) -> None:
        """Wait until all are done, or we are told to stop."""
        while not self.stopping.is_set() and wait(futures, timeout=0.2).not_done:
            pass

    def _receive(self, most: int, *, busy: bool) -> list[Message]:
        return self.queue.receive(most=most, wait=1 if busy else self.poll_seconds, visibility=self.visibility)

    def _is_empty(self) -> bool:
        """After an empty long poll: the counters agree. Delayed messages are safety nets, which the sweep covers."""
        backlog = self.queue.backlog()
        return backlog.visible == 0 and backlog.in_flight == 0

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
            self.tally.results.update(results)
            self._settle(message, results)
        finally:
            self.leases.release(message)

    def _settle(self, message: Message, results: list[Result]) -> None:
        try:
            if Result.LATER in results:
                backoff = 0 if self.stopping.is_set() else min(2**message.receive_count, MAX_BACKOFF_SECONDS)
                self.queue.extend(message, backoff)
            else:
                self.queue.delete(message)
        except TransientError as error:
            # It comes again and is found done. SQS also refuses handles of messages that were received once more.
            logger.warning("message not settled", extra={"message_id": message.id, "reason": str(error)})

    def _park(self, message: Message, error: BadMessage) -> None:
        """A message nobody can read goes to the dead-letter queue at once, with the reason, instead of cycling."""
        logger.error("unreadable message", extra={"message_id": message.id, "reason": error.message})
        if self.dead_letters is None:
            return
        try:
            self.dead_letters.send_raw(message.body, attributes={"reason": error.message[:256]})
            self.queue.delete(message)
            self.tally.parked.add(message.body)
        except TransientError as failure:
            logger.warning("message not parked", extra={"message_id": message.id, "reason": str(failure)})

    def _finish(self, running: set[Future[None]]) -> None:
        """Let jobs in flight end; give back what does not end in time."""
        wait(running, timeout=self.drain_timeout if self.stopping.is_set() else None)
        if given_back := self.leases.give_back():
            logger.warning("gave messages back", extra={"count": given_back})
