"""One schedule from beginning to end: uploads, router, server, workers, and a last batch when the faults are over."""

import json
from collections import Counter
from collections.abc import Callable
from functools import partial
from random import Random
from typing import Any

from batch_worker.batch import Batch
from batch_worker.drain import Drain
from batch_worker.lease import Leases
from batch_worker.letters import Letters
from batch_worker.work import Worker
from router_lambda import handler as lambda_function
from router_lambda.decide import Policy
from router_lambda.route import Router
from shared.combine import Combiner, SessionTranscribed
from shared.errors import RouterError, TransientError
from tests.faults.simulation import stage
from tests.faults.simulation.ending import Ending
from tests.faults.simulation.faults import NO_START, Faults
from tests.faults.simulation.plan import Plan, Upload
from tests.faults.simulation.ports import BUCKET, SimQueue, SimStore
from tests.faults.simulation.scheduler import Crash, Process, Scheduler
from tests.faults.simulation.server import ServerWorld, SimClient

STEPS = 40_000  # a schedule that takes more is stuck
LAMBDA_SECONDS = 120.0
RETRY_SECONDS = (60.0, 120.0)  # https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-error-handling.html
VISIBILITY, HEARTBEAT = 120, 30.0
MAX_RUNS = 3  # batch runs after the last fault, a day apart, until nothing is left


class Environment:
    """One Lambda environment: a process that handles one event at a time and remembers some things between them."""

    def __init__(self, world: "World") -> None:
        self.process = Process("lambda")
        plan = world.plan
        self.router = Router(
            store=world.store,
            queue=world.jobs,
            combiner=Combiner(world.store, world.publish),
            discover=lambda: ("http://server",),
            connect=lambda _: world.client,
            policy=Policy(
                batch_only=plan.batch_only, long_above=-1 if plan.long else 5_000_000, restitch=plan.restitch
            ),
            clock=stage.seconds,
            sleep=world.scheduler.sleep,
            now=stage.Clock.now,
        )


class Context:
    def __init__(self, deadline: float) -> None:
        self._deadline = deadline

    def get_remaining_time_in_millis(self) -> float:
        return (self._deadline - stage.seconds()) * 1000


