"""What is believed, what is tried again, and what was not heard at all."""

import numpy as np
import pytest

from gpu_server.engines import FULL_FRAMES, Heard, Options, Window, Word
from gpu_server.engines.recognizer import is_looping
from gpu_server.guards import TEMPERATURES, Unheard, Verdict, best_of, judge, retries, runs_and_holes


def heard(text: str = " hello", *, logprob: float = -0.2, no_speech: float = 0.0, looping: bool = False) -> Heard:
    return Heard(
        text=text,
        words=(),
        language="en",
        language_probability=1.0,
        avg_logprob=logprob,
        no_speech_prob=no_speech,
        looping=looping,
    )


@pytest.mark.parametrize(
    ("what", "verdict"),
    [
        (heard(), Verdict.GOOD),
        (heard(no_speech=0.9), Verdict.GOOD),  # sure of its words
        (heard(logprob=-1.2, no_speech=0.9), Verdict.SILENCE),
        (heard(logprob=-1.2), Verdict.DOUBTFUL),
        (heard(looping=True), Verdict.DOUBTFUL),
    ],
)
def test_a_text_is_judged_by_its_probability_and_by_whether_anybody_spoke(what: Heard, verdict: Verdict) -> None:
    assert judge(what) is verdict


def test_a_short_window_is_tried_at_full_length_first_and_then_with_more_daring() -> None:
    short = Window(audio=np.zeros(16_000, dtype=np.float32), options=Options(), frames=1200)
    tries = [(retry.frames, retry.temperature) for retry in retries(short)]
    assert tries == [(FULL_FRAMES, 0.0), *((FULL_FRAMES, temperature) for temperature in TEMPERATURES)]
    full = Window(audio=short.audio, options=Options())
    assert [retry.temperature for retry in retries(full)] == list(TEMPERATURES)


def test_the_likeliest_sane_text_is_the_best_and_nonsense_is_none() -> None:
    assert best_of([heard(" a", logprob=-1.3), heard(" b", logprob=-1.1), heard(" c", looping=True)]).text == " b"  # type: ignore[union-attr]
    assert best_of([heard(looping=True), heard(logprob=-1.9)]) is None


@pytest.mark.parametrize(
    "text",
    [
        " thank you thank you thank you thank you thank you",
        " I'm going to go to the next one. I'm going to go to the next one." * 6,
        " !!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!!",
    ],
)
def test_loops_are_told(text: str) -> None:
    assert is_looping(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " five five",
        " no, no, no",
        " It was the best of times, it was the worst of times, it was the age of wisdom, it was",
        " one zero zero zero one nine oh two one oh zero one eight zero three",
    ],
)
def test_what_people_say_is_no_loop(text: str) -> None:
    assert not is_looping(text)


def words(*times: tuple[float, float]) -> tuple[Word, ...]:
    return tuple(Word(word=f" w{number}", start=a, end=b, score=1.0) for number, (a, b) in enumerate(times))


def parts(seconds: float, *times: tuple[float, float]) -> list[object]:
    one = Heard(
        text="x",
        words=words(*times),
        language="en",
        language_probability=1.0,
        avg_logprob=-0.1,
        no_speech_prob=0.0,
    )
    return [
        part if isinstance(part, Unheard) else [word.word.strip() for word in part]
        for part in runs_and_holes(one, seconds)
    ]


def test_speech_that_got_no_words_is_found_wherever_it_is() -> None:
    assert parts(10, (0, 1), (2, 9)) == [["w0", "w1"]]
    assert parts(10, (6, 7), (7, 9.5)) == [Unheard(0, 6), ["w0", "w1"]]
    assert parts(10, (0, 1), (1, 3)) == [["w0", "w1"], Unheard(3, 10)]
    assert parts(20, (0, 5), (12, 19)) == [["w0"], Unheard(5, 12), ["w1"]]
    assert parts(10) == [Unheard(0, 10)]
    assert parts(2) == []
