"""The bucket, with a memory of what this process wrote there: completing a session need not read that back."""

import threading
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

from shared.store import ObjectInfo, Store, StoredObject

MEMORY_BYTES = 64 << 20  # the transcripts of some 15,000 chunks


class RememberingStore(Store):
    """`Store` on another one. What was written last is remembered longest. Safe to share between threads.

    An ETag names one content of a key for ever, so that what is remembered under both cannot grow old: whether it
    still is what lies there is for the listing to say that showed the ETag.
    """

    def __init__(self, store: Store, *, memory_bytes: int = MEMORY_BYTES) -> None:
        self.bucket = store.bucket
        self._store = store
        self._bodies: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._free_bytes = memory_bytes
        self._lock = threading.Lock()

    def head(self, key: str) -> ObjectInfo | None:
        return self._store.head(key)

    def get(self, key: str) -> StoredObject | None:
        return self._store.get(key)

    def get_version(self, key: str, etag: str) -> bytes:
        body = self._bodies.get((key, etag))
        return self._store.get_version(key, etag) if body is None else body

    def download(self, key: str, target: Path, *, etag: str) -> bool:
        return self._store.download(key, target, etag=etag)

    def put(
        self, key: str, body: bytes, *, content_type: str, if_match: str, metadata: dict[str, str] | None = None
    ) -> str:
        etag = self._store.put(key, body, content_type=content_type, if_match=if_match, metadata=metadata)
        with self._lock:
            self._free_bytes += len(self._bodies.pop((key, etag), b"")) - len(body)
            self._bodies[key, etag] = body
            while self._free_bytes < 0:
                self._free_bytes += len(self._bodies.popitem(last=False)[1])
        return etag

    def list(self, prefix: str, *, after: str = "") -> Iterator[ObjectInfo]:
        return self._store.list(prefix, after=after)
