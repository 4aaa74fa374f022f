"""Keeps messages invisible while their work runs.

AWS's advice is two minutes, renewed every minute; a killed worker then hides its messages for two minutes at most:
https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/working-with-messages.html
"""

import threading
import time
from collections.abc import Iterable

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
        self._changing = threading.Lock()  # a renewal that comes after a giving back would hide what nobody works on
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._renew_until_stopped, name="leases", daemon=True)

    def __enter__(self) -> "Leases":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def hold(self, queue: Queue, message: Message) -> None:
        """Renew `message` until it is released or given back."""
        with self._lock:
            self._held[message.receipt] = (queue, message, time.monotonic())

    def release(self, message: Message) -> None:
        with self._lock:
            self._held.pop(message.receipt, None)

    def give_back(self, messages: Iterable[Message] | None = None, *, after: int = 0) -> int:
        """Make these visible in `after` seconds, or all that are held, for another try; how many that was."""
        with self._lock:
            receipts = list(self._held) if messages is None else [message.receipt for message in messages]
            held = [self._held.pop(receipt) for receipt in receipts if receipt in self._held]
        for queue, message, _ in held:
            with self._changing:
                self._extend(queue, message, after)
        return len(held)

    def renew(self) -> None:
        """Renew everything that is held, but for what SQS would not hide any longer."""
        with self._lock:
            receipts = list(self._held)
        for receipt in receipts:
            with self._changing:
                with self._lock:
                    lease = self._held.get(receipt)
                if lease and time.monotonic() - lease[2] < MAX_LEASE_SECONDS:
                    self._extend(lease[0], lease[1], self._visibility)

    def _renew_until_stopped(self) -> None:
        while not self._stop.wait(self._interval):
            self.renew()

    def _extend(self, queue: Queue, message: Message, seconds: int) -> None:
        try:
            queue.extend(message, seconds)
        except QueueUnavailable as error:
            # The lease may be lost and the message come twice: the conditional write settles that.
            logger.warning("lease not changed", extra={"message_id": message.id, "reason": str(error)})
