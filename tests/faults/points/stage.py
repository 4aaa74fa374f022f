"""A three-chunk session on its way through router, queue, worker and server; what AWS does when one of them fails."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

from botocore.exceptions import BotoCoreError, ClientError

from batch_worker.batch import Batch, Summary
from batch_worker.capacity import Occasion
from router_lambda.route import Router
from shared.errors import RouterError, TransientError
from shared.jobs import Job, JobMessage, Reason
from shared.keys import Session
from shared.transcript import Transcript
from tests.faults.oracle import Found, Upload, outcome, transcribed, violations
from tests.faults.points import programs
from tests.faults.points.plan import Crash, Life, Plan, missed
from tests.faults.points.programs import Ports

CHUNKS = (1, 2, 3)
NUMBERS = {1: 101, 2: 202, 3: 303}  # what is said in each
WORDS = {chunk: str(number) for chunk, number in NUMBERS.items()}  # as `tests.gpu_server.ears.Reader` hears it
LAMBDA_TRIES = 3  # https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-error-handling.html
LAMBDA_SECONDS = 120.0
SLEPT = "did not strike"
MOST_RUNS = 6  # of one program until it ends without a fault: two faults spoil two


class World(Ports, Protocol):
    """What no crash takes away.

    `uploads`: what came into the bucket from outside, in order. `wrong`: what it saw go wrong meanwhile, if it can see.
    """

    uploads: list[Upload]
    wrong: list[str]

    def put(self, key: str, body: bytes) -> str: ...
    def found(self) -> Found: ...
    def let_leases_end(self) -> None: ...
    def audio_of(self, chunk: int) -> bytes: ...
    def send(self, name: str, body: str) -> None: ...
    def finish(self, instance: str) -> None: ...


@dataclass
class Stage:
    """Runs the programs as AWS does. Everything is over when a call returns, but for what lies in S3 and queues."""

    world: World
    plan: Plan
    session: Session = Session("ann", "standup")
    found: list[str] = field(default_factory=list)  # what is wrong
    _router: Router | None = None
    _router_life: Life = field(init=False)

    def key(self, chunk: int) -> str:
        return f"{self.session.audio_prefix}chunk-{chunk}.wav"

    def upload(self, chunk: int) -> dict[str, Any]:
        """S3's event for it."""
        return self._put(self.key(chunk), self.world.audio_of(chunk), WORDS[chunk])

    def declare(self) -> dict[str, Any]:
        return self._put(self.session.manifest_key, json.dumps({"chunkCount": len(CHUNKS)}).encode(), None)

    def wish_for_batch(self, chunk: int) -> dict[str, Any]:
        """An application's event: it says neither ETag nor size."""
        return {"s3_bucket": self.world.bucket, "s3_key": self.key(chunk), "force_batch": True}

    def route(self, event: dict[str, Any]) -> None:
        """An asynchronous invocation: two retries, then the failure destination."""

        def handle() -> None:
            if self._router is None or self._router_life.over:
                self._router_life = Life(self.plan, "router")
                self._router = programs.router(self.world, self._router_life)
            self._router.handle(event, remaining=lambda: LAMBDA_SECONDS)

        if not self._invoked(handle):
            self.fail(event)

    def fail(self, event: dict[str, Any]) -> None:
        """What Lambda sends to the failure destination."""
        self.world.send("failures", json.dumps({"requestPayload": event, "responsePayload": {}}))

    def bury(self, chunk: int) -> None:
        upload = next(upload for upload in self.world.uploads if upload.key == self.key(chunk))
        job = Job(bucket=self.world.bucket, key=upload.key, etag=upload.etag, size=len(upload.body))
        self.world.send("dlq", JobMessage.of(job, Reason.FAILED).to_json())

    def drain(self) -> None:
        """The queue and the letters, until nothing is left; no sweep, which would hide what was lost."""

        def run(batch: Batch) -> None:
            batch.drain.run(until_empty=True)
            for letters in batch.letters:
                letters.run()

        self._work(run, recorded=False)
        self._look("after the queue was drained")

    def batch(self, *, may_sweep: bool = False) -> None:
        """A night's whole run. Unless an event was lost altogether, its sweep has nothing to find."""
        summaries: list[Summary] = []

        def run(batch: Batch) -> None:
            summaries.append(batch.run())

        self._work(run, recorded=True)
        self._look("after the batch run")
        if not summaries[-1].all_done or (any(one.swept for one in summaries) and not may_sweep):
            self.found += [one.text() for one in summaries]
        self.found += [f"{upload.key} was not stitched" for upload in self._live()]

    def _live(self) -> list[Upload]:
        """What was only heard alone, in the end."""
        found = self.world.found()
        results = {upload: outcome(found, upload) for upload in self.world.uploads if upload.says}
        return [one for one, result in results.items() if isinstance(result, Transcript) and not result.is_stitched]

    def nights(self) -> None:
        """The launcher starts instances for what waits, and they end themselves; until a night without a fault."""
        for _ in range(MOST_RUNS):
            fired = len(self.plan.fired)
            self._launch()
            self._stay()
            self.world.let_leases_end()
            if len(self.plan.fired) == fired:
                break
        self._look("after the nights")
        found = self.world.found()
        done, wanted = transcribed(found, self.world.uploads), len(CHUNKS)
        if done < wanted or found.messages:
            self.found.append(f"after the nights: {done} of {wanted} transcribed, {len(found.messages)} messages left")
        self.found += [f"instance {instance} never ended" for instance in self.world.instances()]

    def _launch(self) -> None:
        """The schedule's event, an asynchronous invocation like the router's."""
        self._invoked(lambda: programs.launcher(self.world, Life(self.plan, "launcher")).run(Occasion.WINDOW))

    def _invoked(self, handle: Callable[[], object]) -> bool:
        """Whether one of Lambda's tries of an asynchronous event ended well."""
        for _ in range(LAMBDA_TRIES):
            try:
                handle()
                return True
            except (Crash, RouterError, BotoCoreError, ClientError):
                pass  # killed, or without an answer from AWS: it gets another try
            except Exception as error:
                self.plan.unexpected.append(f"a function failed of {error!r}")
        return False

    def _stay(self) -> None:
        """Whichever instance there is, its supervisor starts the worker again when that fails (user-data.sh).

        A worker that did not know of its group ends well, and the instance by `finish`.
        """
        for _ in range(MOST_RUNS):
            instance = next(iter(self.world.instances()), None)
            if instance is None:
                return
            life = Life(self.plan, "worker")
            try:
                with programs.worker(self.world, life) as batch:
                    programs.stay(self.world, life, batch, instance).run()
                if instance in self.world.instances():
                    self.world.finish(instance)
            except (Crash, TransientError):
                pass
            self.world.let_leases_end()

    def _work(self, run: Callable[[Batch], None], *, recorded: bool) -> None:
        for _ in range(MOST_RUNS):
            fired = len(self.plan.fired)
            ended = False
            try:
                with programs.worker(self.world, Life(self.plan, "worker"), recorded=recorded) as batch:
                    run(batch)
                ended = True
            except (Crash, TransientError):  # killed, or it ended with status 1: its supervisor starts it again
                pass
            if ended and len(self.plan.fired) == fired:
                return
            self.world.let_leases_end()
        self.found.append("the worker never ended")

    def _look(self, when: str) -> None:
        self.found += [f"{when}: {wrong}" for wrong in violations(self.world.found(), self.world.uploads)]

    def _put(self, key: str, body: bytes, says: str | None) -> dict[str, Any]:
        etag = self.world.put(key, body)
        self.world.uploads.append(Upload(key, etag, body, says))
        stored = {"key": key, "etag": etag, "size": len(body)}
        detail = {"bucket": {"name": self.world.bucket}, "object": stored}
        return {"source": "aws.s3", "detail-type": "Object Created", "detail": detail}


