"""The loop: receive while the server lives, work in parallel, delete what is done, leave the rest to the queue."""

import threading
import time
from collections import Counter
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from typing import Protocol

from aws_lambda_powertools import Logger

from batch_worker.lease import Leases
from batch_worker.work import Result, Unauthorized, Worker
from shared.errors import BadMessage, TransientError
from shared.queues import Message, Queue
from shared.server import Limits

HEALTH_LIMITS = Limits(connect=2.0, total=5.0)
HEALTH_POLL_SECONDS = 1.0
SUSPECT_RECEIVES = 2  # a message that came back may be what kills the server: it goes alone
MAX_BACKOFF_SECONDS = 60

logger = Logger(service="batch-worker", child=True)


class ServerGone(TransientError):
    """No server answered for as long as we were told to wait."""


class Recorder(Protocol):
    def __call__(self, result: Result) -> None: ...


@dataclass
class Tally:
    """What happened in a run, by result; `parked`: messages nobody could read, now in the dead-letter queue."""

    results: Counter[Result] = field(default_factory=Counter)
    parked: int = 0
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

    def run(self, *, until_empty: bool) -> None:
        """Work until told to stop, or until the queue is empty.

        Raises:
            ServerGone: with `until_empty`, when no server answers in time; without, it is waited for.
            Unauthorized: with `until_empty`, when the server does not accept our key.
        """
        pool = ThreadPoolExecutor(self.concurrency, thread_name_prefix="job")
        running: set[Future[None]] = set()
        try:
            while not self.stopping.is_set():
                running = {future for future in running if not future.done()}
                if self.tally.unauthorized and until_empty:
                    raise Unauthorized(self.tally.unauthorized)
                if not running:  # with jobs in flight their own answers tell
                    self._await_server(forever=not until_empty)
                if len(running) >= self.concurrency:
                    wait(running, timeout=1, return_when=FIRST_COMPLETED)
                    continue
                messages = self._receive(self.concurrency - len(running), busy=bool(running))
                for message in messages:
                    if message.receive_count >= SUSPECT_RECEIVES:
                        wait(running)
                        self._work(message)
                    else:
                        running.add(pool.submit(self._work, message))
                if not messages and not running and until_empty and self._is_empty():
                    return
        finally:
            self._finish(pool, running)

    def await_server(self) -> None:
        """Wait until a server would answer. Raises ServerGone."""
        self._await_server(forever=False)

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
        with self.leases.hold(self.queue, message):
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
            self.tally.parked += 1
        except TransientError as failure:
            logger.warning("message not parked", extra={"message_id": message.id, "reason": str(failure)})

    def _finish(self, pool: ThreadPoolExecutor, running: set[Future[None]]) -> None:
        """Let jobs in flight end; give back what does not end in time."""
        wait(running, timeout=self.drain_timeout if self.stopping.is_set() else None)
        if given_back := self.leases.give_back():
            logger.warning("gave messages back", extra={"count": given_back})
        pool.shutdown(wait=False, cancel_futures=True)
