"""The faults of events, uploads and messages, by kind; each says how often it happened."""

import json

from shared.keys import ChunkKey, parse_key
from shared.queues import Queue
from tests.faults.chaos.drills import CHUNKS, Drill, Fault
from tests.faults.chaos.system import RECEIVES
from tests.patience import eventually

POISON = '{"version": 99}'
NO_AUDIO = b"<html>an error page in the place of a recording</html>"
BAD_MANIFEST = b'{"chunkCount": "three"}'


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
    """A message that nobody can read, between others: it is parked with the dead letters."""
    dead = Queue(drill.system.sqs, drill.system.queues.dead)
    before = dead.backlog().visible
    drill.system.sqs.send_message(QueueUrl=drill.system.queues.jobs, MessageBody=POISON)
    drill.upload()
    return eventually(lambda: dead.backlog().visible - before, "a parked message")


def bury(drill: Drill) -> int:
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
    "messages dead": bury,
    "invocations failed for good": _failed_invocations,
}
