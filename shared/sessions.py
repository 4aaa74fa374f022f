"""The session transcript as a pure function of its manifest and its chunks' outcomes.

Nothing here reads a clock or S3: the same inputs give the same bytes, so a session can be rebuilt at any time.
"""

from collections import defaultdict
from dataclasses import dataclass
from itertools import accumulate
from statistics import median

from shared.keys import Session
from shared.subtitles import PAUSE_SECONDS, SENTENCE_ENDS
from shared.transcript import ChunkRef, ErrorRecord, Gap, Segment, SessionRef, Transcript, Word

NOMINAL_CHUNK_SECONDS = 5.0  # of a failed chunk nobody could decode, in a session where none was
ENGINE = "session"
MAX_CHUNK_SECONDS = 1e7  # what one chunk says of itself must not push the others out of every clock's range
MAX_JOINED_SECONDS = 30.0  # of a segment joined over seams: what one window of Whisper's could have held
LANGUAGES_WITHOUT_SPACES = frozenset({"ja", "lo", "my", "th", "yue", "zh"})
_CLOSING = "\"'”’»)]）」』"


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
    A sentence that was heard whole, by a stitched pass, is one segment again, though its chunks have a part each.
    """
    nominal = _nominal_duration(chunks)
    durations = [_round(_duration(chunk, nominal)) for chunk in chunks]
    starts = [_round(start) for start in accumulate(durations, initial=0.0)]
    refs, gaps = [], []
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
            gaps += [
                _gap(_place(gap.start, start, duration), _place(gap.end, start, duration), gap.reason)
                for gap in chunk.result.gaps
            ]
            if chunk.result.reason and not chunk.result.segments:
                gaps.append(_gap(start, start + duration, chunk.result.reason))
        else:
            gaps.append(_gap(start, start + duration, f"{chunk.result.type}: {chunk.result.message}"))
    text, segments = _speech(chunks, starts, durations)
    transcripts = [chunk.result for chunk in chunks if isinstance(chunk.result, Transcript)]
    return Transcript(
        text=text,
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
    return min(nominal if chunk.result.duration is None else chunk.result.duration, MAX_CHUNK_SECONDS)


def _speech(chunks: list[ChunkOutcome], starts: list[float], durations: list[float]) -> tuple[str, list[Segment]]:
    """What was said, on one time line."""
    text = ""
    segments: list[Segment] = []
    before: Transcript | None = None  # the last one with segments, unless a failed chunk came since
    for chunk, start, duration in zip(chunks, starts, durations, strict=False):
        part = chunk.result
        if not isinstance(part, Transcript):
            before = None
            continue
        placed = [_shift(segment, start, duration) for segment in part.segments]
        space = " " if text and part.text else ""
        if placed and before and _is_seamless(before, part) and _goes_on(segments[-1], placed[0]):
            space = "" if part.language in LANGUAGES_WITHOUT_SPACES else " "
            placed[0] = _joined(segments.pop(), placed[0], space)
        text += space + part.text
        segments += placed
        before = part if placed else before
    return text, segments


def _shift(segment: Segment, start: float, duration: float) -> Segment:
    """Move a segment to its place on the session's time line."""

    def placed(what: Segment | Word) -> dict[str, float]:
        return {"start": _place(what.start, start, duration), "end": _place(what.end, start, duration)}

    words = tuple(Word.model_copy(word, update=placed(word)) for word in segment.words)
    return segment.model_copy(update={**placed(segment), "words": words})


def _place(seconds: float, start: float, duration: float) -> float:
    """Where in the session that is; nothing of a chunk may reach beyond the chunk's own span."""
    return _round(start + min(max(seconds, 0.0), duration))


def _is_seamless(first: Transcript, second: Transcript) -> bool:
    return first.is_stitched and second.is_stitched and first.language == second.language


def _goes_on(first: Segment, second: Segment) -> bool:
    """Whether `second` continues the sentence of `first`, on the other side of a seam."""
    return (
        not first.text.rstrip(_CLOSING).endswith(SENTENCE_ENDS)
        and second.start - first.end <= PAUSE_SECONDS
        and second.end - first.start <= MAX_JOINED_SECONDS
        and first.speaker == second.speaker
    )


def _joined(first: Segment, second: Segment, space: str) -> Segment:
    """One segment of two; it is as sure as the less sure one."""
    logprobs = [part.avg_logprob for part in (first, second) if part.avg_logprob is not None]
    no_speech = [part.no_speech_prob for part in (first, second) if part.no_speech_prob is not None]
    return first.model_copy(
        update={
            "end": second.end,
            "text": first.text + space + second.text,
            "avg_logprob": min(logprobs, default=None),
            "no_speech_prob": max(no_speech, default=None),
            "words": first.words + second.words,
        }
    )


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
