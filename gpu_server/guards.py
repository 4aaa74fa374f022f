"""What to think of a text: WhisperX's batched path takes whatever comes; Whisper's own does not, and neither do we.

Thresholds are from the Whisper paper (https://arxiv.org/abs/2212.04356, section 4.5) and its reference decoder.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum, auto

from gpu_server.engines import FULL_FRAMES, Heard, Window, Word

NOT_SPEECH = 0.6  # probability that nobody speaks
UNSURE = -1.0  # mean log probability of a token
UNINTELLIGIBLE = -1.5  # below it the text is made up
TEMPERATURES = (0.2, 0.4, 0.8)
UNHEARD_SECONDS = 2.5  # longer than any silence inside a window


class Verdict(Enum):
    GOOD = auto()
    SILENCE = auto()  # the text is an invention: nobody spoke
    DOUBTFUL = auto()  # try again


def judge(heard: Heard) -> Verdict:
    if heard.no_speech_prob > NOT_SPEECH and heard.avg_logprob < UNSURE:
        return Verdict.SILENCE
    if heard.looping or heard.avg_logprob < UNSURE:
        return Verdict.DOUBTFUL
    return Verdict.GOOD


@dataclass(frozen=True)
class Unheard:
    """A stretch of a window, in seconds from its start, that must hold speech and got no words."""

    start: float
    end: float


def runs_and_holes(heard: Heard, seconds: float) -> Iterator[tuple[Word, ...] | Unheard]:
    """The words of a window of so many seconds, in order, with the holes that are too long to be pauses.

    Whisper without time stamps may take a part of its window for all there is: it stops at the end of an utterance, or
    begins with the second one. A window begins and ends with speech, and has no long silence inside.
    """
    run: list[Word] = []
    now = heard.heard_from
    for word in heard.words:
        if word.start - now > UNHEARD_SECONDS:
            if run:
                yield tuple(run)
            yield Unheard(now, word.start)
            run = []
        run.append(word)
        now = word.end
    if run:
        yield tuple(run)
    if seconds - now > UNHEARD_SECONDS:
        yield Unheard(now, seconds)


def retries(window: Window) -> list[Window]:
    """What to try, in turn, for a window whose text is doubtful: first its full 30 s, then a higher temperature."""
    full = replace(window, frames=FULL_FRAMES)
    again = [] if window.frames == FULL_FRAMES else [full]
    return again + [replace(full, temperature=temperature) for temperature in TEMPERATURES]


def best_of(tries: Sequence[Heard]) -> Heard | None:
    """The likeliest text that does not loop; None when there is none that can be believed."""
    sane = [heard for heard in tries if not heard.looping and heard.avg_logprob >= UNINTELLIGIBLE]
    return max(sane, key=lambda heard: heard.avg_logprob, default=None)
