"""The stitched pass: chunks of one session are heard together, as if the recording had never been cut.

Every chunk still gets a transcript of its own, by the usual write protocol. It counts as stitched when it was heard
with what comes before and after it; at the open end of a group it counts as live, and a later pass betters it.
"""

import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import Any, TypeGuard

from gpu_server.chunks import Chunks
from gpu_server.decoding import Decoded
from gpu_server.engines import UnknownLanguage, UnsupportedOption
from gpu_server.session_outputs import Outputs, index_of
from gpu_server.track import join
from gpu_server.transcriber import Route, Transcriber
from shared.chunk_writer import Written, write_transcript
from shared.errors import BadManifest, PermanentError, RouterError, TransientError
from shared.jobs import Job, Options
from shared.keys import ChunkKey, Session, parse_chunk_key, parse_key
from shared.manifest import parse_manifest
from shared.outcomes import HEADER_MISSING, precedence, read_failure, record_failure, record_stands, source_of
from shared.store import ObjectInfo, Store
from shared.transcript import Transcript

PARALLEL = 8  # chunks fetched, decoded and written at once
FETCHED_TOGETHER = 16
GROUP = 360  # chunks on one track: half an hour of 5-second ones. Its neighbours are heard too, so no seam shows
FAILED = "failed"
# Not the audio's fault: its header may arrive later, and what a caller asked for is that caller's to change.
UNRECORDED = frozenset({HEADER_MISSING, UnknownLanguage.type, UnsupportedOption.type})


@dataclass(frozen=True)
class Ended:
    """How one chunk's job ended: `Written`, or "failed" with the type and the words of why."""

    job: Job
    status: str
    type: str | None = None
    message: str | None = None


@dataclass(frozen=True)
class _Chunk:
    """A chunk whose audio is at hand, or why it is not. `decoded` and `error` are both None when it is gone."""

    job: Job
    index: int
    decoded: Decoded | None = None
    pcm: Path | None = None
    error: PermanentError | None = None


