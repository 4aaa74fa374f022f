"""Batches across requests: nobody's result goes astray, nobody waits for ever, and neighbours share a window."""

import threading
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpu_server.engines import (
    SAMPLE_RATE,
    EngineFault,
    Heard,
    Options,
    OutOfMemory,
    Window,
)
from gpu_server.scheduler import Observer, Place, Scheduler
from gpu_server.windows import padded_frames
from tests.gpu_server.ears import Reader, tagged


def window(number: int, seconds: float = 1.0, **options: Any) -> Window:
    audio = tagged(number, seconds)
    return Window(audio=audio, options=Options(**options), frames=padded_frames(len(audio)))


def numbers(heard: Heard) -> list[int]:
    return [int(word.word) for word in heard.words]


class Held:
    """A scheduler whose recognizer is busy until `release`, so that what is submitted waits together."""

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.scheduler = Scheduler(reader, on_fault=lambda: None)
        reader.gate.clear()
        self.scheduler.submit(window(999), owner="first")
        assert reader.busy.wait(timeout=20)

    def release(self) -> None:
        self.reader.gate.set()

    @property
    def batches(self) -> list[list[Window]]:
        """Those of what waited together."""
        return self.reader.batches[1:]


WISHES = st.fixed_dictionaries(
    {"language": st.sampled_from([None, "en", "de"]), "initial_prompt": st.sampled_from([None, "a", "b"])}
)


@given(
    requests=st.lists(
        st.tuples(
            WISHES,
            st.lists(st.floats(0.1, 29), min_size=1, max_size=4),
            st.none() | st.tuples(st.sampled_from("st"), st.integers(1, 6)),
        ),
        min_size=1,
        max_size=12,
    ),
    room=st.integers(1, 4),
)
@settings(max_examples=60, deadline=None)
def test_every_request_gets_its_own_words_whoever_shares_its_batch(requests: list[Any], room: int) -> None:
    scheduler = Scheduler(Reader(room=room), on_fault=lambda: None)
    try:
        submitted = []
        for owner, (wishes, lengths, seat) in enumerate(requests):
            for part, seconds in enumerate(lengths[:1] if seat else lengths):
                number = 1 + owner * 10 + part
                place = Place(*seat) if seat else None
                one = window(number, seconds, **wishes)
                submitted.append((number, wishes, scheduler.submit(one, owner=owner, place=place)))
        for number, wishes, future in submitted:
            heard = future.result(timeout=20)
            assert numbers(heard) == [number]
            assert heard.language == (wishes["language"] or "en")
            assert 0 <= heard.words[0].start <= 1 / SAMPLE_RATE
    finally:
        scheduler.close()


def test_what_waits_together_is_recognised_together() -> None:
    held = Held(Reader())
    futures = [held.scheduler.submit(window(n), owner=n) for n in range(1, 9)]
    held.release()
    assert [numbers(future.result(timeout=20)) for future in futures] == [[n] for n in range(1, 9)]
    assert [len(batch) for batch in held.batches] == [8]


def test_an_hour_long_file_does_not_keep_a_chunk_waiting() -> None:
    held = Held(Reader())
    hour = [held.scheduler.submit(window(n, 29), owner="hour") for n in range(1, 101)]
    chunk = held.scheduler.submit(window(500, 5), owner="chunk")
    held.release()
    assert numbers(chunk.result(timeout=20)) == [500]
    wait(hour, timeout=20)
    before = [batch for batch in held.batches if batch[0].options == Options()]
    place = next(n for n, batch in enumerate(before) if any(w.audio[0] == np.float32(0.5) for w in batch))
    assert place <= 1  # behind at most one batch of the file's


def test_a_batch_holds_no_more_than_the_device_can_do_at_a_time() -> None:
    held = Held(Reader("cpu"))
    futures = [held.scheduler.submit(window(n, 29), owner="hour") for n in range(1, 21)]
    held.release()
    wait(futures, timeout=20)
    assert max(len(batch) for batch in held.batches) == 8


