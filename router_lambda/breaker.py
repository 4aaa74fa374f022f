"""A circuit breaker: a server that says it is healthy and fails every job is left alone for a while.

A server that is down needs none: its health check tells, and costs next to nothing.
"""

from collections.abc import Callable

THRESHOLD = 5
COOL_DOWN_SECONDS = 30.0


class CircuitBreaker:
    """Opens after `THRESHOLD` failures in a row; after `COOL_DOWN_SECONDS` one call may probe.

    One per Lambda environment, which handles one event at a time: no locking.
    """

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._failures = 0
        self._open_until = 0.0

    def allows(self) -> bool:
        return self._failures < THRESHOLD or self._clock() >= self._open_until

    def reset(self) -> None:
        """The server did a job, or it was gone and is a new one."""
        self._failures = 0

    def failed(self) -> None:
        self._failures += 1
        if self._failures >= THRESHOLD:
            self._open_until = self._clock() + COOL_DOWN_SECONDS
