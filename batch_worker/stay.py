"""What a worker does on an instance: one batch run, then whatever comes, and when nothing does for long, the end."""

import contextlib
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from batch_worker.batch import Batch, Summary
from batch_worker.drain import HEALTH_LIMITS
from batch_worker.instance import Member
from shared.server import Work


@dataclass
class Stay:
    """`member`: the instance in its group; None elsewhere, where only the process ends.

    No job is lost at the end: the worker holds no message then, and what comes meanwhile waits in the queue for whoever
    works next.
    """

    batch: Batch
    member: Member | None
    idle_seconds: float
    clock: Callable[[], float] = time.monotonic
    _seen: Work | None = field(default=None, init=False)

    def run(self) -> Summary:
        """Raises TransientError when server, queue or bucket stay away; whatever was not done stays where it is."""
        stopping = self.batch.drain.stopping
        self.batch.drain.await_server()  # without one this instance does nothing that is worth protection
        ended = False
        while not ended and not stopping.is_set():
            with self._protected():
                self._work_until_idle()
            ended = not stopping.is_set() and self._is_still_idle() and (self.member is None or self.member.end())
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

    def _work_until_idle(self) -> None:
        """Until nothing has come for long, or we are told to stop. Others may work: the last of them looks further."""
        drain = self.batch.drain
        last_work = self.clock()
        while not drain.stopping.is_set():
            came = drain.run_until_lull()
            looks_further = not self.batch.over and drain.is_empty()
            if looks_further:
                self.batch.look_further()
            if self._server_works() or came or looks_further:
                last_work = self.clock()
            elif self.clock() - last_work >= self.idle_seconds:
                return

    def _is_still_idle(self) -> bool:
        """Nothing is received here: nobody could give it back."""
        return self.batch.drain.queue.backlog().visible == 0 and not self._server_works()

    def _server_works(self) -> bool:
        """Since the last look, for whomever: the router posts to it as well."""
        before, self._seen = self._seen, self.batch.drain.worker.server.work(HEALTH_LIMITS)
        return self._seen is not None and (self._seen.in_flight > 0 or self._seen != before)