def test_neighbours_of_a_session_share_a_window() -> None:
    held = Held(Reader())
    futures = {n: held.scheduler.submit(window(n, 5), owner=n, place=Place("s", n)) for n in (3, 1, 2, 7)}
    other = held.scheduler.submit(window(50, 5), owner=50, place=Place("t", 4))
    held.release()
    assert {n: numbers(future.result(timeout=20)) for n, future in futures.items()} == {n: [n] for n in futures}
    assert numbers(other.result(timeout=20)) == [50]
    lengths = sorted(len(one.audio) / SAMPLE_RATE for batch in held.batches for one in batch)
    assert lengths == [5, 5, 15]
    starts = [word.start for n in (1, 2, 3) for word in futures[n].result().words]
    assert starts == [0, 0, 0]  # each on its own time line


def test_neighbours_with_other_wishes_keep_to_themselves() -> None:
    held = Held(Reader())
    one = held.scheduler.submit(window(1, 5, language="en"), owner=1, place=Place("s", 1))
    two = held.scheduler.submit(window(2, 5, language="de"), owner=2, place=Place("s", 2))
    held.release()
    assert (one.result(timeout=20).language, two.result(timeout=20).language) == ("en", "de")
    assert all(len(w.audio) == 5 * SAMPLE_RATE for batch in held.batches for w in batch)


def test_a_shared_window_holds_what_came_before_only_once() -> None:
    """Chunk 2 brings 3 s of context; heard behind chunk 1 it needs none, and its words keep their places."""
    held = Held(Reader())
    first = held.scheduler.submit(window(1, 5), owner=1, place=Place("s", 1))
    audio = np.concatenate([tagged(1, 3), tagged(2, 5)])
    with_context = Window(audio=audio, options=Options(), frames=padded_frames(len(audio)))
    second = held.scheduler.submit(with_context, owner=2, place=Place("s", 2, lead=3 * SAMPLE_RATE))
    held.release()
    assert numbers(first.result(timeout=20)) == [1]
    heard = second.result(timeout=20)
    assert [(word.word, word.start, word.end) for word in heard.words] == [(" 2", 3.0, 8.0)]
    assert heard.heard_from == 3.0
    assert [len(w.audio) / SAMPLE_RATE for batch in held.batches for w in batch] == [10]


def test_a_shared_window_is_never_longer_than_the_recognizer_hears() -> None:
    held = Held(Reader())
    futures = [held.scheduler.submit(window(n, 5), owner=n, place=Place("s", n)) for n in range(1, 21)]
    held.release()
    assert [numbers(future.result(timeout=20)) for future in futures] == [[n] for n in range(1, 21)]
    assert max(len(w.audio) for batch in held.batches for w in batch) <= 30 * SAMPLE_RATE


def test_a_full_device_gets_the_batch_in_halves_and_that_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    held = Held(Reader(room=3))
    futures = [held.scheduler.submit(window(n), owner=n) for n in range(1, 9)]
    held.release()
    assert [numbers(future.result(timeout=20)) for future in futures] == [[n] for n in range(1, 9)]
    assert all(len(batch) <= 3 for batch in held.batches)
    logged = [(record.getMessage(), vars(record)["windows"], record.levelname) for record in caplog.records]
    assert logged == [("a batch failed: in halves now", windows, "WARNING") for windows in (8, 4, 4)]
    assert all("OutOfMemory" in vars(record)["reason"] for record in caplog.records)


def test_a_window_that_does_not_fit_alone_fails_alone() -> None:
    reader = Reader(room=0)
    scheduler = Scheduler(reader, on_fault=lambda: None)
    with pytest.raises(OutOfMemory):
        scheduler.submit(window(1), owner=1).result(timeout=20)
    reader.room = 1
    assert numbers(scheduler.submit(window(2), owner=2).result(timeout=20)) == [2]
    scheduler.close()