class World:
    """`failure_destination`: whether Lambda keeps the events that it gave up."""

    def __init__(self, plan: Plan, *, failure_destination: bool = True) -> None:
        self.plan = plan
        self.failure_destination = failure_destination
        self.random = Random(plan.seed ^ 0x5EED)
        self.scheduler = Scheduler(self.random, change_gap=plan.change_gap, limit=STEPS)
        on_stage = stage.enter(self.scheduler, self.random, sweeps=plan.sweeps)
        self.faults = Faults(self.scheduler, self.random)
        self.store = SimStore(self.scheduler, self.faults, on_stage.files)
        self.dead_letters = SimQueue("dlq", self.scheduler, self.faults)
        self.jobs = SimQueue("jobs", self.scheduler, self.faults, dead_letters=self.dead_letters)
        self.failures = SimQueue("failures", self.scheduler, self.faults)
        self.queues = (self.jobs, self.dead_letters, self.failures)
        self.pending: Counter[tuple[str, str]] = Counter()  # audio versions whose events Lambda still has
        self.oracle = Ending(plan, self.store, self.queues, self.pending)
        self.server = ServerWorld(
            stage=on_stage,
            scheduler=self.scheduler,
            faults=self.faults,
            store=self.store,
            heard=self.oracle.heard,
            failed=self._failed,
            new_combiner=lambda store: Combiner(store, self.publish),
            capacity=plan.capacity,
            restitch=plan.restitch,
            job_seconds=plan.job_seconds,
        )
        self.client: Any = SimClient(self.server)
        self._outside = Process("outside")
        self._idle: list[Environment] = []
        self._worker: Process | None = None
        self._stops: dict[Process, stage.Stop] = {}
        self._invocation: dict[Process, int] = {}

    def run(self) -> list[str]:
        """The violations."""
        try:
            if self.plan.server_up:
                self.server.start()
            else:
                self.scheduler.at(60.0 + 600 * self.random.random(), self.server.start)
            self.faults.strike, self.faults.crash = self._strike, self._crash
            self.faults.arm(self.plan.faults, self.plan.fault_gap)
            self.scheduler.spawn(self._outside, self._produce)
            for start in self.plan.workers:
                self.scheduler.spawn(self._outside, lambda start=start: self._work(start))
            self.scheduler.run()
            self.faults.disarm()
            self._run_batch()
            for _ in range(MAX_RUNS - 1):
                if any(queue.letters for queue in self.queues):
                    self._run_batch()
            if self._troubles and self.plan.restitch and self.oracle.is_session_behind():
                stage.stage.sweeps = True  # no message stands for a stitched pass that was cut short
                self._run_batch()
            if self.scheduler.stuck:
                self.oracle.violate(f"O5: not over after {STEPS} steps")
            else:
                self.oracle.check_end(self._troubles)
        finally:
            self.scheduler.end()
            for coroutine in stage.stage.coroutines:
                coroutine.close()
        return self.oracle.violations + [f"unexpected: {words}" for words in stage.stage.unexpected]

    @property
    def _troubles(self) -> int:
        return sum(self.faults.fired.values()) + self.server.deaths

    def publish(self, event: SessionTranscribed) -> None:
        self.oracle.announced(event)
        fault = self.faults.strikes("publish") if self.scheduler.step() else ""
        if fault == "crash after":
            self._crash()

    def _run_batch(self) -> None:
        """A day later, with nothing in its way."""
        if not self.scheduler.stuck:
            self.server.start()
            self.scheduler.advance(86_400.0)
            self.scheduler.spawn(self._outside, self._work)
            self.scheduler.run()

    def _produce(self) -> None:
        for upload in self.plan.uploads:
            if upload.wait:
                self.scheduler.sleep(upload.wait)
            self.scheduler.step()
            self._upload(upload)

    def _upload(self, upload: Upload) -> None:
        entry = self.store.upload(upload.key, upload.body)
        self.oracle.uploaded(entry)
        event = {
            "source": "aws.s3",
            "detail-type": "Object Created",
            "detail": {
                "bucket": {"name": BUCKET},
                "object": {"key": upload.key, "etag": entry.info.etag, "size": entry.info.size},
            },
        }
        if upload.deleted_after is not None:
            self.scheduler.spawn(self._outside, partial(self._delete, upload.key, upload.deleted_after))
        for number in range(upload.deliveries):
            self.pending[upload.key, entry.info.etag] += 1
            self.scheduler.spawn(self._outside, lambda late=upload.late * (1 - number): self._deliver(event, late))

    def _delete(self, key: str, after: float) -> None:
        self.scheduler.sleep(after)
        self.scheduler.step()
        self.oracle.deleted(self.store.entries[key])
        self.store.delete(key)

    def _deliver(self, event: dict[str, Any], late: float) -> None:
        """Lambda's asynchronous invocation: three tries, then the failure destination."""
        named = event["detail"]["object"]
        version = (named["key"], named["etag"])
        if late:
            self.scheduler.sleep(late)
        for pause in (*RETRY_SECONDS, 0.0):
            if self._is_handled(event):
                self.pending[version] -= 1
                self.oracle.forgotten([version])
                return
            if pause:
                self.scheduler.sleep(pause)
        if self.failure_destination:
            self.oracle.given_up([version])
            self.failures.add(json.dumps({"requestPayload": event}))
        self.pending[version] -= 1

    def _is_handled(self, event: dict[str, Any]) -> bool:
        """One try, in an environment that is there or in a new one."""
        if self.plan.broken and self.random.random() < 0.9:
            self.faults.fired[NO_START] += 1
            return False
        actor = self.scheduler.current
        reuse = self._idle and self.random.random() < 0.7
        environment = self._idle.pop() if reuse else Environment(self)
        actor.process = environment.process
        handled = False
        try:
            self._invoke(event, environment)
            handled = True
        except RouterError:
            pass  # the handler's own: it wants another try
        except Crash:
            if not self._outside.alive:
                raise
            return False
        except Exception as error:  # a finding, whatever it is
            stage.unexpected(error)
        finally:
            actor.process = self._outside
        self._idle.append(environment)
        return handled

    def _invoke(self, event: dict[str, Any], environment: Environment) -> None:
        deadline = self.scheduler.now + LAMBDA_SECONDS
        number = self._invocation[environment.process] = self._invocation.get(environment.process, 0) + 1

        def time_out() -> None:
            if self._invocation[environment.process] == number:
                self.scheduler.kill(environment.process)

        self.scheduler.at(deadline, time_out)
        stage.stage.router = environment.router  # which the handler asks for at once
        try:
            lambda_function.handler(event, Context(deadline))
        finally:
            self._invocation[environment.process] += 1

    def _work(self, start: float = 0.0) -> None:
        """One run of the batch worker, in a process of its own."""
        if start:
            self.scheduler.sleep(start)
        self._worker = Process("worker")
        self.scheduler.spawn(self._worker, self._run_worker)

    def _run_worker(self) -> None:
        stopping = self._stops[self.scheduler.current.process] = stage.Stop(25.0)
        with Leases(visibility=VISIBILITY, interval=HEARTBEAT) as leases:
            worker = Worker(
                store=self.store,
                combiner=Combiner(self.store, self.publish),
                server=self.client,
                job_seconds=1800.0,
                stopping=stopping,
            )
            drain = Drain(
                queue=self.jobs,
                dead_letters=self.dead_letters,
                worker=worker,
                leases=leases,
                stopping=stopping,
                concurrency=self.plan.concurrency,
                visibility=VISIBILITY,
                poll_seconds=20,
                server_wait=300.0,
                group_messages=100,
            )
            batch = Batch(
                drain=drain,
                letters=[Letters(queue, drain, self.dead_letters) for queue in (self.failures, self.dead_letters)],
                store=self.store,
                new_combiner=lambda: Combiner(self.store, self.publish),
                restitch=self.plan.restitch,
            )
            try:
                batch.run()
            except TransientError:  # as the program does: it says so and ends
                pass
            except Exception as error:  # a finding, whatever it is
                stage.unexpected(error)

    def _crash(self) -> None:
        """The process of whoever makes the call under way dies."""
        process = self.scheduler.current.process
        if process is self.server.process:
            self.server.die()
        else:
            self.scheduler.kill(process)
        raise Crash

    def _strike(self, kind: str) -> bool:
        strokes: dict[str, Callable[[], object]] = {
            "the server dies": self.server.die,
            "the server is away for long": lambda: self.server.die(60 + 1000 * self.random.random()),
            "spot kill": self._kill_machine,
            "SIGTERM": self._terminate,
            "the clock jumps": lambda: self.scheduler.advance(self.random.choice((1.0, 15.0, 70.0, 1000.0))),
            "leases expire": self._expire,
        }
        busy = self._worker is not None and self._worker.alive
        if kind in ("spot kill", "SIGTERM") and not busy:
            return False
        strokes[kind]()
        return True

    def _kill_machine(self) -> None:
        """Server and worker share one."""
        if self._worker:
            self.scheduler.kill(self._worker)
        self.server.die()

    def _terminate(self) -> None:
        """The worker is told to stop; of the machines that end some are the server's too."""
        if self._worker in self._stops:
            self._stops[self._worker].set()
        if self.random.random() < 0.5:
            self.scheduler.at(self.scheduler.now + 25 * self.random.random(), self.server.die)

    def _failed(self, version: tuple[str, str]) -> None:
        """Somebody who is not about to end himself saw the server fail at it."""
        stop = self._stops.get(self.scheduler.current.process)
        if stop is None or not stop.is_set():
            self.oracle.struck(version)

    def _expire(self) -> None:
        for queue in self.queues:
            for letter in queue.letters.values():
                if letter.receives:
                    letter.visible_at = self.scheduler.now
