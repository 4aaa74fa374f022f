"""Keeps messages invisible while their work runs.

AWS's advice is two minutes, renewed every minute; a killed worker then hides its messages for two minutes at most:
https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/working-with-messages.html
"""

import threading
import time

from aws_lambda_powertools import Logger

from shared.queues import Message, Queue, QueueUnavailable

# SQS ends a message's invisibility 12 hours after it was received, whatever was renewed since.
MAX_LEASE_SECONDS = 11 * 3600.0

logger = Logger(service="batch-worker", child=True)


class Leases:
    """One background thread renews everything that is held. Use as a context manager."""

    def __init__(self, *, visibility: int, interval: float) -> None:
        self._visibility = visibility
        self._interval = interval
        self._held: dict[str, tuple[Queue, Message, float]] = {}
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_stopped, name="leases", daemon=True)

    def __enter__(self) -> "Leases":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def hold(self, queue: Queue, message: Message) -> None:
        """Renew `message` until it is released."""
        with self._lock:
            self._held[message.receipt] = (queue, message, time.monotonic())

    def release(self, message: Message) -> None:
        with self._lock:
            self._held.pop(message.receipt, None)

    def count(self) -> int:
        """How many messages are held."""
        with self._lock:
            return len(self._held)

    def give_back(self) -> int:
        """Make everything that is held visible at once, for another worker; how many that was."""
        with self._lock:
            held = list(self._held.values())
            self._held.clear()
        for queue, message, _ in held:
            self._extend(queue, message, 0)
        return len(held)

    def _renew_until_stopped(self) -> None:
        while not self._stop.wait(self._interval):
            with self._lock:
                held = list(self._held.values())
            for queue, message, since in held:
                if time.monotonic() - since < MAX_LEASE_SECONDS:
                    self._extend(queue, message, self._visibility)

    def _extend(self, queue: Queue, message: Message, seconds: int) -> None:
        try:
            queue.extend(message, seconds)
        except QueueUnavailable as error:
            # The lease may be lost and the message come twice: the conditional write settles that.
            logger.warning("lease not renewed", extra={"message_id": message.id, "reason": str(error)})
