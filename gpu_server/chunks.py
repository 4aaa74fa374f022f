"""Gets the audio of chunks and files from S3, decoded; and remembers what was said last in a session."""

import threading
import time
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from gpu_server.decoding import BYTES_PER_SAMPLE, SAMPLE_RATE, Decoded
from gpu_server.metrics import ServerMetrics
from gpu_server.recordings import Recordings
from gpu_server.transcriber import Transcriber
from shared.chunk_writer import fetch
from shared.errors import InputRefused
from shared.jobs import Job
from shared.keys import ChunkKey
from shared.store import Store

REMEMBERED_BYTES = 128 << 20
NOTHING_KNOWN: Mapping[str, str] = MappingProxyType({})


class Chunks:
    """Safe to share between threads.

    context_seconds: how much of the audio before a chunk is heard with it.
    """

    def __init__(self, store: Store, metrics: ServerMetrics, *, context_seconds: float) -> None:
        self._store = store
        self._recordings = Recordings(store)
        self._metrics = metrics
        self._context_bytes = int(context_seconds * SAMPLE_RATE) * BYTES_PER_SAMPLE
        self._heard: OrderedDict[str, bytes] = OrderedDict()  # key of the audio: the end of its samples
        self._lock = threading.Lock()

    def fetch(self, job: Job, folder: Path) -> Path | None:
        """The job's file, in `folder`; None when it is gone, or another version by now."""
        media = folder / "media"
        began = time.monotonic()
        fetched = fetch(self._store, job, media)
        self._metrics.stage_seconds.labels("fetch").inc(time.monotonic() - began)
        if fetched and isinstance(job.audio, ChunkKey):
            self._recordings.learn(job.audio, media, etag=job.etag)
        return media if fetched else None

    def decode(
        self, job: Job, media: Path, transcriber: Transcriber, folder: Path, *, etags: Mapping[str, str] = NOTHING_KNOWN
    ) -> tuple[Decoded, Path]:
        """The fetched file's audio as 16 kHz mono s16le in `folder`; the file itself is gone then.

        etags: of the chunks around it, by key, as far as they are known.

        Raises InputRefused.
        """
        names = job.audio
        if isinstance(names, ChunkKey):
            self._recordings.learn(names, media, etag=job.etag)
            self._recordings.complete(names, media, etags=etags)
        pcm = folder / "pcm"
        decoded = transcriber.decode(media, pcm)
        media.unlink()
        if isinstance(names, ChunkKey):
            self._remember(names.key, pcm)
        return decoded, pcm

    def before(self, names: ChunkKey, transcriber: Transcriber, folder: Path) -> Path | None:
        """The audio before a chunk, as samples in a file in `folder`: as many seconds as are wanted and there."""
        samples = b""
        index = names.index
        while len(samples) < self._context_bytes and index > 1:
            index -= 1
            part = self._end_of(names, index, transcriber, folder)
            if part is None:
                break
            samples = part + samples
        if not samples:
            return None
        pcm = folder / "before"
        pcm.write_bytes(samples[-self._context_bytes :])
        return pcm

    def _end_of(self, names: ChunkKey, index: int, transcriber: Transcriber, folder: Path) -> bytes | None:
        """The last samples of another chunk; what is remembered may be of an older version, which does no harm."""
        for key in names.sibling_keys(index):
            with self._lock:
                if key in self._heard:
                    return self._heard[key]
        for key in names.sibling_keys(index):
            if info := self._store.head(key):
                job = Job(bucket=self._store.bucket, key=key, etag=info.etag)
                try:
                    if media := self.fetch(job, folder):
                        self.decode(job, media, transcriber, folder)
                except InputRefused:
                    return None
                with self._lock:
                    return self._heard.get(key)
        return None

    def _remember(self, key: str, pcm: Path) -> None:
        if not self._context_bytes:
            return
        with pcm.open("rb") as file:
            file.seek(max(0, pcm.stat().st_size - self._context_bytes))
            end = file.read()
        with self._lock:
            self._heard[key] = end
            self._heard.move_to_end(key)
            while len(self._heard) * self._context_bytes > REMEMBERED_BYTES:
                self._heard.popitem(last=False)
