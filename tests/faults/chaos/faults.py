"""The faults of processes, of the GPU, of events and of messages, by kind; each says how often it happened."""

import json
import signal
import time
from collections.abc import Callable
from pathlib import Path

from shared.keys import ChunkKey, parse_key
from shared.queues import Queue
from tests.faults.chaos.disk import PAGE, Disk
from tests.faults.chaos.drills import CHUNKS, Drill, Fault
from tests.faults.chaos.impostors import IMPOSTORS, Bad, Impostor
from tests.faults.chaos.levers import SLOW_SECONDS
from tests.faults.chaos.producer import event
from tests.faults.chaos.programs import Program, children, eventually, signal_quietly
from tests.faults.chaos.rules import AWS, DOOR, LETTERS, REWRITES, SWEEP
from tests.faults.chaos.system import BUCKET, RECEIVES

FROZEN_SECONDS = 5.0  # longer than a lease
NO_ROOM = "The server's disk has no room"  # what it answers then
IN_DECODER = "decode_here"  # in the server's log, when it was its decoder that had none
IN_A_ROW = 5  # more than the SDK's own tries of two requests at a time would take (shared.store, shared.queues)
MEET_SECONDS = 60.0  # in which some request must
JUMP_SECONDS = 60.0  # in which it must
JUMPED = "the clock jumped"
AT_WORKERS = (
    "server accepts and never answers",
    "server hangs with the job",
    "server resets",
    "server says 200 and garbage",
    "server says 401",
    "server's health flaps",
)
POISON = '{"version": 99}'
NO_AUDIO = b"<html>an error page in the place of a recording</html>"
BAD_MANIFEST = b'{"chunkCount": "three"}'


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
    drill.upload()
    drill.moment()
    drill.system.restart_aws()
    return 1


def _disk_full(drill: Drill) -> int:
    """The server cannot even fetch the audio."""
    before = _count(drill.lambdas.log, NO_ROOM)
    _disk(drill).fill()
    drill.upload()
    drill.system.settle()
    return _count(drill.lambdas.log, NO_ROOM) - before


def _disk_full_for_decoders(drill: Drill) -> int:
    """There is room for a recording as it comes, and none for its samples."""
    before = _count(drill.system.server.log, IN_DECODER)
    recording = drill.file(1)
    _disk(drill).fill(room=len(recording.body))
    drill.announce(recording)
    drill.system.settle()
    _disk(drill).heal()
    drill.upload()
    return _count(drill.system.server.log, IN_DECODER) - before


def _disk_full_for_worker(drill: Drill) -> bool:
    """Its log ends with a page, whatever there is to say; and the server that it asks has no room either."""
    system = drill.system
    system.worker.stop()
    system.batch()  # says what it did: the log has begun a page
    drill.upload(by_queue=True)
    system.settle()
    _disk(drill).fill()
    worker = system.new_worker(JOB_TIMEOUT="2")
    worker.start()
    full = eventually(lambda: worker.log.stat().st_size % PAGE == 0, "a log that cannot grow")
    drill.moment()
    worker.close()
    system.worker.start()
    return full


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
    return eventually(lambda: _count(log, JUMPED) - before, "a clock that jumped", seconds=JUMP_SECONDS)


def _gpu(kind: str, times: int) -> Fault:
    def fault(drill: Drill) -> int:
        drill.system.levers.pull(kind, times)
        drill.upload()
        drill.system.settle()
        return times - drill.system.levers.left(kind)

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
            worker = system.new_worker(FAST_API_SERVER_URL=impostor.url, **brief)
            worker.start()
            eventually(lambda: impostor.struck, "the worker meets its server")
            drill.moment()
            worker.close()
        system.worker.start()
        return impostor.struck

    return fault


def _lost_event(drill: Drill) -> int:
    drill.upload(unannounced=[drill.choice.randint(1, CHUNKS)])
    return 1


def _late_manifest(drill: Drill) -> int:
    drill.upload(manifest=None)
    drill.system.settle()
    drill.announce(drill.system.producer.manifest(drill.session, CHUNKS))
    return 1


def _lost_manifest_event(drill: Drill) -> int:
    drill.upload(manifest=None)
    drill.system.producer.manifest(drill.session, CHUNKS)
    return 1


def _wrong_manifest(drill: Drill) -> int:
    """It says one chunk too many, and then what is true."""
    drill.upload(manifest=CHUNKS + 1)
    drill.moment()
    drill.announce(drill.system.producer.manifest(drill.session, CHUNKS))
    return 1


def _bad_manifest(drill: Drill) -> int:
    """Nobody can tell how many chunks there are, until a better one comes."""
    drill.upload(manifest=None)
    drill.announce(drill.system.producer.raw(drill.session.manifest_key, BAD_MANIFEST))
    drill.system.settle()
    drill.announce(drill.system.producer.manifest(drill.session, CHUNKS))
    return drill.session.error_key in drill.system.found().objects


