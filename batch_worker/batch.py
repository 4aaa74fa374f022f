"""One batch run: drain the queue, give dead letters their last try, sweep the bucket, better what is complete."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from functools import partial

from batch_worker.drain import Drain
from batch_worker.letters import Letters
from batch_worker.sweep import Swept, sweep
from batch_worker.work import Result
from shared.combine import Combiner
from shared.jobs import Reason
from shared.keys import Session
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
    """`new_combiner` makes one that remembers nothing, for the sweep. `restitch`: better sessions that are complete."""

    drain: Drain
    letters: list[Letters]
    store: Store
    new_combiner: Callable[[], Combiner]
    restitch: bool

    def run(self) -> Summary:
        """Raises TransientError when server, queue or bucket stay away; whatever was not done stays where it is."""
        swept = left = 0
        live: list[Session] = []
        for round in range(1, SWEEPS + 1):
            self.drain.run(until_empty=True)
            for letters in self.letters:
                letters.run()
            if self.drain.stopping.is_set():
                break
            found = sweep(self.store, self.new_combiner())
            left, live = len(found.open), found.live
            if not found.open or round == SWEEPS:
                self._observe_what_is_left(found)
                break
            for job in found.open:
                self.drain.queue.send(job, Reason.SWEPT)
                self.drain.tally.observe(JOBS_QUEUED, Reason.SWEPT)
            swept += len(found.open)
        restitched = self._restitch(live) if self.restitch and not self.drain.stopping.is_set() else 0
        results = self.drain.tally.results
        return Summary(
            transcribed=results[Result.TRANSCRIBED],
            skipped=results[Result.SKIPPED],
            failed=results[Result.FAILED],
            swept=swept,
            parked=len(self.drain.tally.parked),
            restitched=restitched,
            left=left,
            stopped=self.drain.stopping.is_set(),
        )

    def _observe_what_is_left(self, found: Swept) -> None:
        stuck_since = datetime.now(UTC) - STUCK_AFTER
        observe = self.drain.tally.observe
        observe(JOBS_LEFT, value=len(found.open))
        observe(OPEN_SESSIONS, value=len(found.waiting))
        observe(STUCK_SESSIONS, value=sum(uploaded < stuck_since for uploaded in found.waiting))

    def _restitch(self, sessions: list[Session]) -> int:
        """Each session once; how many are stitched now. What could not be is not left over: its transcript stands."""
        return sum(self.drain.run_all([partial(self.drain.worker.restitch, session) for session in sessions]))
