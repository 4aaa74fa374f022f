"""What a worker does on an instance: a batch run, then whatever comes, and when it is of no use any more, the end."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from batch_worker.batch import Batch, Summary
from batch_worker.drain import HEALTH_LIMITS
from batch_worker.instance import Member
from batch_worker.surplus import Surplus
from shared.server import Work

# After the end of a batch: what was lost or left meanwhile waits no longer. A sweep asks S3 for every thousand objects,
# and a few times for each session: so not at every lull.
NEXT_BATCH_SECONDS = 3600.0


@dataclass
class Stay:
    """`member`: the instance in its group; None elsewhere, where only the process ends.

    It ends when nothing came for `idle_seconds`, or when the group's other instances can do what comes. No job is lost
    then: the worker holds no message, and what comes meanwhile waits in the queue for whoever works next. What comes to
    the server directly in its last moments is finished as it shuts down, or the router asks another one.
    """

    batch: Batch
    member: Member | None
    idle_seconds: float
    clock: Callable[[], float] = time.monotonic
    _seen: Work | None = field(default=None, init=False)
    _over_at: float = field(default=0.0, init=False)

    def __post_init__(self) -> None:
        self._surplus = Surplus(self.member, self.idle_seconds) if self.member else None

    def run(self) -> Summary:
        """Raises TransientError when server, queue or bucket stay away; whatever was not done stays where it is."""
        stopping = self.batch.drain.stopping
        self.batch.drain.await_server()  # without one this instance does nothing that is worth protection
        ended = False
        while not ended and not stopping.is_set():
            with self._protected():
                is_idle = self._work_until_useless()
            ended = not stopping.is_set() and self._is_still_useless(is_idle) and (not self.member or self.member.end())
        return self.batch.summary()

    @contextlib.contextmanager
    def _protected(self) -> Iterator[None]:
        if self.member is None:
            yield
            return
        self.member.protect(True)
        try:
            yield
        finally:
            self.member.protect(False)

    def _work_until_useless(self) -> bool:
        """Until nothing has come for long (True), others can do what comes (False), or we are told to stop."""
        drain = self.batch.drain
        last_work = self.clock()
        while not drain.stopping.is_set():
            came = drain.run_until_lull()
            found = self._finds_more()
            if self._server_works() or came or found:
                last_work = self.clock()
            elif self.clock() - last_work >= self.idle_seconds:
                return True
            if self._is_surplus():
                return False
        return False

    def _finds_more(self) -> bool:
        """Others may work: the last of them looks further."""
        batch = self.batch
        if batch.over and self.clock() - self._over_at >= NEXT_BATCH_SECONDS:
            batch.begin_again()
        if batch.over or not batch.drain.is_empty():
            return False
        batch.look_further()
        self._over_at = self.clock()
        return not batch.over

    def _is_surplus(self) -> bool:
        """Asked even while the server has something in hand: each answer is about the time since the last one."""
        if self._surplus is None or self._seen is None:
            return False
        return self._surplus.is_due(self.clock(), self._seen.busy_seconds) and self._is_free()

    def _is_still_useless(self, is_idle: bool) -> bool:
        """Now that others know that it goes. Nothing is received here: nobody could give it back."""
        if self.batch.drain.queue.backlog().visible > 0:
            return False
        works = self._server_works()
        return not works if is_idle else self._is_free() and bool(self._surplus and self._surplus.is_confirmed())

    def _is_free(self) -> bool:
        """Whether the server had nothing in hand at the last look."""
        return self._seen is not None and self._seen.in_flight == 0

    def _server_works(self) -> bool:
        """Since the last look, for whomever: the router posts to it as well."""
        before, self._seen = self._seen, self.batch.drain.worker.server.work(HEALTH_LIMITS)
        return self._seen is not None and (self._seen.in_flight > 0 or self._seen != before)
