"""The faults of processes, disks, clocks and the GPU, by kind; each says how often it happened."""

import signal
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

from shared.queues import Queue
from tests.faults.chaos.disk import PAGE, Disk
from tests.faults.chaos.drills import CHUNKS, MEET_SECONDS, Drill, Fault
from tests.faults.chaos.levers import SLOW_SECONDS
from tests.faults.chaos.producer import event
from tests.faults.chaos.programs import Program, children, signal_quietly
from tests.faults.chaos.proxy import UNREACHABLE
from tests.faults.chaos.system import BUCKET
from tests.patience import eventually

FROZEN_SECONDS = 5.0  # longer than a lease
NO_ROOM = "The server's disk has no room"  # what it answers then
IN_DECODER = "decode_here"  # in the server's log, when it was its decoder that had none
JUMPED = "the clock jumped"


def _signalled(program: Callable[[Drill], Program], number: signal.Signals) -> Fault:
    def fault(drill: Drill) -> int:
        return program(drill).kill(number)

    return fault


def _server(drill: Drill) -> Program:
    """With jobs on their way to it."""
    drill.upload()
    drill.moment()
    return drill.system.server


def _worker(drill: Drill) -> Program:
    """With a message in its hands, for which the GPU takes longer than this waits."""
    drill.system.levers.pull("gpu slow", CHUNKS)
    drill.upload(by_queue=True)
    queue = Queue(drill.system.sqs, drill.system.queues.jobs)
    eventually(lambda: queue.backlog().in_flight, "a message in the worker's hands")
    drill.moment(SLOW_SECONDS / 2)
    return drill.system.worker


def _kill_function(drill: Drill) -> int:
    drill.system.levers.pull("gpu slow", CHUNKS)
    drill.upload()
    before = drill.lambdas.killed
    eventually(lambda: drill.lambdas.kill(drill.choice) or drill.lambdas.is_idle(), "a function at work")
    return drill.lambdas.killed - before


def _kill_decoders(drill: Drill) -> int:
    """The children of the server's fork server."""
    killed = 0
    drill.upload()
    while not drill.lambdas.is_idle():
        for child in children(drill.system.server.pid):
            killed += sum(signal_quietly(decoder, signal.SIGKILL) for decoder in children(child))
        time.sleep(drill.choice.uniform(0.1, 0.5))
    return killed


def _frozen(program: Callable[[Drill], Program]) -> Fault:
    def fault(drill: Drill) -> int:
        frozen = program(drill)
        stopped = frozen.kill(signal.SIGSTOP)
        time.sleep(FROZEN_SECONDS)
        frozen.kill(signal.SIGCONT)
        return stopped

    return fault


def _restart_aws(drill: Drill) -> int:
    """Away until somebody missed it."""
    log = drill.system.aws_log
    before = _count(log, UNREACHABLE)

    def missed() -> int:
        return _count(log, UNREACHABLE) - before

    drill.upload()
    drill.moment()
    drill.system.restart_aws(meanwhile=lambda: eventually(missed, "a request that does not reach AWS"))
    return missed()


def _disk_full(drill: Drill) -> int:
    """The server cannot even fetch the audio."""
    before = _count(drill.lambdas.log, NO_ROOM)
    _disk(drill).fill()
    drill.upload()
    drill.system.settle()
    return _count(drill.lambdas.log, NO_ROOM) - before


def _disk_full_for_decoders(drill: Drill) -> int:
    """There is room for a recording as it comes, and none for its samples, whether function or worker asks for them."""
    log = drill.system.server.log
    before = _count(log, IN_DECODER)
    recording = drill.file(1)
    _disk(drill).fill(room=len(recording.body))
    drill.announce(recording)
    met = eventually(lambda: _count(log, IN_DECODER) - before, "a decoder without room", seconds=MEET_SECONDS)
    _disk(drill).heal()
    drill.upload()
    return met


