"""What one message asks for, done: through the server, believed when S3 says so, with its session completed."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import Any, Protocol

from aws_lambda_powertools import Logger

from shared.combine import Combiner, Status
from shared.errors import DISK_FULL, BadMessage, PermanentError, RefusedKey, TransientError
from shared.events import Letter, NotAnUpload, Upload, Wake, parse_letter
from shared.jobs import Job, JobMessage
from shared.keys import AudioKey, ChunkKey, IgnoredKey, ManifestKey, Session, parse_key, session_of
from shared.outcomes import Found, Standing, find, record_failure, record_refusal, standing
from shared.server import Answer, Limits, Said, ServerClient
from shared.store import Store
from shared.transcript import ErrorRecord, Transcript

ROUTE = "queue"
CONNECT_SECONDS = 2.0
BUSY_WAIT_SECONDS = 2.0  # when the server does not say how long
MAX_BUSY_WAIT_SECONDS = 30.0
DISK_FULL_SECONDS = 120.0  # to wait for room on the server's disk; what is too large for it never gets any
PARALLEL_READS = 16
GAVE_UP = "gave-up"

logger = Logger(service="batch-worker", child=True)


class Result(StrEnum):
    """How a letter ended. All but LATER mean that its message may be deleted."""

    TRANSCRIBED = "transcribed"
    SKIPPED = "skipped"  # it was done, or is another version's by now
    FAILED = "failed"  # recorded in S3
    CHECKED = "checked"  # a session was looked at
    IGNORED = "ignored"
    LATER = "later"  # the queue keeps it


Ending = Transcript | ErrorRecord | PermanentError

_ENDED = {
    Standing.TRANSCRIBED: Result.TRANSCRIBED,
    Standing.FAILED: Result.FAILED,
    Standing.SUPERSEDED: Result.SKIPPED,
    Standing.DUPLICATE: Result.SKIPPED,
}


class Unauthorized(TransientError):
    """The server does not accept our key: nothing will work until a person changes that."""


class Witness(Protocol):
    """Is told what happens, as it happens, by many threads."""

    def ended(self, jobs: Sequence[Job], outcomes: Mapping[str, Ending], seconds: float) -> None:
        """One try of `jobs` is over. `outcomes`: by id, of those that got one by it."""
        ...

    def completed(self, session: Session) -> None:
        """Every chunk of the session has its outcome."""
        ...


@dataclass
class Worker:
    """Everything a job is done through. Safe to call from many threads.

    `stopping`: set when the process is to end; a job that waits for a busy server then gives up its turn.
    """

    store: Store
    combiner: Combiner
    server: ServerClient
    job_seconds: float
    stopping: threading.Event
    witness: Witness | None = None

    def handle(self, document: Any, *, attempts: int, final: bool = False) -> list[Result]:
        """Do what a message's document asks for.

        Args:
            attempts: how often this was tried, this time included.
            final: there will be no further try: the server gets the job alone, and if that fails, it is recorded.

        Raises:
            BadMessage: nobody can read it.
            TransientError: S3, or our key, is the matter.
        """
        return [self._letter(letter, attempts, final) for letter in parse_letter(document)]

    def stitch(self, jobs: Sequence[Job]) -> dict[str, Result]:
        """Have chunks of one session heard together, as far as nobody has finished them.

        Returns how those jobs ended that S3 says are finished now, by id, with their session completed. The others
        are for `handle`, which finds out why.

        Raises:
            TransientError: S3 would not answer.
        """
        jobs = list({job.job_id: job for job in jobs}.values())
        found = self.find_all(self._with_outputs(jobs))
        unfinished = [job for job in jobs if job.job_id not in found or found[job.job_id].standing.is_open]
        results = {job.job_id: Result.SKIPPED for job in jobs if job not in unfinished}
        if len(unfinished) > 1:
            began = time.monotonic()
            self._ask(partial(self.server.transcribe_session, unfinished, self._limits, route=ROUTE))
            found = self.find_all(unfinished)
            results |= {id: _ENDED[one.standing] for id, one in found.items() if one.standing in _ENDED}
            if self.witness:
                outcomes = {id: one.outcome for id, one in found.items() if one.outcome}
                self.witness.ended(unfinished, outcomes, time.monotonic() - began)
        if results:
            self._complete_session(jobs[0].audio)
        logger.info(
            "stitched", extra={"key": jobs[0].key, "chunks": len(unfinished), "results": Counter(results.values())}
        )
        return results

    def _with_outputs(self, jobs: Sequence[Job]) -> list[Job]:
        """Those chunks of one session at whose output keys something lies, of whatever version."""
        session = session_of(jobs[0].audio)
        assert session
        outputs = {info.key for info in self.store.list(session.transcript_prefix)}
        return [job for job in jobs if job.output_key in outputs or job.audio.error_key in outputs]

    def find_all(self, jobs: Sequence[Job]) -> dict[str, Found]:
        """How jobs stand now, by id."""
        with ThreadPoolExecutor(PARALLEL_READS) as pool:
            found = pool.map(lambda job: find(self.store, job, check_source=True), jobs)
            return {job.job_id: one for job, one in zip(jobs, found, strict=True)}

    def restitch(self, session: Session) -> bool:
        """Have a complete session heard once more, whole; True if no chunk of it is left that was heard alone.

        Nothing depends on it: the transcripts of chunks that were heard alone stand. False also when there is no such
        chunk by now: another worker was faster.
        """
        path = session.path_in(self.store.bucket)
        try:
            if self.combiner.combine(session).live == 0:
                return False
            answer = self._ask(partial(self.server.transcribe_session, path, self._limits, route=ROUTE))
            combined = self.combiner.combine(session)
        except TransientError as error:
            logger.warning("a session was not completed", extra={"session": path, "reason": str(error)})
            return False
        done = combined.status is Status.COMPLETE and combined.live == 0
        if not done:
            logger.warning(
                "a session was not stitched", extra={"session": path, "live": combined.live, "reason": answer.message}
            )
        return done

    def _letter(self, letter: Letter, attempts: int, final: bool) -> Result:
        match letter:
            case JobMessage():
                return self._job(letter.job(), attempts, final)
            case Upload():
                return self._upload(letter, attempts, final)
            case NotAnUpload() | Wake():
                return Result.IGNORED

    def _upload(self, upload: Upload, attempts: int, final: bool) -> Result:
        """A raw event that the router could not handle."""
        if upload.bucket != self.store.bucket:
            raise BadMessage(f"an upload to {upload.bucket}, but this worker serves {self.store.bucket} alone")
        try:
            parsed = parse_key(upload.key)
        except RefusedKey as error:
            record_refusal(self.store, upload.key, upload.etag or "", error)
            return Result.FAILED
        if isinstance(parsed, IgnoredKey):
            return Result.IGNORED
        if isinstance(parsed, ManifestKey):
            self.combiner.combine(parsed.session)
            return Result.CHECKED
        job = upload.job(self.store)  # not of what is there now: that has tries of its own
        if job is None:
            logger.warning("nothing to transcribe: the object is gone", extra={"key": upload.key})
            return Result.SKIPPED
        return self._job(job, attempts, final)

    def _job(self, job: Job, attempts: int, final: bool) -> Result:
        if job.bucket != self.store.bucket:
            raise BadMessage(f"a job in {job.bucket}, but this worker serves {self.store.bucket} alone")
        began = time.monotonic()
        result, ending = self._transcribe(job, attempts, final)
        if result is not Result.LATER:
            if self.witness and ending:
                self.witness.ended([job], {job.job_id: ending}, time.monotonic() - began)
            self._complete_session(job.audio)  # before the message may be forgotten
        logger.info("job", extra={"job_id": job.job_id, "key": job.key, "result": result, "attempts": attempts})
        return result

    def _transcribe(self, job: Job, attempts: int, final: bool) -> tuple[Result, Ending | None]:
        before = standing(self.store, job, check_source=True)
        if not before.is_open:
            return Result.SKIPPED, None
        new = before is Standing.NEW
        answer = self._ask(partial(self.server.transcribe, job, self._limits, route=ROUTE, new=new, alone=final))
        if answer.said is Said.UNAUTHORIZED:
            raise Unauthorized(f"the server does not accept our key or bucket (HTTP {answer.status}): check API_KEY")
        if answer.said is Said.REFUSED:
            error = PermanentError(answer.message, type=answer.type)
            record_failure(self.store, job, error, attempts=attempts)
            return Result.FAILED, error
        found = find(self.store, job, check_source=True)
        if not found.standing.is_open:  # S3, not the answer, says so
            return Result.TRANSCRIBED, found.outcome
        if answer.said is Said.DONE:
            answer = Answer(Said.FAILED, message="the server said 200, but S3 has no transcript")
        if final and self._was_tried(answer) and not self._may_still_come(job, answer):
            type = answer.type if answer.said is Said.NOT_YET else GAVE_UP
            error = PermanentError(f"no transcript after {attempts} tries: {answer.message}", type=type)
            record_failure(self.store, job, error, attempts=attempts)
            return Result.FAILED, error
        logger.warning("later", extra={"job_id": job.job_id, "key": job.key, "reason": answer.message})
        return Result.LATER, None

    @property
    def _limits(self) -> Limits:
        return Limits(CONNECT_SECONDS, self.job_seconds)

    def _ask(self, post: Callable[[], Answer]) -> Answer:
        """Post, and wait while the server is busy: busy is not dead, and the queue has no better place."""
        began = time.monotonic()
        while True:
            answer = post()
            patience = min(self.job_seconds, DISK_FULL_SECONDS) if answer.type == DISK_FULL else self.job_seconds
            pause = min(answer.retry_after or BUSY_WAIT_SECONDS, MAX_BUSY_WAIT_SECONDS)
            is_over = time.monotonic() + pause > began + patience
            if answer.said is not Said.BUSY or is_over or self.stopping.wait(pause):
                return answer

    def _was_tried(self, answer: Answer) -> bool:
        """Whether a last try was one: the server took the job, alone, and did not end as we do."""
        taken = answer.said not in (Said.BUSY, Said.UNTRIED) or answer.type == DISK_FULL  # the whole disk was too small
        return taken and not self.stopping.is_set()

    def _may_still_come(self, job: Job, answer: Answer) -> bool:
        """Whether the chunk only waits for its recording's header, and the recording has not ended."""
        names = job.audio
        if answer.said is not Said.NOT_YET or not isinstance(names, ChunkKey):
            return False
        ended = (names.session.manifest_key, *names.sibling_keys(1))
        return all(self.store.head(key) is None for key in ended)

    def _complete_session(self, audio: AudioKey) -> None:
        session = session_of(audio)
        if session and self.combiner.combine(session).status is Status.COMPLETE and self.witness:
            self.witness.completed(session)
