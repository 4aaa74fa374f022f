"""The dead-letter queue and the router's failures in a person's hands: look, send again, give up.

To look is to receive: messages are hidden for a while, given back at the end, and each look counts as a receive, of
which neither queue has a limit. Sending again is a loop of ours and not SQS's StartMessageMoveTask: that moves all or
nothing, and only from a queue that is another queue's dead-letter queue, as the router's failures are not.
https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/API_StartMessageMoveTask.html
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from shared.combine import Combiner
from shared.errors import BadMessage, PermanentError, RefusedKey
from shared.events import Letter, Upload, parse_letter
from shared.jobs import Job, JobMessage
from shared.keys import Session, is_audio, parse_key, session_of
from shared.outcomes import Standing, record_failure, standing
from shared.queues import AUDIO_SECONDS, MAX_RECEIVE, Message, Queue, QueueUnavailable
from shared.store import Store

HOLD_SECONDS = 300  # hidden while all are looked through; what a killed look held comes back by then
GIVEN_UP = "given-up"  # the type of a failure that a person records


@dataclass(frozen=True)
class DeadLetter:
    """One message. `letters`: what it asks for; none if nobody can read it. `why`: the best that is known."""

    message: Message
    letters: tuple[Letter, ...]
    why: str

    @property
    def keys(self) -> tuple[str, ...]:
        return tuple(letter.key for letter in self.letters if isinstance(letter, JobMessage | Upload))


def read(message: Message) -> DeadLetter:
    """Never raises: what nobody can read is a dead letter too."""
    try:
        document = message.document()
        letters = parse_letter(document)
    except BadMessage as error:
        return DeadLetter(message, (), message.attributes.get("reason", error.message))
    return DeadLetter(message, tuple(letters), _why(message, document, letters))


def _why(message: Message, document: dict[str, Any], letters: list[Letter]) -> str:
    """The worker's reason, EventBridge's, the function's last words; of a job without any, why it was queued."""
    # https://docs.aws.amazon.com/eventbridge/latest/userguide/eb-rule-dlq.html
    for name in ("reason", "ERROR_MESSAGE", "ERROR_CODE"):
        if name in message.attributes:
            return message.attributes[name]
    # https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-retain-records.html
    for part, name in (("responsePayload", "errorMessage"), ("requestContext", "condition")):
        if isinstance(document.get(part), dict) and name in document[part]:
            return str(document[part][name])
    return next((f"queued as {letter.reason}" for letter in letters if isinstance(letter, JobMessage)), "not known")


@dataclass(frozen=True)
class Choice:
    """Which letters are meant: those of which all that is given here is true. `id` and `key` may be beginnings."""

    id: str = ""
    key: str = ""
    reason: str = ""

    def __call__(self, letter: DeadLetter) -> bool:
        return (
            letter.message.id.startswith(self.id)
            and (not self.key or any(key.startswith(self.key) for key in letter.keys))
            and self.reason.lower() in letter.why.lower()
        )


@dataclass
class Look:
    """One look through a queue. Iterate it, once; use as a context manager: what was not taken is given back."""

    queue: Queue
    _held: dict[str, Message] = field(default_factory=dict, init=False)
    _seen: set[str] = field(default_factory=set, init=False)

    def __enter__(self) -> "Look":
        return self

    def __exit__(self, *_: object) -> None:
        for message in self._held.values():
            try:
                self.queue.extend(message, 0)
            except QueueUnavailable:  # it comes back by itself
                continue

    def __iter__(self) -> Iterator[DeadLetter]:
        """Every message once, also one that comes again because the look takes long."""
        while messages := self.queue.receive(most=MAX_RECEIVE, wait=1, visibility=HOLD_SECONDS):
            new = [message for message in messages if message.id not in self._seen]
            self._seen.update(message.id for message in messages)
            self._held |= {message.id: replace(message, body="") for message in messages}
            if not new:  # all the way round
                return
            yield from map(read, new)

    def take(self, letter: DeadLetter) -> None:
        """Delete it."""
        self.queue.delete(self._held.pop(letter.message.id))


def redrive(look: Look, jobs: Queue, choice: Choice) -> tuple[int, int]:
    """Send the chosen letters to the jobs queue, each before it is deleted here: how many, and how many were left.

    Left are those that nobody can read, which would only come back.
    """
    sent = left = 0
    for letter in look:
        if choice(letter) and letter.letters:
            kept = {name: value for name, value in letter.message.attributes.items() if name == AUDIO_SECONDS}
            jobs.send_raw(letter.message.body, attributes=kept)
            look.take(letter)
            sent += 1
        elif choice(letter):
            left += 1
    return sent, left


def standings(store: Store, letter: DeadLetter) -> dict[str, Standing]:
    """How the jobs of a letter stand, by key."""
    return {job.key: standing(store, job, check_source=True) for job in _jobs(store, letter)}


def give_up(store: Store, combiner: Combiner, letter: DeadLetter, why: str) -> dict[str, Standing]:
    """Record a failure for each job of the letter that has no outcome, and complete the sessions that waited for it.

    The message itself is not touched. Returns how the jobs stand then. Raises TransientError.
    """
    error = PermanentError(f"given up: {why}", type=GIVEN_UP)
    for job in _jobs(store, letter):
        record_failure(store, job, error, attempts=letter.message.receive_count)
    for session in dict.fromkeys(filter(None, map(_session, letter.keys))):
        combiner.combine(session)
    return standings(store, letter)


def _jobs(store: Store, letter: DeadLetter) -> list[Job]:
    """What the letter wants transcribed of this bucket."""
    jobs: list[Job | None] = []
    for asked in letter.letters:
        if isinstance(asked, JobMessage) and asked.bucket == store.bucket:
            jobs.append(asked.job())
        elif isinstance(asked, Upload) and asked.bucket == store.bucket and is_audio(asked.key):
            jobs.append(asked.job(store))
    return [job for job in jobs if job]


def _session(key: str) -> Session | None:
    try:
        return session_of(parse_key(key))
    except RefusedKey:
        return None
