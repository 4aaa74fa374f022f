"""The jobs queue as SQS keeps one: receives that count, messages that come back, a dead-letter queue.

https://docs.aws.amazon.com/AWSSimpleQueueService/latest/SQSDeveloperGuide/sqs-visibility-timeout.html
"""

import heapq
from collections import deque
from itertools import islice

from simpy import Environment, Event

from bench.simulation.ledger import Work

MOST_RECEIVES = 5  # infra/scripts: the redrive policy
SAMPLED = 30  # messages that the launcher looks into


class Message:
    __slots__ = ("deleted", "receives", "sent", "work")

    def __init__(self, work: Work, sent: float) -> None:
        self.work = work
        self.sent = sent
        self.receives = 0
        self.deleted = False


class JobsQueue:
    """Counts are of chunks. Whoever finds it empty may wait for `arrival`."""

    def __init__(self, env: Environment) -> None:
        self._env = env
        self._visible: deque[Message] = deque()
        self._by_age: list[tuple[float, int, Message]] = []
        self._waiting: dict[Event, None] = {}
        self._sent = 0
        self._dead: list[Message] = []
        self.jobs = 0  # in work and dead ones included
        self.in_flight = 0

    def send(self, work: Work) -> None:
        message = Message(work, self._env.now)
        self._sent += 1
        self.jobs += work.count
        heapq.heappush(self._by_age, (message.sent, self._sent, message))
        self._show(message)

    def receive(self, most: int) -> list[Message]:
        """As many as are not more than `most` chunks, at least one if there is one. What came too often goes dead."""
        received: list[Message] = []
        held = 0
        while self._visible and (not received or held + self._visible[0].work.count <= most):
            message = self._visible.popleft()
            message.receives += 1
            if message.receives > MOST_RECEIVES:
                self._dead.append(message)
                continue
            received.append(message)
            held += message.work.count
        self.in_flight += held
        return received

    def delete(self, message: Message) -> None:
        message.deleted = True
        self.in_flight -= message.work.count
        self.jobs -= message.work.count

    def give_back(self, message: Message) -> None:
        """Visible at once."""
        self.in_flight -= message.work.count
        self._show(message)

    def expire(self, message: Message, seconds: float) -> None:
        """Its worker is gone: visible when the lease has ended."""
        timeout = self._env.timeout(seconds)
        assert timeout.callbacks is not None
        timeout.callbacks.append(lambda _: self.give_back(message))

    def letter(self) -> Message | None:
        """Takes a dead one: it is in flight now."""
        if not self._dead:
            return None
        letter = self._dead.pop()
        self.in_flight += letter.work.count
        return letter

    def sample(self) -> float:
        """Audio seconds of all jobs, estimated from the first messages. Each look counts as a receive."""
        messages = list(islice(self._visible, SAMPLED))
        if not messages:
            return 0.0
        for message in messages:
            message.receives += message.work.count == 1  # of a lump only a few would be looked into
        return (
            self.jobs
            * sum(message.work.audio for message in messages)
            / sum(message.work.count for message in messages)
        )

    def age(self) -> float:
        """Seconds that the oldest message has been in the queue."""
        while self._by_age and self._by_age[0][2].deleted:
            heapq.heappop(self._by_age)
        return self._env.now - self._by_age[0][0] if self._by_age else 0.0

    def arrival(self) -> Event:
        """Happens when there is a message for whoever waits, or somebody calls. To be forgotten after use."""
        arrival = self._env.event()
        self._waiting[arrival] = None
        return arrival

    def forget(self, arrival: Event) -> None:
        """Nobody waits for it any more."""
        self._waiting.pop(arrival, None)

    def call(self) -> None:
        """Wakes one who waits."""
        if self._waiting:
            arrival = next(iter(self._waiting))
            self.forget(arrival)
            arrival.succeed()

    def _show(self, message: Message) -> None:
        self._visible.append(message)
        self.call()
