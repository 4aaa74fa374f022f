"""Acts on the decisions: asks S3, asks a server, falls back to the queue, completes the session."""

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, tzinfo
from typing import Any

from tenacity import RetryCallState, Retrying, retry_if_result

from router_lambda.breaker import CircuitBreaker
from router_lambda.decide import (
    ANSWER_SECONDS,
    CONNECT_SECONDS,
    QUEUE_RESERVE_SECONDS,
    RESTITCH_SECONDS,
    Decision,
    Enqueue,
    Policy,
    Post,
    Refuse,
    Retry,
    Settled,
    Skip,
    after_answer,
    may_post,
    triage,
    wants_stitching,
)
from router_lambda.discovery import Discover
from shared.combine import Combiner
from shared.errors import BadEvent, PermanentError, RefusedKey, SourceMissing, TransientError
from shared.events import NotAnUpload, parse_upload
from shared.jobs import Job, Reason
from shared.keys import IgnoredKey, ManifestKey, Session, parse_key, session_of
from shared.outcomes import record_failure, record_refusal, standing
from shared.queues import MAX_DELAY_SECONDS, Queue
from shared.server import Answer, Limits, Said, ServerClient
from shared.store import Store

ROUTE = "direct"


@dataclass(frozen=True)
class Decided:
    """One event's decision, as it is logged and returned."""

    decision: Decision
    reason: str = ""
    key: str = ""
    job_id: str = ""
    attempts: int = 0
    session: str = ""
    queued: Reason | None = None
    unauthorized: bool = False
    restitch: str = ""


