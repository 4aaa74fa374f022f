"""Dead letters and the router's failures: one more try each, alone, and then a recorded failure.

So a dead letter never blocks its session. What nobody can read stays in the dead-letter queue, for a person.
"""

from dataclasses import dataclass
from functools import partial

from aws_lambda_powertools import Logger

from batch_worker.drain import Drain
from batch_worker.work import Result, Worker
from shared.errors import BadMessage, TransientError
from shared.queues import Message, Queue

logger = Logger(service="batch-worker", child=True)


@dataclass
class Letters:
    """Empties one queue of letters."""

    queue: Queue
    drain: Drain
    dead_letters: Queue | None

    def run(self) -> None:
        """Try every letter once. Letters that must wait for something else are left where they are.

        Raises:
            ServerGone: nobody to try them with.
        """
        leases, stopping = self.drain.leases, self.drain.stopping
        seen: set[str] = set()
        left: list[Message] = []  # held until all had their try, or they would come again
        try:
            while not stopping.is_set():
                self.drain.await_server()
                if stopping.is_set():
                    break
                messages = self.queue.receive(most=1, wait=1, visibility=self.drain.visibility)
                if not messages:
                    break
                message = messages[0]
                leases.hold(self.queue, message)
                left.append(message)
                if message.id not in seen and self.drain.run_alone(partial(self._settled, message)):
                    leases.release(left.pop())
                seen.add(message.id)
        finally:
            leases.give_back(left)

    def _settled(self, message: Message) -> bool:
        """False when the letter stays in its queue."""
        worker: Worker = self.drain.worker
        try:
            results = worker.handle(message.document(), attempts=message.receive_count, final=True)
            self.drain.tally.count(results)
            if Result.LATER in results:
                return False
            self.queue.delete(message)
            if Result.TRANSCRIBED in results:
                self.drain.arrived([message])
        except BadMessage as error:
            return self._parked(message, error)
        except TransientError as error:
            logger.warning("letter kept", extra={"message_id": message.id, "reason": str(error)})
            return False
        except Exception:  # a bug of ours must not end the run, nor every run after it
            logger.exception("a letter failed unexpectedly", extra={"message_id": message.id})
            return False
        return True

    def _parked(self, message: Message, error: BadMessage) -> bool:
        """A letter nobody can read is kept in the dead-letter queue, with the reason."""
        logger.error("unreadable letter", extra={"message_id": message.id, "reason": error.message})
        self.drain.tally.park(message.body)
        if self.dead_letters is None or self.dead_letters.url == self.queue.url:
            return False
        try:
            self.dead_letters.send_raw(message.body, attributes={"reason": error.message[:256]})
            self.queue.delete(message)
        except TransientError as failure:
            logger.warning("letter not parked", extra={"message_id": message.id, "reason": str(failure)})
            return False
        return True