@dataclass
class SessionPass:
    """Everything a stitched pass is made through. Safe to share between threads."""

    store: Store
    outputs: Outputs
    chunks: Chunks
    transcriber: Transcriber
    workspace: Path
    route: Route
    retry_failed: bool = False

    def run(self, session: Session, jobs: Iterable[Job]) -> list[Ended]:
        """Transcribe what has no stitched transcript yet.

        Raises TransientError, OSError, and InputRefused for bad options, when all else is done.
        """
        ordered = sorted({job.key: job for job in jobs}.values(), key=index_of)
        errors: list[Exception] = []
        ended: dict[str, Ended] = {}
        with ThreadPoolExecutor(PARALLEL, thread_name_prefix="session") as pool:

            def write(made: dict[str, Transcript | PermanentError], some: Sequence[Job]) -> None:
                audio = self._audio(session) if len(some) > 1 else {}
                for one in pool.map(partial(self._try_to_end, made, audio, errors), some):
                    if one:
                        ended[one.job.key] = one

            last = self._last_index(session)
            is_open = partial(self._is_open, last=last)
            open_jobs = [job for job, todo in zip(ordered, pool.map(is_open, ordered), strict=True) if todo]
            language = None  # settled once, by the first group that was asked for it and speaks
            for group in _groups(open_jobs):
                try:
                    made = self._hear(session, group, ordered, pool, language, last)
                except (RouterError, OSError) as error:  # OSError: no room for this group; others may be smaller
                    errors.append(error)
                    continue
                if group[0].options.language is None:
                    language = language or next((one.language for one in made.values() if _speaks(one)), None)
                write(made, [job for job in group if job.key in made])
            if errors:
                raise errors[0]
            write({}, [job for job in ordered if job.key not in ended])
        if errors:
            raise errors[0]
        return [ended[job.key] for job in ordered]

    def _audio(self, session: Session) -> dict[str, ObjectInfo]:
        """What lies at the chunks' keys now, by one listing instead of a look at each; nothing where S3 won't tell."""
        try:
            return {info.key: info for info in self.store.list(session.audio_prefix)}
        except TransientError:
            return {}

    def _try_to_end(
        self,
        made: dict[str, Transcript | PermanentError],
        audio: dict[str, ObjectInfo],
        errors: list[Exception],
        job: Job,
    ) -> Ended | None:
        """One chunk's trouble with S3 is not the others'."""
        try:
            return self._end(job, made.get(job.key), audio.get(job.key))
        except TransientError as error:
            errors.append(error)
            return None

    def _is_open(self, job: Job, last: int | None) -> bool:
        seen = self.outputs.of(job)
        if seen.outcome.transcript and seen.outcome.is_for(job):
            # One beyond the session's end stays at an open end: the next pass would not better it either.
            return not seen.outcome.transcript.is_stitched and _may_be(index_of(job), last)
        return self.retry_failed or not (seen.record and record_stands(self.store, job, seen.record))

    def _hear(
        self,
        session: Session,
        group: Sequence[Job],
        known: Sequence[Job],
        pool: ThreadPoolExecutor,
        language: str | None,
        last: int | None,
    ) -> dict[str, Transcript | PermanentError]:
        """Transcripts of a group, heard with its neighbours, or why there is none.

        `language`: if it is settled; `last`: index of the session's last chunk, if that is known.
        """
        with tempfile.TemporaryDirectory(dir=self.workspace) as folder:
            members = {index_of(job): job for job in [*self._neighbours(group, known, last), *group]}
            got = list(self._get([members[index] for index in sorted(members)], known, Path(folder), pool))
            audible = [chunk for chunk in got if chunk.decoded and chunk.pcm]
            breaks = [place for place in range(1, len(audible)) if audible[place].index != audible[place - 1].index + 1]
            keys = {job.key for job in group}
            wanted = [place for place, chunk in enumerate(audible) if chunk.job.key in keys]
            made: dict[str, Transcript | PermanentError] = {
                chunk.job.key: chunk.error for chunk in got if chunk.error and chunk.job.key in keys
            }
            if not wanted:
                return made
            track = join(Path(folder, "track"), [chunk.pcm for chunk in audible if chunk.pcm], breaks=breaks)
            wishes = group[0].options
            wishes = wishes if wishes.language else wishes.model_copy(update={"language": language})
            recognitions = self.transcriber.listen(track, wishes, wanted=wanted)
            heard = {chunk.index for chunk in got if chunk.decoded or chunk.error}
            around = {near for place in wanted for near in (audible[place].index - 1, audible[place].index + 1)}
            last = last or self._last_index(session)  # the recording may have ended meanwhile
            heard |= {index for index in around - heard if _may_be(index, last) and self._is_gone(group[0], index)}
            for place in wanted:
                chunk = audible[place]
                assert chunk.decoded
                alone = not _has_both_sides(chunk.index, heard, last)
                made[chunk.job.key] = self.transcriber.transcript(
                    chunk.decoded,
                    recognitions[place] if chunk.decoded.samples else None,
                    chunk.job.options,
                    source=source_of(chunk.job),
                    route=self.route,
                    pass_="live" if alone else "stitched",
                )
            return made

    def _neighbours(self, group: Sequence[Job], known: Sequence[Job], last: int | None) -> Iterator[Job]:
        """The chunks just before and after each run of the group: their audio is heard, not written."""
        indices = {index_of(job) for job in group}
        by_index = {index_of(job): job for job in known}
        for index in {near for own in indices for near in (own - 1, own + 1)} - indices:
            if _may_be(index, last) and (job := by_index.get(index) or self._sibling(group[0], index)):
                yield job

    def _sibling(self, job: Job, index: int) -> Job | None:
        names = job.audio
        assert isinstance(names, ChunkKey)
        for key in names.sibling_keys(index):
            if info := self.store.head(key):
                return Job(bucket=job.bucket, key=key, etag=info.etag, options=job.options)
        return None

    def _get(
        self, jobs: Sequence[Job], known: Sequence[Job], folder: Path, pool: ThreadPoolExecutor
    ) -> Iterator[_Chunk]:
        """The chunks' audio. A few are fetched before they are decoded: what one needs of the next is at hand then."""
        decode = partial(self._decode, etags={job.key: job.etag for job in known})
        for start in range(0, len(jobs), FETCHED_TOGETHER):
            some = jobs[start : start + FETCHED_TOGETHER]
            folders = [folder / str(index_of(job)) for job in some]
            fetching = [pool.submit(self._fetch, job, own) for job, own in zip(some, folders, strict=True)]
            begun: list[Future[Any]] = [*fetching]
            try:
                for job, media, own in zip(some, fetching, folders, strict=True):
                    begun.append(pool.submit(decode, job, media.result(), own))
                yield from (future.result() for future in begun[len(some) :])
            finally:  # one may have failed, and the folder goes then: nobody may still write there
                for future in begun:
                    future.cancel()
                wait(begun)

    def _fetch(self, job: Job, folder: Path) -> Path | None:
        folder.mkdir()
        return self.chunks.fetch(job, folder)

    def _decode(self, job: Job, media: Path | None, folder: Path, *, etags: Mapping[str, str]) -> _Chunk:
        if media is None:
            return _Chunk(job, index_of(job))
        try:
            return _Chunk(job, index_of(job), *self.chunks.decode(job, media, self.transcriber, folder, etags=etags))
        except PermanentError as error:
            return _Chunk(job, index_of(job), error=error)

    def _is_gone(self, like: Job, index: int) -> bool:
        """Whether a chunk has its outcome and no audio any more: nobody will ever hear it."""
        names = like.audio
        assert isinstance(names, ChunkKey)
        for key in names.sibling_keys(index):
            other = parse_key(key)
            assert isinstance(other, ChunkKey)
            if self.store.head(other.output_key) or self.store.head(other.error_key):
                return True
        return False

    def _last_index(self, session: Session) -> int | None:
        """The session's last chunk, if that is known already."""
        stored = self.store.get(session.manifest_key)
        try:
            return parse_manifest(stored.body).chunk_count if stored else None
        except BadManifest:
            return None

    def _end(self, job: Job, made: Transcript | PermanentError | None, audio: ObjectInfo | None) -> Ended:
        """Write what was made for one chunk. For nothing the protocol says what stands in S3 already."""
        try:
            if isinstance(made, PermanentError):
                if made.type not in UNRECORDED:
                    record_failure(self.store, job, made)
                return Ended(job, FAILED, made.type, made.message)
            written = write_transcript(
                self.store,
                job,
                lambda: None,
                made=made,
                seen=self.outputs.of(job),
                audio=audio,
                retry_failed=self.retry_failed,
                stitched=made is not None and made.is_stitched,
            )
        except PermanentError as error:  # the audio went away
            record_failure(self.store, job, error)
            return Ended(job, FAILED, error.type, error.message)
        if written is Written.ALREADY_FAILED and (record := read_failure(self.store, job)):
            return Ended(job, written, record.type, record.message)
        return Ended(job, written)


