"""Make an engine's raw segments keep the promises of a transcript: pure functions, no models.

Times are seconds, rounded to the millisecond, inside the audio, and never run backwards.
"""

import dataclasses
import re
from collections.abc import Iterable, Iterator

from gpu_server.engines import Segment, Word

SENTENCE_END = re.compile(r"[.!?…。！？]+[\"'”’)\]]*$")
# "Mr. Brown", "J. F. Kennedy": not ends of sentences.
ABBREVIATION = re.compile(r"^(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Jr|Sr|Prof|Gen|Sen|Rev|No|vs|etc)\.$")


def tidy(segments: Iterable[Segment], *, duration: float) -> tuple[Segment, ...]:
    """Clamp, order and round all times; strip texts; leave out what says nothing."""
    tidied: list[Segment] = []
    now = 0.0
    for segment in segments:
        text = segment.text.strip()
        if not any(character.isalnum() for character in text):
            continue
        words = []
        start = now
        for word in segment.words:
            if not word.word.strip():
                continue
            begin = _between(word.start, now, duration)
            now = _between(word.end, begin, duration)
            score = round(_between(word.score, 0.0, 1.0), 3)
            words.append(Word(word=word.word.strip(), start=begin, end=now, score=score))
        if words:
            start = words[0].start
        else:
            start = _between(segment.start, start, duration)
            now = _between(segment.end, start, duration)
        tidied.append(
            dataclasses.replace(
                segment,
                start=start,
                end=now,
                text=text,
                words=tuple(words),
                avg_logprob=_rounded(segment.avg_logprob),
                no_speech_prob=_rounded(segment.no_speech_prob),
            )
        )
    return tuple(tidied)


def split_sentences(segment: Segment) -> Iterator[Segment]:
    """A window of up to 30 s as its sentences; unsplit where the words do not spell the text."""
    sentences: list[Segment] = []
    words: list[Word] = []
    begin = position = 0
    for word in segment.words:
        spelling = word.word.strip()
        found = segment.text.find(spelling, position)
        if found == -1:
            yield segment
            return
        position = found + len(spelling)
        words.append(word)
        if SENTENCE_END.search(spelling) and not ABBREVIATION.match(spelling):
            sentences.append(_sentence(segment, words, segment.text[begin:position]))
            words, begin = [], position
    if words:
        sentences.append(_sentence(segment, words, segment.text[begin:]))
    yield from sentences or (segment,)


def shift(segment: Segment, seconds: float) -> Segment:
    """`segment`, `seconds` later."""
    return dataclasses.replace(
        segment,
        start=segment.start + seconds,
        end=segment.end + seconds,
        words=tuple(
            dataclasses.replace(word, start=word.start + seconds, end=word.end + seconds) for word in segment.words
        ),
    )


def _sentence(segment: Segment, words: list[Word], text: str) -> Segment:
    return dataclasses.replace(segment, start=words[0].start, end=words[-1].end, text=text, words=tuple(words))


def _between(value: float, low: float, high: float) -> float:
    """Rounded to the millisecond; what is not a number becomes `low`."""
    return round(min(max(low, float(value)), high), 3) if value == value else low


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(float(value), 4)
