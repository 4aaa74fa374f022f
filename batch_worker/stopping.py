"""That this process is to end, and how long what is in work still has."""

import math
import threading
import time


class Stopping(threading.Event):
    """Set once the process is to end; waits as any event. `grace`: seconds for work in flight if nobody says less."""

    def __init__(self, grace: float) -> None:
        super().__init__()
        self._grace = grace
        self._by = math.inf

    def set(self) -> None:
        self.within(self._grace)

    def within(self, seconds: float) -> None:
        """End within `seconds`, or sooner if that was said before."""
        self._by = min(self._by, time.monotonic() + seconds)
        super().set()

    @property
    def seconds_left(self) -> float:
        """Endless while nobody says that the process is to end."""
        return max(0.0, self._by - time.monotonic())
