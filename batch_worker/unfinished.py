"""Which audio nobody has finished: S3 alone is asked, page by page, so that a bucket of any size fits into memory."""

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import TypeVar

from pydantic import BaseModel, ValidationError

from shared.errors import RefusedKey
from shared.jobs import Job
from shared.keys import ChunkKey, FileKey, Session, parse_chunk_key, parse_key
from shared.outcomes import standing
from shared.store import ObjectInfo, Store
from shared.transcript import ChunkRef, SessionRef

PAGE_KEYS = 1000  # as S3 lists them
PARALLEL_READS = 16

T = TypeVar("T")


class _Made(BaseModel):
    """Of a session transcript only what it was made from: its words are the most of it by far."""

    source: SessionRef


def pages(items: Iterable[T], key_of: Callable[[T], str], *, size: int = PAGE_KEYS) -> Iterator[list[T]]:
    """Runs of `size` items; longer where that would part a session's chunks, which are looked at together."""
    page: list[T] = []
    last: Session | None = None
    for item in items:
        names = parse_chunk_key(key_of(item))
        session = names.session if names else None
        if len(page) >= size and (session is None or session != last):
            yield page
            page = []
        page.append(item)
        last = session
    if page:
        yield page


def unfinished(store: Store, infos: Sequence[ObjectInfo]) -> list[Job]:
    """The audio among these objects whose current version has no outcome, in their order. Reads only.

    A session costs three requests: two if nothing of it was ever transcribed, more where it was in part. Any other file
    costs one or two. What is no audio, or has a key that is refused, is passed over.
    """
    sessions: defaultdict[Session, list[tuple[ObjectInfo, ChunkKey]]] = defaultdict(list)
    to_read: list[ObjectInfo] = []
    for info in infos:
        try:
            names = parse_key(info.key)
        except RefusedKey:
            continue
        if isinstance(names, ChunkKey):
            sessions[names.session].append((info, names))
        elif isinstance(names, FileKey):
            to_read.append(info)
    found: set[str] = set()
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        for untouched, doubtful in pool.map(lambda item: _sorted_out(store, *item), sessions.items()):
            found.update(untouched)
            to_read += doubtful
        read = pool.map(partial(_is_open, store), to_read)
        found.update(info.key for info, is_open in zip(to_read, read, strict=True) if is_open)
    return [_job(store, info) for info in infos if info.key in found]


def _sorted_out(
    store: Store, session: Session, chunks: Sequence[tuple[ObjectInfo, ChunkKey]]
) -> tuple[list[str], list[ObjectInfo]]:
    """The keys of chunks that have no outcome of whatever version, and the chunks whose outcome has to be read.

    Those that the session's transcript was made from, by this very audio and outcome, are neither.
    """
    outputs = {info.key: info.etag for info in store.list(session.transcript_prefix)}
    used = _used(store, session) if outputs else {}
    untouched, doubtful = [], []
    for info, names in chunks:
        if names.output_key not in outputs and names.error_key not in outputs:
            untouched.append(info.key)
        elif not _is_settled(info, used.get(info.key), outputs):
            doubtful.append(info)
    return untouched, doubtful


def _used(store: Store, session: Session) -> dict[str, ChunkRef]:
    """The chunks that the session's transcript was made from, by key; none if there is no transcript to read."""
    stored = store.get(session.output_key)
    if stored is None:
        return {}
    try:
        return {chunk.key: chunk for chunk in _Made.model_validate_json(stored.body).source.chunks}
    except ValidationError:
        return {}


def _is_settled(info: ObjectInfo, used: ChunkRef | None, outputs: dict[str, str]) -> bool:
    """A failure may fall (`record_stands`), so that one is read."""
    return (
        used is not None
        and used.status == "transcribed"
        and used.etag == info.etag
        and outputs.get(used.outcome_key) == used.outcome_etag
    )


def _is_open(store: Store, info: ObjectInfo) -> bool:
    return standing(store, _job(store, info)).is_open


def _job(store: Store, info: ObjectInfo) -> Job:
    return Job(bucket=store.bucket, key=info.key, etag=info.etag, size=info.size)
