"""One batch run: drain the queue, give dead letters their last try, sweep the bucket, and say what is left."""

from collections.abc import Callable
from dataclasses import dataclass

from batch_worker.drain import Drain
from batch_worker.letters import Letters
from batch_worker.sweep import sweep
from batch_worker.work import Result
from shared.combine import Combiner
from shared.jobs import Reason
from shared.store import Store

SWEEPS = 3  # the last one only looks: what is open after two rounds of work is left for the next run


@dataclass(frozen=True)
class Summary:
    transcribed: int
    skipped: int
    failed: int
    swept: int
    parked: int
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
        return (
            f"batch run: {state}: {self.transcribed} transcribed, {self.skipped} already done, {self.failed} failed "
            f"and recorded, {self.swept} found by the sweep{parked}"
        )


@dataclass
class Batch:
    """`new_combiner` makes one that remembers nothing, for the sweep."""

    drain: Drain
    letters: list[Letters]
    store: Store
    new_combiner: Callable[[], Combiner]

    def run(self) -> Summary:
        """Raises TransientError when server, queue or bucket stay away; whatever was not done stays where it is."""
        swept = left = 0
        for round in range(1, SWEEPS + 1):
            self.drain.run(until_empty=True)
            for letters in self.letters:
                letters.run()
            if self.drain.stopping.is_set():
                break
            found = sweep(self.store, self.new_combiner())
            left = len(found)
            if not found or round == SWEEPS:
                break
            for job in found:
                self.drain.queue.send(job, Reason.SWEPT)
            swept += len(found)
        results = self.drain.tally.results
        return Summary(
            transcribed=results[Result.TRANSCRIBED],
            skipped=results[Result.SKIPPED],
            failed=results[Result.FAILED],
            swept=swept,
            parked=len(self.drain.tally.parked),
            left=left,
            stopped=self.drain.stopping.is_set(),
        )
