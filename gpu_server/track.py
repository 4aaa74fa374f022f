"""Decoded audio on one time line, on disk: a file, or the chunks of a session one after the other.

Nothing is held in memory but what is asked for, so three hours cost no more than one window.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from gpu_server.decoding import BYTES_PER_SAMPLE
from gpu_server.engines import SAMPLE_RATE, Audio, Span

COPY_BYTES = 1 << 20


@dataclass(frozen=True)
class Track:
    """Samples in `pcm` (16 kHz mono s16le), cut into `pieces`; no speech goes across a place in `breaks`.

    Both are in samples from the start; `pieces` are in order and without gaps between them.
    """

    pcm: Path
    pieces: tuple[Span, ...]
    breaks: frozenset[int] = frozenset()

    @property
    def samples(self) -> int:
        return self.pieces[-1].end if self.pieces else 0

    @property
    def duration(self) -> float:
        """Seconds."""
        return self.samples / SAMPLE_RATE

    def read(self, span: Span) -> Audio:
        raw = np.fromfile(self.pcm, dtype="<i2", count=len(span), offset=span.start * BYTES_PER_SAMPLE)
        return raw.astype(np.float32) / np.float32(32768)

    def stretches(self) -> Iterator[Span]:
        """The track from break to break."""
        start = 0
        for end in [*sorted(self.breaks), self.samples]:
            if end > start:
                yield Span(start, end)
            start = end


def join(pcm: Path, parts: Sequence[Path], *, breaks: Sequence[int] = ()) -> Track:
    """Write decoded `parts` one after the other to `pcm`. `breaks`: before which parts audio is missing."""
    pieces: list[Span] = []
    with pcm.open("wb") as out:
        for part in parts:
            start = out.tell() // BYTES_PER_SAMPLE
            with part.open("rb") as decoded:
                while block := decoded.read(COPY_BYTES):
                    out.write(block)
            pieces.append(Span(start, out.tell() // BYTES_PER_SAMPLE))
    return Track(pcm, tuple(pieces), frozenset(pieces[part].start for part in breaks))


def whole(pcm: Path) -> Track:
    """A track of one piece that is decoded already."""
    return Track(pcm, (Span(0, pcm.stat().st_size // BYTES_PER_SAMPLE),))
