"""One batch run: drain the queue, give dead letters their last try, sweep the bucket, better what is complete."""

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial

from batch_worker.drain import Drain
from batch_worker.letters import Letters
from batch_worker.sweep import Swept, sweep
from batch_worker.work import Result
from shared.combine import Combiner
from shared.jobs import Job, Reason
from shared.keys import Session
from shared.queues import MAX_BATCH
from shared.store import Store
from shared.telemetry import JOBS_LEFT, JOBS_QUEUED, OPEN_SESSIONS, STUCK_SESSIONS

STUCK_AFTER = timedelta(days=1)  # without an upload: a session that is not complete then waits for a person
SWEEPS = 3  # the last one only looks: what is open after two rounds of work is left for the next run


@dataclass(frozen=True)
class Summary:
    transcribed: int
    skipped: int
    failed: int
    swept: int
    parked: int
    restitched: int
    left: int
    stopped: bool

    @property
    def all_done(self) -> bool:
        return self.left == 0 and not self.stopped

    def text(self) -> str:
        state = (
            "stopped early" if self.stopped else "all done" if self.all_done else f"{self.left} left for the next run"
        )
        parked = f", {self.parked} unreadable in the dead-letter queue" if self.parked else ""
        restitched = f", {self.restitched} sessions restitched" if self.restitched else ""
        return (
            f"batch run: {state}: {self.transcribed} transcribed, {self.skipped} already done, {self.failed} failed "
            f"and recorded, {self.swept} found by the sweep{restitched}{parked}"
        )


@dataclass
class Batch:
    """`new_combiner` makes one that remembers nothing, for the sweep. `restitch`: better sessions that are complete.

    `over`: there is nothing more to look for, until it begins again.
    """

    drain: Drain
    letters: list[Letters]
    store: Store
    new_combiner: Callable[[], Combiner]
    restitch: bool
    over: bool = field(default=False, init=False)
    _sweeps: int = field(default=0, init=False)
    _doubtful: list[Job] = field(default_factory=list, init=False)  # found open while others were at work
    _swept: int = field(default=0, init=False)
    _restitched: int = field(default=0, init=False)
    _left: int = field(default=0, init=False)

    def run(self) -> Summary:
        """Raises TransientError when server, queue or bucket stay away; whatever was not done stays where it is."""
        while not self.over and not self.drain.stopping.is_set():
            self.drain.run(until_empty=True)
            self.look_further()
        return self.summary()

    def begin_again(self) -> None:
        """Whatever was left or lost meanwhile is looked for anew; the summary goes on."""
        self.over, self._sweeps = False, 0

    def look_further(self) -> None:
        """Find more to do, now that the queue is empty. Other workers may do the same at the same time."""
        for letters in self.letters:
            letters.run()
        if self.drain.stopping.is_set():
            return
        if self._doubtful:
            doubtful, self._doubtful = self._doubtful, []
            self._queue(doubtful)
            return
        found = sweep(self.store, self.new_combiner())
        self._sweeps += 1
        self._left = len(found.open)
        if not found.open or self._sweeps == SWEEPS:
            self.over = True
            self._observe_what_is_left(found)
            self._restitched += self._restitch(found.live) if self.restitch else 0
        elif self.drain.is_empty():
            self._queue(found.open)
        else:
            self._doubtful = found.open  # another worker may have found and queued them: what comes is worked on first

    def summary(self) -> Summary:
        results = self.drain.tally.results
        return Summary(
            transcribed=results[Result.TRANSCRIBED],
            skipped=results[Result.SKIPPED],
            failed=results[Result.FAILED],
            swept=self._swept,
            parked=len(self.drain.tally.parked),
            restitched=self._restitched,
            left=self._left,
            stopped=self.drain.stopping.is_set(),
        )

    def _queue(self, jobs: list[Job]) -> None:
        """Those that are open still: a sweep takes its time."""
        found = self.drain.worker.find_all(jobs)
        still_open = [job for job in jobs if found[job.job_id].standing.is_open]
        for start in range(0, len(still_open), MAX_BATCH):
            some = still_open[start : start + MAX_BATCH]
            self.drain.queue.send_all(some, Reason.SWEPT)
            self.drain.tally.observe(JOBS_QUEUED, Reason.SWEPT, value=len(some))
            self._swept += len(some)

    def _observe_what_is_left(self, found: Swept) -> None:
        stuck_since = datetime.now(UTC) - STUCK_AFTER
        observe = self.drain.tally.observe
        observe(JOBS_LEFT, value=len(found.open))
        observe(OPEN_SESSIONS, value=len(found.waiting))
        observe(STUCK_SESSIONS, value=sum(uploaded < stuck_since for uploaded in found.waiting))

    def _restitch(self, sessions: list[Session]) -> int:
        """Each session once; how many are stitched now. What could not be is not left over: its transcript stands.

        In no order, so that several workers seldom meet at one.
        """
        shuffled = random.sample(sessions, len(sessions))
        return sum(self.drain.run_all([partial(self.drain.worker.restitch, session) for session in shuffled]))