def live(stage: Stage) -> None:
    """The manifest comes first, the server has each chunk as it comes, and the last one completes the session."""
    stage.route(stage.declare())
    for chunk in CHUNKS:
        stage.route(stage.upload(chunk))
    stage.drain()
    stage.batch()


def night(stage: Stage) -> None:
    """One chunk goes to the server, two wait for the batch, and the manifest comes last."""
    stage.route(stage.upload(1))
    for chunk in (2, 3):
        stage.upload(chunk)
        stage.route(stage.wish_for_batch(chunk))
    stage.route(stage.declare())
    stage.drain()
    stage.batch()


def letters(stage: Stage) -> None:
    """Of one chunk the router failed three times, one's message died, and one's waits in the queue, by itself."""
    stage.declare()
    events = [stage.upload(chunk) for chunk in CHUNKS]
    stage.fail(events[0])
    stage.bury(2)
    stage.route(stage.wish_for_batch(3))
    stage.drain()
    stage.batch()


def lost(stage: Stage) -> None:
    """No event of any chunk ever came."""
    stage.declare()
    for chunk in CHUNKS:
        stage.upload(chunk)
    stage.batch(may_sweep=True)


def fleet(stage: Stage) -> None:
    """All wait for instances, which start for them, work, and end."""
    stage.declare()
    for chunk in CHUNKS:
        stage.upload(chunk)
        stage.route(stage.wish_for_batch(chunk))
    stage.nights()


SCENES: dict[str, Callable[[Stage], None]] = {scene.__name__: scene for scene in (live, night, letters, lost, fleet)}


@dataclass(frozen=True)
class Run:
    """How one run of a scene went. `found`: what is wrong."""

    scene: str
    plan: Plan
    found: list[str]

    def __str__(self) -> str:
        faults = "; ".join(map(str, self.plan.faults)) or "no fault"
        return f"scene {self.scene}, {faults}: {'; '.join(self.found) or 'all is right'}"


def play(scene: str, world: World, plan: Plan) -> Run:
    """One run. A fault that does not strike is wrong too: its run would show nothing."""
    stage = Stage(world, plan)
    SCENES[scene](stage)
    slept = [f"{SLEPT}: {fault}" for fault in missed(plan)]
    return Run(scene, plan, [*stage.found, *world.wrong, *plan.unexpected, *slept])
