"""Whether a job would be taken now, and the slots that jobs take: a full server says so at once, it never piles up."""

import math
import time
from enum import StrEnum

from gpu_server.problems import Refused

# For so long a server keeps newcomers out for a job that wants it alone; its caller asks again long before.
KEPT_SECONDS = 10.0


class Phase(StrEnum):
    LOADING = "loading"
    READY = "ready"
    DRAINING = "draining"
    BROKEN = "broken"


class Readiness:
    """Belongs to the event loop's thread.

    `capacity`: jobs at once, running and waiting. `phase` goes from LOADING to READY to DRAINING; BROKEN is the end.
    `crowded`: so many callers are inside that the door lets nobody else in.
    """

    def __init__(self, capacity: int) -> None:
        self.capacity = capacity
        self.in_flight = 0
        self.phase = Phase.LOADING
        self.crowded = False
        self._job_seconds = 1.0  # smoothed, for Retry-After
        self._alone = False
        self._kept_until = 0.0

    @property
    def reason(self) -> str | None:
        """Why no job would be taken now, or None."""
        if self.phase is not Phase.READY:
            return str(self.phase)
        return "saturated" if self.in_flight >= (1 if self._alone else self.capacity) else None

    @property
    def outside(self) -> str | None:
        """The reason for a newcomer: a crowd keeps it out even while there is a slot, which those inside may take."""
        return self.reason or ("saturated" if self.crowded else None)

    @property
    def retry_after(self) -> int:
        """Seconds until a slot is likely to be free."""
        return min(60, max(1, math.ceil(self._job_seconds)))

    def check(self) -> None:
        """Raises Refused when no job would be taken now."""
        reason = self.reason
        if reason == "saturated":
            raise self._full()
        if reason:
            raise Refused(503, reason, f"The server is {reason}.", retry_after=5)

    def take_slot(self, *, alone: bool = False) -> None:
        """Raises Refused when there is none.

        alone: a slot beside which there is no other. While others are taken there is none, and no new one for others.
        """
        self.check()
        now = time.monotonic()
        if alone and self.in_flight:
            self._kept_until = now + KEPT_SECONDS
            raise Refused(429, "saturated", "Others are at work; ask again until they are done.", retry_after=1)
        if not alone and now < self._kept_until:
            raise self._full()
        self.in_flight += 1
        self._alone, self._kept_until = alone, 0.0

    def free_slot(self, seconds: float) -> None:
        """`seconds`: how long the job had it."""
        self.in_flight -= 1
        self._alone = False
        self._job_seconds += (seconds - self._job_seconds) / 8

    def _full(self) -> Refused:
        return Refused(429, "saturated", "The server is full; try again later.", retry_after=self.retry_after)
