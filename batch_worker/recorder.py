"""Takes notes of one run of the worker, for its report."""

import threading
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from heapq import nlargest
from pathlib import Path

from aws_lambda_powertools import Logger
from pydantic import ValidationError

from batch_worker.instance import Instance
from batch_worker.report import Failures, Host, Run, SlowJob, write
from batch_worker.work import Ending, Result
from shared.errors import TransientError
from shared.jobs import Job
from shared.keys import Session, session_of
from shared.store import Store
from shared.telemetry import Pulse
from shared.transcript import Transcript

SAVE_SECONDS = 300.0  # of a run that is killed, no more than that is missing in the report
SLOWEST = 10
KEYS = 10  # of failures of one kind
UPTIME = Path("/proc/uptime")

logger = Logger(service="batch-worker", child=True)


class Recorder:
    """Use as a context manager: it writes now and then, and at the end. Safe to share between threads.

    `results`: the messages' ends so far. `busy_seconds`: of the server's recognizer since its start, if it tells.
    """

    def __init__(
        self,
        store: Store,
        instance: Instance | None,
        results: Mapping[Result, int],
        *,
        busy_seconds: Callable[[], float | None],
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._store = store
        self._results = results
        self._busy_seconds = busy_seconds
        self._now = now
        self._id = uuid.uuid4().hex
        self._started = now()
        self._host = _host(instance, self._started)
        self._busy = 0.0
        self._busy_seen = busy_seconds() or 0.0  # a server that is not there yet begins at nought
        self._lock = threading.Lock()
        self._saves = Pulse(self.save, seconds=SAVE_SECONDS)
        self._finished = False
        self._chunks = 0
        self._audio_seconds = 0.0
        self._touched: set[Session] = set()
        self._completed: set[Session] = set()
        self._failures: Counter[tuple[str, str]] = Counter()
        self._failed_keys: dict[tuple[str, str], list[str]] = {}
        self._slowest: list[SlowJob] = []
        self._first: datetime | None = None
        self._last: datetime | None = None

    def __enter__(self) -> "Recorder":
        self._saves.__enter__()
        return self

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._finished = True
        self._saves.__exit__()

    def ended(self, jobs: Sequence[Job], outcomes: Mapping[str, Ending], seconds: float) -> None:
        """One request to the server is over. `outcomes`: by job id, of those jobs that got one by it."""
        now = self._now()
        done = [job for job in jobs if job.job_id in outcomes]
        if not done:
            return
        with self._lock:
            if self._finished:  # a job that nobody waited for
                return
            self._first = min(self._first or now, now - timedelta(seconds=seconds))
            self._last = now
            self._touched.update(session for job in done if (session := session_of(job.audio)))
            slow = SlowJob(key=done[0].key, chunks=len(done), seconds=round(seconds, 3))
            self._slowest = nlargest(SLOWEST, [*self._slowest, slow], key=lambda job: job.seconds)
            for job in done:
                self._count(job, outcomes[job.job_id])

    def _count(self, job: Job, ending: Ending) -> None:
        if isinstance(ending, Transcript):
            self._chunks += 1
            self._audio_seconds += ending.duration
            return
        kind = (ending.type, ending.message)
        self._failures[kind] += 1
        keys = self._failed_keys.setdefault(kind, [])
        if len(keys) < KEYS:
            keys.append(job.key)

    def completed(self, session: Session) -> None:
        """All chunks of the session have their outcome. It is this run's if one of them is."""
        with self._lock:
            if session in self._touched:
                self._completed.add(session)

    def save(self) -> None:
        """Write what there is to tell so far. A report that cannot be written is nobody's loss but the reader's."""
        try:
            write(self._store, self.run())
        except (TransientError, ValidationError) as error:
            logger.warning("the report was not written", extra={"reason": str(error)})

    def run(self) -> Run:
        """The run as it is now."""
        busy = self._busy_seconds()
        with self._lock:
            self._note_busy(busy)
            first, last = self._first, self._last
            up_since = self._host.up_since if self._host else None
            return Run(
                id=self._id,
                started=self._started,
                ended=self._now(),
                finished=self._finished,
                instance=self._host,
                results={result.value: count for result, count in dict(self._results).items()},
                chunks=self._chunks,
                sessions=len(self._completed),
                audio_seconds=round(self._audio_seconds, 3),
                working_seconds=round((last - first).total_seconds(), 3) if first and last else 0.0,
                busy_seconds=round(self._busy, 3),
                boot_seconds=round((first - up_since).total_seconds(), 3) if first and up_since else None,
                failures=tuple(
                    Failures(type=type, message=message, count=count, keys=tuple(self._failed_keys[type, message]))
                    for (type, message), count in self._failures.most_common()
                ),
                slowest=tuple(self._slowest),
            )

    def _note_busy(self, busy: float | None) -> None:
        """Add what is new; a server that was started again counts from nought."""
        if busy is not None:
            self._busy += busy - self._busy_seen if busy >= self._busy_seen else busy
            self._busy_seen = busy


def _host(instance: Instance | None, now: datetime) -> Host | None:
    if instance is None:
        return None
    up_for = float(UPTIME.read_text().split()[0])  # the host's, in a container too
    return Host(id=instance.id, type=instance.type, market=instance.market, up_since=now - timedelta(seconds=up_for))
