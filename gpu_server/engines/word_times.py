"""From the decoder's alignment to words with times."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from faster_whisper.transcribe import merge_punctuations

from gpu_server.engines import Word

PREPENDED = "\"'“¿([{-"  # punctuation that belongs to the word after it; both are faster-whisper's
APPENDED = "\"'.。,，!！?？:：”)]}、"
APOSTROPHES = ("'", "’")
SENTENCE_ENDS = frozenset(".。!！?？")
MAX_MEDIAN_SECONDS = 0.7  # of a word
LONGEST_WORD_SECONDS = 2.0


def timed(alignment: list[dict[str, Any]]) -> tuple[Word, ...]:
    """faster-whisper's alignment as words. Attention gives pauses to the words around them: those are cut short."""
    lengths = [word["end"] - word["start"] for word in alignment if word["end"] > word["start"]]
    longest = 2 * min(MAX_MEDIAN_SECONDS, float(np.median(lengths))) if lengths else 0.0
    for before, word in pairwise([{"word": "."}, *alignment]):
        too_long = word["end"] - word["start"] > longest
        if too_long and word["word"].strip() in SENTENCE_ENDS:
            word["end"] = word["start"] + longest
        elif too_long and before["word"].strip() in SENTENCE_ENDS:
            word["start"] = word["end"] - longest
        elif word["end"] - word["start"] > LONGEST_WORD_SECONDS:
            word["end"] = word["start"] + longest
    merge_punctuations(alignment, PREPENDED, APPENDED)
    words: list[Word] = []
    for word in alignment:
        text, end = word["word"], float(word["end"])
        if words and text.startswith(APOSTROPHES):  # "o'clock" comes in two
            words[-1] = replace(words[-1], word=words[-1].word + text, end=max(words[-1].end, end))
        elif text:
            words.append(Word(word=text, start=float(word["start"]), end=end, score=float(word["probability"])))
    return tuple(words)
