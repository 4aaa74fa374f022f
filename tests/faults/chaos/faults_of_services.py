"""The faults of AWS, of servers, and of the way to them, by kind; each says how often it happened."""

from contextlib import closing

from tests.faults.chaos.drills import CHUNKS, MEET_SECONDS, Drill, Fault
from tests.faults.chaos.faults_of_events import bury
from tests.faults.chaos.impostors import IMPOSTORS, Bad, Impostor
from tests.faults.chaos.rules import AWS, DOOR, DOOR_LATE, LETTERS, REWRITES, S3_LATE, SWEEP
from tests.patience import eventually

IN_A_ROW = 5  # more than the SDK's own tries of two requests at a time would take (shared.store, shared.queues)
AT_DOOR = DOOR | DOOR_LATE
AT_WORKERS = (
    "server accepts and never answers",
    "server hangs with the job",
    "server resets",
    "server says 200 and garbage",
    "server says 401",
    "server's health flaps",
)


def _impostor(bad: Bad) -> Fault:
    def fault(drill: Drill) -> int:
        with Impostor(bad) as impostor:
            drill.lambdas = drill.system.new_lambdas(CHUNKS, FAST_API_SERVER_URL=impostor.url)
            try:
                drill.upload()
                eventually(drill.lambdas.is_idle, "all events are handled")
            finally:
                drill.lambdas.close()
        return impostor.struck

    return fault


def _worker_at(bad: Bad) -> Fault:
    """A worker whose server is broken, until it is replaced by one of ours."""

    def fault(drill: Drill) -> int:
        system = drill.system
        system.worker.stop()
        drill.upload(by_queue=True)
        system.settle()
        with Impostor(bad) as impostor:
            brief = {"JOB_TIMEOUT": "2", "SERVER_WAIT": "2", "DRAIN_TIMEOUT": "1"}  # seconds
            with closing(system.new_worker(FAST_API_SERVER_URL=impostor.url, **brief)) as worker:
                worker.start()
                eventually(lambda: impostor.struck, "the worker meets its server")
                drill.moment()
        system.worker.start()
        return impostor.struck

    return fault


def _of_aws(kind: str) -> Fault:
    """The first few requests that fit, one after the other."""

    def fault(drill: Drill) -> int:
        proxy = drill.system.door if kind in AT_DOOR else drill.system.aws
        before = proxy.fired()[kind]
        proxy.set({kind: {**(AWS | S3_LATE | REWRITES | AT_DOOR)[kind], "times": IN_A_ROW}})
        drill.upload()
        drill.system.settle()
        return eventually(lambda: proxy.fired()[kind] - before, f"a request that meets {kind}", seconds=MEET_SECONDS)

    return fault


def _of_sweep(kind: str) -> Fault:
    """No event of the session comes: it is the batch run that finds it, and queues it."""

    def fault(drill: Drill) -> int:
        proxy = drill.system.aws
        before = proxy.fired()[kind]
        for index in range(1, CHUNKS + 1):
            drill.chunk(index)
        drill.system.producer.manifest(drill.session, CHUNKS)
        proxy.set({kind: {**SWEEP[kind], "times": IN_A_ROW}})
        drill.system.batch()
        return proxy.fired()[kind] - before

    return fault


def _of_letters(kind: str) -> Fault:
    """Messages are dead; the batch run does for each what it asks for, and cannot forget it."""

    def fault(drill: Drill) -> int:
        proxy = drill.system.aws
        before = proxy.fired()[kind]
        bury(drill)
        proxy.set({kind: {**LETTERS[kind], "times": IN_A_ROW}})
        drill.system.batch()
        return proxy.fired()[kind] - before

    return fault


SERVERS: dict[str, Fault] = {kind: _impostor(answer) for kind, answer in IMPOSTORS.items()}
WORKERS: dict[str, Fault] = {f"worker's {kind}": _worker_at(IMPOSTORS[kind]) for kind in AT_WORKERS}
OF_AWS: dict[str, Fault] = {kind: _of_aws(kind) for kind in AWS | S3_LATE | REWRITES | AT_DOOR}
OF_AWS |= {kind: _of_sweep(kind) for kind in SWEEP} | {kind: _of_letters(kind) for kind in LETTERS}
