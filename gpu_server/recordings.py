"""Makes a browser recording's later chunks decodable: with the header of its chunk 1, fetched once."""

from functools import lru_cache
from pathlib import Path

from gpu_server.decoding import SNIFF_BYTES
from gpu_server.webm import cut_element, graft, header_of, is_continuation
from shared.keys import ChunkKey
from shared.store import Store

HEADERS = 1024  # recordings whose header is remembered
MAX_SIBLING_BYTES = 64 << 20  # a chunk of a few seconds is far smaller, with pictures too


class Recordings:
    """The recordings in one bucket. Safe to share between threads."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self._header = lru_cache(HEADERS)(self._read_header)

    def complete(self, names: ChunkKey, audio: Path) -> None:
        """Rewrite `audio`, the chunk's file, if it cannot be decoded without its siblings and they are there.

        Without chunk 1 it stays as it is, and the decoder says what is missing. Without the chunk before it, the
        frame that was cut between the two (some tens of milliseconds) is lost.
        """
        with audio.open("rb") as file:
            head = file.read(SNIFF_BYTES)
        if names.index == 1 or not is_continuation(head):
            return
        first = self._sibling(names, 1)
        header = self._header(*first) if first else None
        if header is None:
            return
        before = self._sibling(names, names.index - 1)
        stored = self._store.get(before[0]) if before else None
        audio.write_bytes(graft(header, cut_element(stored.body) if stored else b"", audio.read_bytes()))

    def _sibling(self, names: ChunkKey, index: int) -> tuple[str, str] | None:
        """(key, ETag) of another chunk of the recording."""
        for key in names.sibling_keys(index):
            info = self._store.head(key)
            if info and info.size <= MAX_SIBLING_BYTES:
                return info.key, info.etag
        return None

    def _read_header(self, key: str, etag: str) -> bytes | None:
        stored = self._store.get(key)
        return header_of(stored.body) if stored else None
