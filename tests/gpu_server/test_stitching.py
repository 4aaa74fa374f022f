"""Words find their way back to the chunk that holds their midpoint."""

import itertools

from hypothesis import given
from hypothesis import strategies as st

from gpu_server.engines import SAMPLE_RATE, Segment, Span, Word
from gpu_server.stitching import give_back, with_words


def piece(start: float, end: float) -> Span:
    return Span(round(start * SAMPLE_RATE), round(end * SAMPLE_RATE))


def segment(*words: tuple[str, float, float]) -> Segment:
    made = tuple(Word(word=" " + word, start=start, end=end, score=1.0) for word, start, end in words)
    return with_words(Segment(start=0, end=0, text="", avg_logprob=-0.3), made)


def test_a_word_goes_to_the_chunk_that_holds_its_midpoint() -> None:
    said = segment(("ask", 4.0, 4.5), ("not", 4.6, 5.3), ("what", 4.9, 5.4), ("your", 5.4, 5.8))
    first, second = give_back([said], [piece(0, 5), piece(5, 10)])
    assert [part.text for part in first] == [" ask not"]
    assert [part.text for part in second] == [" what your"]
    assert [(round(w.start, 3), round(w.end, 3)) for part in second for w in part.words] == [(-0.1, 0.4), (0.4, 0.8)]
    assert second[0].avg_logprob == -0.3


def test_text_without_words_goes_whole_to_one_chunk() -> None:
    said = Segment(start=4.0, end=7.0, text="hello")
    assert give_back([said], [piece(0, 5), piece(5, 10)])[1][0].text == "hello"


def test_an_empty_chunk_gets_nothing() -> None:
    said = segment(("hello", 4.9, 5.1))
    assert [len(own) for own in give_back([said], [piece(0, 5), piece(5, 5), piece(5, 10)])] == [0, 0, 1]


@given(
    lengths=st.lists(st.floats(0, 6), min_size=1, max_size=8),
    steps=st.lists(st.tuples(st.floats(0, 2), st.floats(0, 2)), max_size=30),
    cuts=st.sets(st.integers(0, 30)),
)
def test_every_word_is_given_to_exactly_one_chunk_in_order(
    lengths: list[float], steps: list[tuple[float, float]], cuts: set[int]
) -> None:
    pieces, start = [], 0
    for length in lengths:
        end = start + round(length * SAMPLE_RATE)
        pieces.append(Span(start, end))
        start = end
    now, words = 0.0, []
    for number, (pause, length) in enumerate(steps):
        words.append((str(number), now + pause, now + pause + length))
        now += pause + length
    edges = [0, *sorted(cut for cut in cuts if 0 < cut < len(words)), len(words)]
    segments = [segment(*words[a:b]) for a, b in itertools.pairwise(edges) if b > a]
    given_back = give_back(segments, pieces)
    assert "".join(part.text for own in given_back for part in own).split() == [word for word, _, _ in words]
    for own, place in zip(given_back, pieces, strict=True):
        for part in own:
            for word in part.words:
                middle = (word.start + word.end) / 2
                assert middle >= -1e-6
                assert middle <= len(place) / SAMPLE_RATE + 1e-6 or place is pieces[-1]
