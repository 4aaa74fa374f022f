"""The session transcript as a pure function of its manifest and its chunks' outcomes.

Nothing here reads a clock or S3: the same inputs give the same bytes, so a session can be rebuilt at any time.
"""

from collections import defaultdict
from dataclasses import dataclass
from itertools import accumulate
from statistics import median

from shared.keys import Session
from shared.transcript import ChunkRef, ErrorRecord, Gap, Segment, SessionRef, Transcript, Word

NOMINAL_CHUNK_SECONDS = 5.0  # of a failed chunk nobody could decode, in a session where none was
ENGINE = "session"


@dataclass(frozen=True)
class ChunkOutcome:
    """How one chunk of a complete session ended. `etag` is its audio's; `outcome_*` name the object read."""

    index: int
    key: str
    etag: str
    outcome_key: str
    outcome_etag: str
    result: Transcript | ErrorRecord


def combine_chunks(session: Session, *, bucket: str, manifest_etag: str, chunks: list[ChunkOutcome]) -> Transcript:
    """Join the outcomes of chunks 1..N, in order, on one time line.

    A chunk starts where the decoded audio before it ends: not at the last word, and not at what a container claims.
    A failed chunk is a gap of its own length if that is known, else of its siblings' usual one.
    """
    nominal = _nominal_duration(chunks)
    durations = [_round(_duration(chunk, nominal)) for chunk in chunks]
    starts = [_round(start) for start in accumulate(durations, initial=0.0)]
    refs, segments, gaps = [], [], []
    for chunk, start, duration in zip(chunks, starts, durations, strict=False):
        transcribed = isinstance(chunk.result, Transcript)
        refs.append(
            ChunkRef(
                index=chunk.index,
                key=chunk.key,
                etag=chunk.etag,
                start=start,
                duration=duration,
                status="transcribed" if transcribed else "failed",
                outcome_key=chunk.outcome_key,
                outcome_etag=chunk.outcome_etag,
            )
        )
        if isinstance(chunk.result, Transcript):
            segments += [_shift(segment, start, duration) for segment in chunk.result.segments]
            gaps += [_gap(start + gap.start, start + gap.end, gap.reason) for gap in chunk.result.gaps]
            if chunk.result.reason and not chunk.result.segments:
                gaps.append(_gap(start, start + duration, chunk.result.reason))
        else:
            gaps.append(_gap(start, start + duration, f"{chunk.result.type}: {chunk.result.message}"))
    transcripts = [chunk.result for chunk in chunks if isinstance(chunk.result, Transcript)]
    return Transcript(
        text=" ".join(part.text for part in transcripts if part.text),
        language=_main_language(transcripts),
        duration=starts[-1],
        segments=tuple(segment.model_copy(update={"id": id}) for id, segment in enumerate(segments)),
        source=SessionRef(
            bucket=bucket, manifest_key=session.manifest_key, manifest_etag=manifest_etag, chunks=tuple(refs)
        ),
        model=_one_of({part.model for part in transcripts}),
        engine=_one_of({part.engine for part in transcripts}),
        alignment=transcripts[0].alignment if transcripts else "none",
        created_at=max(chunk.result.created_at for chunk in chunks),
        gaps=tuple(gaps),
    )


def seconds_by_route(chunks: list[ChunkOutcome]) -> dict[str, float]:
    """Audio seconds by the route their chunk took ("direct", "queue")."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for chunk in chunks:
        if isinstance(chunk.result, Transcript):
            seconds[chunk.result.route or "unknown"] += chunk.result.duration
    return {route: _round(total) for route, total in sorted(seconds.items())}


def _nominal_duration(chunks: list[ChunkOutcome]) -> float:
    """The usual length of a chunk here. The last one is left out when there are others: it is short."""
    known = [chunk.result.duration for chunk in chunks if isinstance(chunk.result, Transcript)]
    return median(known[:-1] or known) if known else NOMINAL_CHUNK_SECONDS


def _duration(chunk: ChunkOutcome, nominal: float) -> float:
    return nominal if chunk.result.duration is None else chunk.result.duration


def _shift(segment: Segment, start: float, duration: float) -> Segment:
    """Move a segment to its place; nothing of a chunk may reach beyond the chunk's own span."""

    def place(seconds: float) -> float:
        return _round(start + min(max(seconds, 0.0), duration))

    words = tuple(
        Word.model_copy(word, update={"start": place(word.start), "end": place(word.end)}) for word in segment.words
    )
    return segment.model_copy(update={"start": place(segment.start), "end": place(segment.end), "words": words})


def _gap(start: float, end: float, reason: str) -> Gap:
    return Gap(start=_round(start), end=_round(end), reason=reason)


def _main_language(transcripts: list[Transcript]) -> str | None:
    """The language most of the spoken seconds are in."""
    seconds: defaultdict[str, float] = defaultdict(float)
    for part in transcripts:
        if part.language and part.text:
            seconds[part.language] += part.duration
    return max(sorted(seconds), key=lambda language: seconds[language], default=None)


def _one_of(names: set[str]) -> str:
    return names.pop() if len(names) == 1 else ", ".join(sorted(names)) or ENGINE


def _round(seconds: float) -> float:
    return round(seconds, 3)