@dataclass
class Router:
    """Everything the router acts through. `clock` in seconds, monotonic; `sleep` waits that long."""

    store: Store
    queue: Queue
    combiner: Combiner
    discover: Discover
    connect: Callable[[str], ServerClient]
    policy: Policy = field(default_factory=Policy)
    timezone: tzinfo = UTC
    health_seconds: float = 2.0
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    now: Callable[[tzinfo], datetime] = datetime.now
    breaker: CircuitBreaker = field(init=False)

    def __post_init__(self) -> None:
        self.breaker = CircuitBreaker(self.clock)

    def handle(self, event: Any, *, remaining: Callable[[], float]) -> Decided:
        """Decide and act on one event.

        Args:
            remaining: seconds left to this invocation.

        Raises:
            BadEvent, SourceMissing, TransientError: not handled; Lambda is to retry it and then to keep it.
        """
        upload = parse_upload(event)
        if isinstance(upload, NotAnUpload):
            return Decided(Decision.IGNORED, upload.reason)
        if upload.bucket != self.store.bucket:
            raise BadEvent(f"an upload to {upload.bucket}, but this router serves {self.store.bucket} alone")
        try:
            parsed = parse_key(upload.key)
        except RefusedKey as error:
            record_refusal(self.store, upload.key, upload.etag or "", error)
            return Decided(Decision.FAILED, error.message, upload.key)
        if isinstance(parsed, IgnoredKey):
            return Decided(Decision.IGNORED, parsed.reason, upload.key)
        if isinstance(parsed, ManifestKey):
            return self._manifest(parsed.session, remaining)
        job = upload.job(self.store)
        if job is None:
            raise SourceMissing(f"there is no object {upload.key} in {upload.bucket}")
        return self._audio(job, session_of(parsed), upload.force_batch, remaining)

    def _manifest(self, session: Session, remaining: Callable[[], float]) -> Decided:
        combined = self.combiner.combine(session)
        checked = Decided(Decision.CHECKED, combined.status, session.manifest_key, session=session.id)
        if not wants_stitching(combined, policy=self.policy, now=self.now(self.timezone)):
            return checked
        return replace(checked, restitch=self._restitch(session, remaining))

    def _restitch(self, session: Session, remaining: Callable[[], float]) -> str:
        """Ask a server to hear a complete session once more, whole; what came of it, for the log.

        The session stands as it is, and the batch asks too: so nothing here is an error, or worth a retry.
        """
        if remaining() < self.health_seconds + RESTITCH_SECONDS + QUEUE_RESERVE_SECONDS:
            return "no time left"
        try:
            servers, why = self._ready_servers()
        except Exception as error:  # whatever it is: the event is done
            return f"not asked: {type(error).__name__}"
        if not servers:
            return why
        limits = Limits(CONNECT_SECONDS, RESTITCH_SECONDS)
        answer = servers[0].transcribe_session(session.path_in(self.store.bucket), limits, route=ROUTE, wait=False)
        return answer.said if answer.said is Said.ACCEPTED else f"{answer.said}: {answer.message}"

    def _audio(self, job: Job, session: Session | None, force_batch: bool, remaining: Callable[[], float]) -> Decided:
        try:
            decided = self._transcribe(job, force_batch, remaining)
            if session and decided.decision in (Decision.SKIPPED, Decision.DIRECT, Decision.FAILED):
                if remaining() < 2 * QUEUE_RESERVE_SECONDS:
                    raise TransientError("no time left to complete the session")
                self.combiner.combine(session)
        except TransientError as error:
            # Whatever is not finished is the worker's: it finds the job done, or does it, and completes the session.
            decided = self._enqueue(job, Reason.FAILED, str(error))
        return replace(decided, key=job.key, job_id=job.job_id, session=session.id if session else "")

    def _transcribe(self, job: Job, force_batch: bool, remaining: Callable[[], float]) -> Decided:
        step = triage(
            job,
            standing=standing(self.store, job),
            force_batch=force_batch,
            policy=self.policy,
            now=self.now(self.timezone),
        )
        match step:
            case Skip(standing=how):
                return Decided(Decision.SKIPPED, how)
            case Refuse(type=type, message=message):
                record_failure(self.store, job, PermanentError(message, type=type))
                return Decided(Decision.FAILED, f"{type}: {message}")
            case Enqueue(reason=reason, why=why):
                return self._enqueue(job, reason, why)
            case Post():
                return self._post(job, step, remaining)

    def _post(self, job: Job, post: Post, remaining: Callable[[], float]) -> Decided:
        servers, why = self._ready_servers()
        if not servers:
            return self._enqueue(job, Reason.UNHEALTHY, why)
        if not may_post(remaining()):
            return self._enqueue(job, Reason.FAILED, "no time for a try")
        if not post.wait:
            # Long audio outlives this Lambda. The delayed copy finds the transcript, or does the work.
            self.queue.send(job, Reason.SAFETY_NET, delay=MAX_DELAY_SECONDS)
        attempts = 0

        def attempt() -> tuple[Answer, Settled | Refuse | Enqueue | Retry]:
            nonlocal attempts
            answer = self._ask(servers[attempts % len(servers)], job, wait=post.wait, new=post.new and attempts == 0)
            attempts += 1
            jitter = random.uniform(-1, 1)  # noqa: S311 (spreads load, hides nothing)
            return answer, after_answer(answer, attempt=attempts, remaining=remaining(), jitter=jitter)

        retrying = Retrying(retry=retry_if_result(_is_retry), wait=_wait, sleep=self.sleep)
        answer, step = retrying(attempt)
        unauthorized = answer.said is Said.UNAUTHORIZED
        match step:
            case Settled(decision=decision):
                return Decided(decision, attempts=attempts)
            case Refuse(type=type, message=message):
                record_failure(self.store, job, PermanentError(message, type=type), attempts=attempts)
                return Decided(Decision.FAILED, f"{type}: {message}", attempts=attempts)
            case Enqueue(reason=reason, why=why):
                return replace(self._enqueue(job, reason, why), attempts=attempts, unauthorized=unauthorized)
            case Retry():
                raise AssertionError("tenacity stops at anything but a retry")

    def _enqueue(self, job: Job, reason: Reason, why: str) -> Decided:
        self.queue.send(job, reason)
        return Decided(Decision.QUEUED, why, queued=reason)

    def _ask(self, server: ServerClient, job: Job, *, wait: bool, new: bool) -> Answer:
        """One try. A 200 counts only when S3 has the transcript, or says that the audio is another by now."""
        limits = Limits(CONNECT_SECONDS, ANSWER_SECONDS)
        answer = server.transcribe(job, limits, route=ROUTE, wait=wait, new=new)
        if answer.said is Said.DONE and standing(self.store, job, check_source=True).is_open:
            answer = Answer(Said.FAILED, answer.status, message="the server said 200, but S3 has no transcript")
        if answer.said in (Said.UNTRIED, Said.FAILED):
            self.breaker.failed()
        else:
            self.breaker.reset()
        return answer

    def _ready_servers(self) -> tuple[list[ServerClient], str]:
        """Servers that would take a job now, in random order; or none, and why."""
        urls = list(self.discover())
        if not urls:
            return [], "no server known"
        random.shuffle(urls)
        servers = [self.connect(url) for url in urls]
        limits = Limits(self.health_seconds, self.health_seconds)
        with ThreadPoolExecutor(len(servers)) as pool:  # at once: a dead one must not use up the others' time
            healths = list(pool.map(lambda server: server.health(limits), servers))
        ready = [server for server, health in zip(servers, healths, strict=True) if health.ready]
        if not ready:
            if not any(health.alive for health in healths):
                self.breaker.reset()  # whatever answers here next is another server, or the same one started anew
            return [], f"no server is ready: {', '.join(sorted({health.reason for health in healths}))}"
        if not self.breaker.allows():
            return [], "the server is healthy, but failed several jobs in a row; it gets a pause"
        return ready, ""


def _is_retry(outcome: tuple[Answer, object]) -> bool:
    return isinstance(outcome[1], Retry)


def _wait(state: RetryCallState) -> float:
    assert state.outcome
    return float(state.outcome.result()[1].after)