def _disk_full_for_workers_log(drill: Drill) -> int:
    """It ends with a page, whatever there is to say; and the server that is asked has no room either."""
    system = drill.system
    system.worker.stop()
    system.batch()  # says what it did: the log has begun a page
    drill.upload(by_queue=True)
    system.settle()
    _disk(drill).fill()
    with closing(system.new_worker(JOB_TIMEOUT="2")) as worker:
        worker.start()
        eventually(lambda: worker.log.stat().st_size % PAGE == 0, "a log that cannot grow")
        drill.moment()
    system.worker.start()
    return 1


def _disk(drill: Drill) -> Disk:
    assert drill.system.disk
    return drill.system.disk


def _count(log: Path, words: str) -> int:
    return log.read_text().count(words) if log.exists() else 0


def _clock(program: Callable[[Drill], Program]) -> Fault:
    """In a system whose programs have `clock` on their path."""

    def fault(drill: Drill) -> int:
        return _jumps(program(drill).log, lambda: _signalled(program, signal.SIGUSR2)(drill))

    return fault


def _clock_of_functions(drill: Drill) -> int:
    def jump() -> None:
        drill.upload()
        eventually(lambda: drill.lambdas.signal_all(signal.SIGUSR2) or drill.lambdas.is_idle(), "a function at work")

    drill.system.levers.pull("gpu slow", CHUNKS)
    return _jumps(drill.lambdas.log, jump)


def _jumps(log: Path, jump: Callable[[], object]) -> int:
    """How many clocks jumped, as their programs say once they come to it."""
    before = _count(log, JUMPED)
    jump()
    return eventually(lambda: _count(log, JUMPED) - before, "a clock that jumped", seconds=MEET_SECONDS)


def _gpu(kind: str, times: int) -> Fault:
    def fault(drill: Drill) -> int:
        drill.system.levers.pull(kind, times)
        drill.upload()
        drill.system.settle()
        return eventually(lambda: times - drill.system.levers.left(kind), f"somebody who meets {kind}")

    return fault


def _gpu_full_with_a_batch(drill: Drill) -> int:
    """Files share no window, as neighbouring chunks do: while the GPU is slow with one, the others make a batch."""
    kind = "gpu full with a batch"
    drill.system.levers.pull("gpu slow", CHUNKS)
    drill.system.levers.pull(kind)
    for index in range(1, CHUNKS + 1):
        drill.lambdas.invoke(event(BUCKET, drill.file(index)))
    drill.system.settle()
    drill.upload()
    drill.system.settle()
    return 1 - drill.system.levers.left(kind)


PROCESSES: dict[str, Fault] = {
    "kill -9 of the server": _signalled(_server, signal.SIGKILL),
    "kill -9 of the worker": _signalled(_worker, signal.SIGKILL),
    "kill -9 of a function": _kill_function,
    "kill -9 of decoders": _kill_decoders,
    "SIGTERM to the server": _signalled(_server, signal.SIGTERM),
    "SIGTERM to the worker": _signalled(_worker, signal.SIGTERM),
    "server frozen": _frozen(_server),
    "worker frozen beyond its leases": _frozen(_worker),
    "AWS away and back": _restart_aws,
    "GPU full with a batch": _gpu_full_with_a_batch,
    "GPU full": _gpu("gpu full", 4),
    "GPU error": _gpu("gpu error", 2),
    "GPU broken for good": _gpu("gpu broken", 1),
    "GPU slow": _gpu("gpu slow", 3),
}
DISKS: dict[str, Fault] = {
    "disk full": _disk_full,
    "disk full for the decoders": _disk_full_for_decoders,
    "disk full for the worker's log": _disk_full_for_workers_log,
}
CLOCKS: dict[str, Fault] = {
    "clock of the server jumps": _clock(_server),
    "clock of the worker jumps": _clock(_worker),
    "clock of the functions jumps": _clock_of_functions,
}