def test_a_broken_engine_fails_everyone_at_once_and_says_so() -> None:
    reader = Reader()
    told = threading.Event()
    scheduler = Scheduler(reader, on_fault=told.set)
    reader.gate.clear()
    running = scheduler.submit(window(1), owner=1)
    assert reader.busy.wait(timeout=20)
    waiting = [scheduler.submit(window(n), owner=n) for n in (2, 3)]
    reader.error = EngineFault("CUDA error")
    reader.gate.set()
    for future in (running, *waiting):
        with pytest.raises(EngineFault):
            future.result(timeout=20)
    assert told.wait(timeout=20)
    with pytest.raises(EngineFault):
        scheduler.submit(window(4), owner=4).result(timeout=20)


def test_one_odd_window_fails_alone() -> None:
    held = Held(Reader(odd=5))
    futures = {n: held.scheduler.submit(window(n), owner=n) for n in range(1, 9)}
    held.release()
    with pytest.raises(ValueError, match="odd"):
        futures.pop(5).result(timeout=20)
    assert {n: numbers(future.result(timeout=20)) for n, future in futures.items()} == {n: [n] for n in futures}


def test_an_error_of_one_batch_is_not_the_next_ones() -> None:
    reader = Reader()
    scheduler = Scheduler(reader, on_fault=lambda: None)
    reader.error = ValueError("odd")
    with pytest.raises(ValueError, match="odd"):
        scheduler.submit(window(1), owner=1).result(timeout=20)
    reader.error = None
    assert numbers(scheduler.submit(window(2), owner=2).result(timeout=20)) == [2]
    scheduler.close()


def test_an_idle_recognizer_waits_for_those_who_are_on_their_way() -> None:
    reader = Reader()
    scheduler = Scheduler(reader, on_fault=lambda: None)
    with scheduler.coming() as arrived:
        first = scheduler.submit(window(1), owner=1)
        second = scheduler.submit(window(2), owner=2)
        arrived()
        assert [numbers(first.result(timeout=20)), numbers(second.result(timeout=20))] == [[1], [2]]
    assert len(reader.batches) <= 2
    scheduler.close()


def test_it_counts_what_it_does() -> None:
    told: list[tuple[int, int]] = []
    reader = Reader()
    observer = Observer(worked=lambda seconds, windows, items: told.append((windows, items)))
    scheduler = Scheduler(reader, on_fault=lambda: None, observer=observer)
    reader.gate.clear()
    first = scheduler.submit(window(9), owner=9)
    assert reader.busy.wait(timeout=20)
    futures = [scheduler.submit(window(n, 5), owner=n, place=Place("s", n)) for n in (1, 2)]
    reader.gate.set()
    wait([first, *futures], timeout=20)
    scheduler.close()
    assert told == [(1, 1), (1, 2)]


def test_many_threads_at_once_get_their_own() -> None:
    scheduler = Scheduler(Reader(), on_fault=lambda: None)

    def ask(number: int) -> list[int]:
        return numbers(scheduler.submit(window(number), owner=number).result(timeout=20))

    with ThreadPoolExecutor(16) as pool:
        assert list(pool.map(ask, range(1, 200))) == [[n] for n in range(1, 200)]
    scheduler.close()


def test_a_recognizer_whose_thread_ends_says_so_and_lets_nobody_hang() -> None:
    told = threading.Event()
    reader = Reader()
    observer = Observer(worked=lambda seconds, windows, items: 1 / 0)  # type: ignore[arg-type, return-value]
    scheduler = Scheduler(reader, on_fault=told.set, observer=observer)
    assert numbers(scheduler.submit(window(1), owner=1).result(timeout=20)) == [1]
    assert told.wait(timeout=20)
    with pytest.raises(EngineFault):
        scheduler.submit(window(2), owner=2).result(timeout=20)
