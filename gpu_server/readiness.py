"""Whether a job would be taken now, and the slots that jobs take: a full server says so at once, it never piles up."""

import math
from enum import StrEnum

from gpu_server.problems import Refused


class Phase(StrEnum):
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    BROKEN = "broken"


class Readiness:
    """Belongs to the event loop's thread.

    `capacity`: jobs at once, running and waiting. `phase` goes from LOADING to READY to DRAINING; BROKEN is the end.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.in_flight = 0
        self.phase = Phase.LOADING
        self._job_seconds = 1.0  # smoothed, for Retry-After

    @property
    def reason(self) -> str | None:
        """Why no job would be taken now, or None."""
        if self.phase is not Phase.READY:
            return str(self.phase)
        return "saturated" if self.in_flight >= self.capacity else None

    @property
    def retry_after(self) -> int:
        """Seconds until a slot is likely to be free."""
        return min(60, max(1, math.ceil(self._job_seconds)))

    def check(self) -> None:
        """Raises Refused when no job would be taken now."""
        reason = self.reason
        if reason == "saturated":
            raise Refused(429, "saturated", "The server is full; try again later.", retry_after=self.retry_after)
        if reason:
            raise Refused(503, reason, f"The server is {reason}.", retry_after=5)

    def take_slot(self) -> None:
        """Raises Refused when there is none."""
        self.check()
        self.in_flight += 1

    def free_slot(self, seconds: float) -> None:
        """`seconds`: how long the job had it."""
        self.in_flight -= 1
        self._job_seconds += (seconds - self._job_seconds) / 8
