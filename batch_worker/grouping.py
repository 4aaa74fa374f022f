"""Which messages are worked on together: chunks of one session, which a server hears better than one by one."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from shared.errors import BadMessage
from shared.events import parse_letter
from shared.jobs import Job, JobMessage, Options
from shared.keys import ChunkKey, Session
from shared.queues import Message

SUSPECT_RECEIVES = 3  # what came back twice may be what kills the server: it goes alone. The launcher's look counts too
GROUP_CHUNKS = 120  # in one request: ten minutes of five-second chunks


@dataclass(frozen=True)
class Unit:
    """What takes one place at the server: one message of any kind, or several that each ask for a chunk of a session.

    `jobs`: what the messages of a group ask for, one by one; empty for a single message. `alone`: nothing else runs.
    """

    messages: tuple[Message, ...]
    jobs: tuple[Job, ...] = ()
    alone: bool = False


@dataclass(frozen=True)
class ChunkMessage:
    """A message that asks for one chunk of a session, and nothing else."""

    message: Message
    job: Job
    names: ChunkKey


def units(messages: Sequence[Message], bucket: str) -> list[Unit]:
    """Order the work: groups, then what goes by itself, then suspects.

    A group needs two different chunks with the same options; they come in the session's order.
    """
    groups: defaultdict[tuple[Session, Options], list[ChunkMessage]] = defaultdict(list)
    singles: list[Message] = []
    suspects: list[Message] = []
    for message in messages:
        if message.receive_count >= SUSPECT_RECEIVES:
            suspects.append(message)
        elif chunk := chunk_message(message, bucket):
            groups[chunk.names.session, chunk.job.options].append(chunk)
        else:
            singles.append(message)
    together: list[Unit] = []
    for group in groups.values():
        ordered = sorted(group, key=lambda chunk: chunk.names.index)
        for part in (ordered[start : start + GROUP_CHUNKS] for start in range(0, len(ordered), GROUP_CHUNKS)):
            if len({chunk.job.job_id for chunk in part}) > 1:
                together.append(Unit(tuple(one.message for one in part), tuple(one.job for one in part)))
            else:
                singles += [chunk.message for chunk in part]
    return [
        *together,
        *(Unit((message,)) for message in singles),
        *(Unit((message,), alone=True) for message in suspects),
    ]


def chunk_message(message: Message, bucket: str) -> ChunkMessage | None:
    """None for whatever else it may be, also for what nobody can read: its own turn tells."""
    try:
        letters = parse_letter(message.document())
    except BadMessage:
        return None
    match letters:
        case [JobMessage() as letter] if letter.bucket == bucket:
            job = letter.job()
            return ChunkMessage(message, job, job.audio) if isinstance(job.audio, ChunkKey) else None
    return None
