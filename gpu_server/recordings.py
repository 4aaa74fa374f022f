"""Makes a browser recording's later chunks decodable: with the header of its chunk 1 and the end of the one before."""

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from gpu_server.containers import Container, continuation_of, header_of
from gpu_server.decoding import SNIFF_BYTES
from shared.keys import ChunkKey
from shared.store import Store

REMEMBERED = 1024  # chunks
MAX_REMEMBERED_BYTES = 64 << 10  # of one chunk; what it ends in the middle of takes a few kilobytes
MAX_CHUNK_BYTES = 64 << 20  # one of a few seconds is far smaller, with pictures too


@dataclass(frozen=True)
class Chunk:
    """What other chunks need of one: `header` (empty but for chunk 1), and `cut`, what it ends in the middle of."""

    container: Container
    header: bytes
    cut: bytes


class Recordings:
    """The recordings in one bucket. Safe to share between threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._chunks: OrderedDict[tuple[str, str], Chunk] = OrderedDict()  # by key and ETag
        self._lock = threading.Lock()

    def learn(self, names: ChunkKey, audio: Path, *, etag: str) -> None:
        """Remember what other chunks may need of this one; `audio` is the file of its version `etag`."""
        if self._recall(names.key, etag) or (names.index > 1 and not _continues(audio)):
            return
        if audio.stat().st_size <= MAX_CHUNK_BYTES:
            self._remember(names.key, etag, _chunk(names.index, audio.read_bytes()))

    def complete(self, names: ChunkKey, audio: Path, *, etags: Mapping[str, str]) -> None:
        """Rewrite `audio`, the file of the chunk `names`, to one that can be decoded by itself.

        etags: by key, of the chunks whose current version is known: S3 is asked about the others only.

        Nothing is done to what can be already, nor when the siblings it needs are not there.
        Without chunk 1 it stays as it is, and the decoder says what is missing. Without the chunk before it, what was
        cut between the two (an MP4 fragment, an Ogg page, or some tens of milliseconds of WebM) is lost.
        """
        container = _continues(audio) if names.index > 1 else None
        first = self._sibling(names, 1, etags) if container else None
        if container is None or first is None or first.container is not container:
            return
        body = audio.read_bytes()
        before = self._sibling(names, names.index - 1, etags) if container.is_cut(body[:SNIFF_BYTES]) else None
        cut = before.cut if before and before.container is container else b""
        audio.write_bytes(container.graft(first.header, cut, body))

    def _sibling(self, names: ChunkKey, index: int, etags: Mapping[str, str]) -> Chunk | None:
        """Another chunk of the recording; None when it is not there, or no recording begins or goes on with it."""
        for key in names.sibling_keys(index):
            if key in etags and (chunk := self._recall(key, etags[key])):
                return chunk
            info = self._store.head(key)
            if info and info.size <= MAX_CHUNK_BYTES:
                return self._recall(key, info.etag) or self._read(key, index)
        return None

    def _read(self, key: str, index: int) -> Chunk | None:
        stored = self._store.get(key)
        if stored is None:
            return None
        chunk = _chunk(index, stored.body)
        self._remember(key, stored.etag, chunk)
        return chunk

    def _recall(self, key: str, etag: str) -> Chunk | None:
        with self._lock:
            if (key, etag) in self._chunks:
                self._chunks.move_to_end((key, etag))
            return self._chunks.get((key, etag))

    def _remember(self, key: str, etag: str, chunk: Chunk | None) -> None:
        if chunk is None or len(chunk.header) + len(chunk.cut) > MAX_REMEMBERED_BYTES:
            return
        with self._lock:
            self._chunks[key, etag] = chunk
            if len(self._chunks) > REMEMBERED:
                self._chunks.popitem(last=False)


def _continues(audio: Path) -> Container | None:
    """What the file goes on with, when it is a chunk and not a beginning."""
    if audio.stat().st_size > MAX_CHUNK_BYTES:
        return None
    with audio.open("rb") as file:
        return continuation_of(file.read(SNIFF_BYTES))


def _chunk(index: int, body: bytes) -> Chunk | None:
    if index == 1:
        found = header_of(body)
        return Chunk(*found, found[0].cut_element(body)) if found else None
    container = continuation_of(body[:SNIFF_BYTES])
    return Chunk(container, b"", container.cut_element(body)) if container else None
