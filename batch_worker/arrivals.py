"""How long after its upload a job's transcript came: a queue message knows neither end, so S3 is asked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from shared.errors import BadMessage, TransientError
from shared.events import parse_letter
from shared.jobs import JobMessage, Reason
from shared.keys import session_of
from shared.queues import Message
from shared.store import ObjectInfo, Store
from shared.telemetry import UPLOAD_TO_TRANSCRIPT, Observe

MEANT_FOR_THE_BATCH = frozenset({Reason.FORCED, Reason.DEFERRED, Reason.SWEPT})


@dataclass(frozen=True)
class Arrivals:
    """Only for the metrics: whatever fails here is nobody's loss."""

    store: Store
    observe: Observe
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    def observe_all(self, messages: Sequence[Message]) -> None:
        """`messages`: one, or several that each asked for a chunk of the same session."""
        now = self.now()
        try:
            letters = [letter for message in messages for letter in parse_letter(message.document())]
            jobs = [letter for letter in letters if isinstance(letter, JobMessage)]
            uploads = {info.key: info for info in self._uploads(jobs)}
        except (BadMessage, TransientError):
            return
        for job in jobs:
            upload = uploads.get(job.key)
            if upload and upload.etag == job.etag and job.reason is not Reason.BACKFILL:  # that had waited for years
                route = "batch" if job.reason in MEANT_FOR_THE_BATCH else "queue"
                waited = (now - upload.last_modified).total_seconds()
                self.observe(UPLOAD_TO_TRANSCRIPT, route, value=max(0.0, waited))

    def _uploads(self, jobs: Sequence[JobMessage]) -> list[ObjectInfo]:
        """One request, or two for a session of more than a thousand chunks."""
        if not jobs:
            return []
        session = session_of(jobs[0].job().audio)
        if session and len(jobs) > 1:
            return list(self.store.list(session.audio_prefix))
        info = self.store.head(jobs[0].key)
        return [info] if info else []
