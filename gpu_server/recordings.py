"""Makes a browser recording's later chunks decodable: with the header of its chunk 1 and the end of the one before."""

import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

from gpu_server.containers import Container, continuation_of, header_of
from gpu_server.decoding import SNIFF_BYTES
from shared.keys import ChunkKey
from shared.store import Store

REMEMBERED = 1024  # chunks
MAX_REMEMBERED_BYTES = 64 << 10  # of one chunk; what it ends in the middle of takes a few kilobytes
MAX_SIBLING_BYTES = 64 << 20  # a chunk of a few seconds is far smaller, with pictures too


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

    def complete(self, names: ChunkKey, audio: Path, *, etag: str) -> None:
        """Rewrite `audio`, the file of the chunk's version `etag`, to one that can be decoded by itself.

        Nothing is done to what can be already, nor when the siblings it needs are not there.
        Without chunk 1 it stays as it is, and the decoder says what is missing. Without the chunk before it, what was
        cut between the two (an MP4 fragment, an Ogg page, or some tens of milliseconds of WebM) is lost.
        """
        with audio.open("rb") as file:
            head = file.read(SNIFF_BYTES)
        container = continuation_of(head) if names.index > 1 else None
        if container is None and (names.index > 1 or audio.stat().st_size > MAX_SIBLING_BYTES):
            return
        body = audio.read_bytes()
        self._remember(names.key, etag, _chunk(names.index, body))
        first = self._sibling(names, 1) if container else None
        if container is None or first is None or first.container is not container:
            return
        before = self._sibling(names, names.index - 1) if container.is_cut(head) else None
        cut = before.cut if before and before.container is container else b""
        audio.write_bytes(container.graft(first.header, cut, body))

    def _sibling(self, names: ChunkKey, index: int) -> Chunk | None:
        """Another chunk of the recording; None when it is not there, or no recording begins or goes on with it."""
        for key in names.sibling_keys(index):
            info = self._store.head(key)
            if info and info.size <= MAX_SIBLING_BYTES:
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


def _chunk(index: int, body: bytes) -> Chunk | None:
    if index == 1:
        found = header_of(body)
        return Chunk(*found, found[0].cut_element(body)) if found else None
    container = continuation_of(body[:SNIFF_BYTES])
    return Chunk(container, b"", container.cut_element(body)) if container else None