def _no_audio(drill: Drill) -> int:
    """A chunk more, that nobody can hear: its failure is recorded, and the session has a gap."""
    drill.upload(manifest=CHUNKS + 1)
    key = f"{drill.session.audio_prefix}chunk-{CHUNKS + 1:03}.wav"
    drill.announce(drill.system.producer.raw(key, NO_AUDIO, says=""))
    drill.system.settle()
    drill.system.batch()
    names = parse_key(key)
    assert isinstance(names, ChunkKey)
    return names.error_key in drill.system.found().objects


def _overwritten(drill: Drill) -> int:
    drill.upload()
    drill.moment()
    drill.announce(drill.chunk(drill.choice.randint(1, CHUNKS), version=2))
    return 1


def _events_of_the_past(drill: Drill) -> int:
    """A chunk is recorded anew, and only then the event of the version before comes."""
    index = drill.choice.randint(1, CHUNKS)
    old = drill.chunk(index)
    new = drill.chunk(index, version=2)
    for other in set(range(1, CHUNKS + 1)) - {index}:
        drill.announce(drill.chunk(other))
    drill.announce(drill.system.producer.manifest(drill.session, CHUNKS))
    drill.announce(new)
    drill.moment()
    drill.announce(old)
    return 1


def _poison(drill: Drill) -> int:
    """A message that nobody can read, between others."""
    drill.system.sqs.send_message(QueueUrl=drill.system.queues.jobs, MessageBody=POISON)
    drill.upload()
    return 1


def _dead_letters(drill: Drill) -> int:
    """Messages that somebody received again and again, and never deleted."""
    system = drill.system
    system.worker.stop()
    drill.upload(by_queue=True)
    system.settle()
    dead, jobs = Queue(system.sqs, system.queues.dead), Queue(system.sqs, system.queues.jobs)
    before = dead.backlog().visible
    for _ in range((RECEIVES + 1) * CHUNKS * 2):
        jobs.receive(most=10, wait=0, visibility=0)
    letters = dead.backlog().visible - before
    system.worker.start()
    return letters


def _failed_invocations(drill: Drill) -> int:
    """An event that three tries did not handle is with the failure destination."""
    record = json.dumps({"version": "1.0", "requestPayload": {"events": []}})
    drill.system.sqs.send_message(QueueUrl=drill.system.queues.failures, MessageBody=record)
    lambdas = drill.lambdas
    drill.lambdas = drill.system.new_lambdas(2, SQS_QUEUE_URL=drill.system.queues.jobs + "-gone")
    try:
        drill.upload(by_queue=True)
        eventually(drill.lambdas.is_idle, "all events are handled")
        return drill.lambdas.failures
    finally:
        drill.lambdas.close()
        drill.lambdas = lambdas


def _of_aws(kind: str) -> Fault:
    """The first few requests that fit, one after the other."""

    def fault(drill: Drill) -> int:
        proxy = drill.system.door if kind in DOOR else drill.system.aws
        before = proxy.fired()[kind]
        proxy.set({kind: {**(AWS | REWRITES | DOOR)[kind], "times": IN_A_ROW}})
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
        _dead_letters(drill)
        proxy.set({kind: {**LETTERS[kind], "times": IN_A_ROW}})
        drill.system.batch()
        return proxy.fired()[kind] - before

    return fault


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
    "disk full for the worker": _disk_full_for_worker,
}
CLOCKS: dict[str, Fault] = {
    "clock of the server jumps": _clock(_server),
    "clock of the worker jumps": _clock(_worker),
    "clock of the functions jumps": _clock_of_functions,
}
SERVERS: dict[str, Fault] = {kind: _impostor(answer) for kind, answer in IMPOSTORS.items()}
WORKERS: dict[str, Fault] = {f"worker's {kind}": _worker_at(IMPOSTORS[kind]) for kind in AT_WORKERS}
EVENTS: dict[str, Fault] = {
    "event lost": _lost_event,
    "manifest late": _late_manifest,
    "manifest's event lost": _lost_manifest_event,
    "manifest wrong at first": _wrong_manifest,
    "manifest unreadable at first": _bad_manifest,
    "chunk that is no audio": _no_audio,
    "chunk overwritten": _overwritten,
    "event of an overwritten version late": _events_of_the_past,
    "message that nobody can read": _poison,
    "messages dead": _dead_letters,
    "invocations failed for good": _failed_invocations,
}
OF_AWS: dict[str, Fault] = {kind: _of_aws(kind) for kind in AWS | REWRITES | DOOR}
OF_AWS |= {kind: _of_sweep(kind) for kind in SWEEP} | {kind: _of_letters(kind) for kind in LETTERS}