def jobs_in(store: Store, session: Session, options: Options, outputs: Outputs) -> list[Job]:
    """A job for every chunk of the session that is in S3 now, with the wishes it was transcribed with before."""
    newest: dict[int, ObjectInfo] = {}
    for info in store.list(session.audio_prefix):
        names = parse_chunk_key(info.key)
        if names and names.session == session and info.size:
            newest[names.index] = max(info, newest.get(names.index, info), key=precedence)

    def job(info: ObjectInfo) -> Job:
        made = Job(bucket=store.bucket, key=info.key, etag=info.etag, size=info.size, options=options)
        outcome = outputs.of(made).outcome
        wishes = outcome.transcript.options if outcome.transcript and outcome.is_for(made) else None
        return made.model_copy(update={"options": wishes}) if wishes else made

    with ThreadPoolExecutor(PARALLEL) as pool:
        return list(pool.map(job, newest.values()))


def _groups(jobs: Sequence[Job]) -> Iterator[list[Job]]:
    """Jobs that can be heard in one go: with the same wishes, one to an index, not too many."""
    for _, alike in groupby(jobs, key=lambda job: job.options):
        group: list[Job] = []
        for job in alike:
            if len(group) == GROUP or (group and index_of(job) == index_of(group[-1])):
                yield group
                group = []
            group.append(job)
        yield group


def _speaks(made: Transcript | PermanentError) -> TypeGuard[Transcript]:
    return isinstance(made, Transcript) and bool(made.text)


def _may_be(index: int, last: int | None) -> bool:
    """Whether the session can have such a chunk."""
    return index >= 1 and (last is None or index <= last)


def _has_both_sides(index: int, heard: set[int], last: int | None) -> bool:
    return (index == 1 or index - 1 in heard) and (index == last or index + 1 in heard)
