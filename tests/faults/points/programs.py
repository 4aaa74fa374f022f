"""Our programs, put together as their own entry points do it, with ports of one life each."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from itertools import count
from typing import Protocol

from batch_worker.backlog import Backlog
from batch_worker.batch import Batch
from batch_worker.capacity import Mode, Policy
from batch_worker.drain import HEALTH_LIMITS, Drain, Tally
from batch_worker.group import Group
from batch_worker.instance import Member, membership, this_instance
from batch_worker.launcher import Launcher
from batch_worker.lease import Leases
from batch_worker.letters import Letters
from batch_worker.recorder import Recorder
from batch_worker.stay import Stay
from batch_worker.stopping import Stopping
from batch_worker.work import Worker
from router_lambda.discovery import CACHE_SECONDS, tagged
from router_lambda.route import Router
from router_lambda.server_key import stored
from shared.combine import Combiner, SessionTranscribed
from shared.queues import Queue
from shared.server import ServerClient
from shared.store import Store
from shared.telemetry import unobserved
from tests.faults.points.fleet import KEY_PARAMETER, SERVER_TAG, Clients, Metadata
from tests.faults.points.plan import Life

VISIBILITY = 120  # seconds
POLL = 60  # seconds; longer than SQS allows: nobody waits here, and each poll is a point
IDLE_SECONDS = 120.0  # not less than what may be hidden for a while
TODAY = datetime(2026, 1, 31, tzinfo=UTC)  # of reports, whose keys must not change on the way
POLICY = Policy(
    mode=Mode.SCHEDULED,
    smallest=0,
    largest=0,
    speed=40.0,
    target=3600.0,
    boot=300.0,
    idle=600.0,
    least_jobs=1,
    latest_age=86_400.0,
    on_demand_age=900.0,
    price=1.0,
)


class Ports(Protocol):
    """Ways to what no crash takes away, for one life of an actor.

    `group`: of instances. `clock`: seconds, which pass when a poll brings nothing.
    """

    bucket: str
    group: str
    clock: Callable[[], float]

    def store_for(self, life: Life) -> Store: ...
    def queue_for(self, life: Life, name: str) -> Queue: ...
    def publisher_for(self, life: Life) -> Callable[[SessionTranscribed], None]: ...
    def server_for(self, life: Life) -> ServerClient: ...
    def clients_for(self, life: Life) -> Clients: ...
    def instances(self) -> list[str]: ...


def router(ports: Ports, life: Life) -> Router:
    """It asks EC2 for servers anew with each event."""
    store, clients = ports.store_for(life), ports.clients_for(life)
    clock = count(step=CACHE_SECONDS)
    key = stored(clients.ssm, KEY_PARAMETER)

    def connect(url: str) -> ServerClient:
        key()
        return ports.server_for(life)

    return Router(
        store=store,
        queue=ports.queue_for(life, "jobs"),
        combiner=Combiner(store, ports.publisher_for(life)),
        discover=tagged(clients.ec2, SERVER_TAG, port=8000, clock=lambda: next(clock)),
        connect=connect,
        sleep=lambda seconds: None,
    )


def launcher(ports: Ports, life: Life) -> Launcher:
    clients = ports.clients_for(life)
    jobs, *letters = (ports.queue_for(life, name) for name in ("jobs", "failures", "dlq"))
    return Launcher(
        backlog=Backlog(jobs, letters, clients.cloudwatch),
        group=Group(clients.autoscaling, clients.ec2, ports.group),
        policy=POLICY,
        max_instance_hours=12,
        observe=unobserved,
    )


@contextmanager
def worker(ports: Ports, life: Life, *, recorded: bool = True) -> Iterator[Batch]:
    """All that a worker does is done through its batch. `recorded`: it writes a report, as all but endless ones do."""
    tally = Tally()
    recorder = _recorder(ports, life, tally) if recorded else None
    with Leases(visibility=VISIBILITY, interval=3600) as leases, recorder or nullcontext():
        yield _batch(ports, life, leases, tally, recorder)


def _recorder(ports: Ports, life: Life, tally: Tally) -> Recorder:
    server = ports.server_for(life)

    def busy_seconds() -> float | None:
        work = server.work(HEALTH_LIMITS)
        return work.busy_seconds if work else None

    return Recorder(ports.store_for(life), None, tally.results, busy_seconds=busy_seconds, now=lambda: TODAY)


def _batch(ports: Ports, life: Life, leases: Leases, tally: Tally, recorder: Recorder | None) -> Batch:
    store, publish = ports.store_for(life), ports.publisher_for(life)
    stopping = Stopping(1)
    dead_letters = ports.queue_for(life, "dlq")
    drain = Drain(
        queue=ports.queue_for(life, "jobs"),
        dead_letters=dead_letters,
        worker=Worker(
            store=store,
            combiner=Combiner(store, publish),
            server=ports.server_for(life),
            job_seconds=60,
            stopping=stopping,
            witness=recorder,
        ),
        leases=leases,
        stopping=stopping,
        concurrency=1,
        visibility=VISIBILITY,
        poll_seconds=POLL,
        server_wait=0,
        group_messages=100,
        tally=tally,
    )
    letters = [Letters(ports.queue_for(life, name), drain, dead_letters) for name in ("failures", "dlq")]
    return Batch(drain, letters, store, partial(Combiner, store, publish), restitch=True)


def stay(ports: Ports, life: Life, batch: Batch, instance: str) -> Stay:
    """The worker on an instance of the group."""
    here = this_instance(Metadata(life, instance))  # type: ignore[arg-type]
    member = membership(ports.clients_for(life).autoscaling, here) if here else None
    placed = Placed(member.client, member.id, member.group, life, ports) if member else None
    return Stay(batch, placed, IDLE_SECONDS, clock=ports.clock)


@dataclass(frozen=True)
class Placed(Member):
    """Whoever was not told that the instance ends goes with it nevertheless."""

    life: Life
    ports: Ports

    def end(self) -> bool:
        ended = super().end()
        if not ended and self.id not in self.ports.instances():
            self.life.over = True
        return ended
