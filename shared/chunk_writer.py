"""The chunk write protocol: from one audio object version to one transcript, whatever else happens meanwhile.

It carries "nothing lost" and "never an older transcript over a newer one" between actors that crash, race and
repeat, with S3's conditional writes as the only lock. The steps, and why none may be left out:

1. Read the output. Done for this input already: stop. (A stitched pass goes on unless a stitched pass has done it.)
2. Get the audio only if it is still that version, and transcribe it.
3. Look at the audio. Gone: a recorded failure. Another ETag: superseded, its own event will come.
4. Write only if the output is still what step 1 saw. Lost, or the answer was: back to 1, S3 says what happened.

The caller then completes the session (`shared.combine`) and only after that forgets the job.
"""

import tempfile
from collections.abc import Callable
from enum import StrEnum
from pathlib import Path

from shared.errors import Contended, SourceMissing, StoreUnavailable
from shared.jobs import Job
from shared.keys import parse_audio_key
from shared.outcomes import (
    JSON,
    ROUNDS,
    Seen,
    duplicate_chunk,
    look,
    newer_rival,
    read_outcome,
    record_failure,
    record_stands,
    rival_keys,
)
from shared.store import Changed, ObjectInfo, PreconditionFailed, Store
from shared.transcript import Transcript

Transcribe = Callable[[Path], Transcript]
Produce = Callable[[], Transcript | None]


class Written(StrEnum):
    """How a job ended."""

    WRITTEN = "written"
    ALREADY_DONE = "already_done"
    ALREADY_FAILED = "already_failed"
    SUPERSEDED = "superseded"
    DUPLICATE = "duplicate"


def write_transcript(
    store: Store,
    job: Job,
    produce: Produce,
    *,
    made: Transcript | None = None,
    seen: Seen | None = None,
    audio: ObjectInfo | None = None,
    retry_failed: bool = False,
    stitched: bool = False,
) -> Written:
    """Run the protocol for one job.

    Args:
        produce: makes the transcript, from this very version of the audio; called until it gives one, so never again
            after. None when the audio changed or went away meanwhile: the next round says which.
        made: the transcript, where it is there already.
        seen: what lay at the job's output keys, if somebody has looked. It may be old: a PUT that finds anything else
            looks again.
        audio: what lies at the job's key, if somebody has looked after it was transcribed; the first round takes
            their word for it.
        retry_failed: transcribe although this input's failure is on record.
        stitched: `produce` gives the better, stitched transcript: a live one is replaced, a stitched one stands.
            A live writer leaves whatever it finds for its input.

    Raises:
        PermanentError: the input is at fault (SourceMissing, or whatever `produce` raised). Not yet recorded.
        TransientError: S3 would not answer, or kept changing (Contended).
    """
    parse_audio_key(job.key)
    seen = seen or look(store, job)
    current, record = seen.outcome, seen.record
    produced = made
    lost: Exception | None = None
    for _ in range(ROUNDS):
        transcribed = current.transcript if current.is_for(job) else None
        if transcribed and (transcribed.is_stitched or not stitched):
            return Written.ALREADY_DONE if produced is made else Written.WRITTEN
        if record and not transcribed and not retry_failed and record_stands(store, job, record):
            return Written.ALREADY_FAILED
        rivals = rival_keys(job, current.transcript, record)
        if produced is None and not rivals:
            produced = produce()
        source, audio = audio or store.head(job.key), None
        if source is None:
            if transcribed:  # nothing is left to hear: the live transcript stands
                return Written.ALREADY_DONE
            raise SourceMissing(f"there is no object {job.key} in {job.bucket}")
        if source.etag != job.etag:
            return Written.SUPERSEDED
        if (rival := newer_rival(store, source, rivals)) is not None:
            record_failure(store, job, duplicate_chunk(rival))
            return Written.DUPLICATE
        if produced is None:
            produced = produce()
            continue
        try:
            store.put(job.output_key, produced.to_json(), content_type=JSON, if_match=current.etag)
            return Written.WRITTEN
        except (PreconditionFailed, StoreUnavailable) as error:
            lost = error  # perhaps only the answer was
        current = read_outcome(store, job)
    raise Contended(f"could not write the transcript of {job.key}: {lost}") from lost


def write_chunk(
    store: Store,
    job: Job,
    transcribe: Transcribe,
    *,
    workspace: Path,
    seen: Seen | None = None,
    retry_failed: bool = False,
) -> Written:
    """Run the protocol for one job that is transcribed by itself, from its own file. Raises as `write_transcript`.

    Args:
        transcribe: from the audio file to its transcript; the only slow part, called at most once.
        workspace: a folder for the audio, which is removed again.
        seen: as in `write_transcript`.
    """

    def produce() -> Transcript | None:
        with tempfile.TemporaryDirectory(dir=workspace) as folder:
            audio = Path(folder, "audio")
            return transcribe(audio) if fetch(store, job, audio) else None

    return write_transcript(store, job, produce, seen=seen, retry_failed=retry_failed)


def fetch(store: Store, job: Job, target: Path) -> bool:
    """Get the job's audio; False when it is gone, or another version by now."""
    try:
        return store.download(job.key, target, etag=job.etag)
    except Changed:
        return False
