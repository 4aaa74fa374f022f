"""The chunk write protocol, step by step, and under faults at every call."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from pathlib import Path
from queue import Queue

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.chunk_writer import Written, fetch, write_chunk, write_transcript
from shared.errors import Contended, InputRefused, SourceMissing, StoreUnavailable, TransientError
from shared.jobs import Job
from shared.outcomes import HEADER_MISSING, NOTHING, Standing, read_failure, read_outcome, record_failure, standing
from shared.transcript import ObjectRef, Transcript, read_transcript
from tests.fakes import MemoryStore, transcript_for

KEY = "users/u/audio/sessions/s/chunk-1.webm"


def job_of(store: MemoryStore, key: str = KEY) -> Job:
    return Job(bucket=store.bucket, key=key, etag=store.objects[key][1].etag)


class Recognizer:
    """Counts its calls; its text is what the audio says, so that a mislabelled transcript shows."""

    def __init__(self, job: Job, meanwhile: Callable[[], object] = lambda: None) -> None:
        self.job, self.meanwhile, self.calls = job, meanwhile, 0

    def __call__(self, audio: Path) -> Transcript:
        self.calls += 1
        text = audio.read_text()
        self.meanwhile()
        return transcript_for(self.job, text)


def test_the_transcript_names_the_input_it_is_of(store: MemoryStore, tmp_path: Path) -> None:
    store.upload(KEY, b"hello")
    job = job_of(store)
    assert write_chunk(store, job, Recognizer(job), workspace=tmp_path) is Written.WRITTEN
    outcome = read_outcome(store, job)
    assert outcome.is_for(job)
    assert outcome.transcript is not None
    assert outcome.transcript.text == "hello"
    assert list(tmp_path.iterdir()) == []


def test_a_second_delivery_does_no_work(store: MemoryStore, tmp_path: Path) -> None:
    store.upload(KEY)
    job = job_of(store)
    recognizer = Recognizer(job)
    write_chunk(store, job, recognizer, workspace=tmp_path)
    assert write_chunk(store, job, recognizer, workspace=tmp_path) is Written.ALREADY_DONE
    assert recognizer.calls == 1


def test_new_audio_under_the_same_key_replaces_the_transcript(store: MemoryStore, tmp_path: Path) -> None:
    for text in (b"first", b"second"):
        store.upload(KEY, text)
        job = job_of(store)
        write_chunk(store, job, Recognizer(job), workspace=tmp_path)
    outcome = read_outcome(store, job)
    assert outcome.transcript is not None
    assert outcome.transcript.text == "second"


def test_a_job_for_overwritten_audio_is_superseded(store: MemoryStore, tmp_path: Path) -> None:
    store.upload(KEY, b"first")
    old = job_of(store)
    store.upload(KEY, b"second")
    recognizer = Recognizer(old)
    assert write_chunk(store, old, recognizer, workspace=tmp_path) is Written.SUPERSEDED
    assert recognizer.calls == 0


def test_audio_overwritten_while_it_is_transcribed_is_superseded_too(store: MemoryStore, tmp_path: Path) -> None:
    store.upload(KEY, b"first")
    old = job_of(store)
    recognizer = Recognizer(old, meanwhile=lambda: store.upload(KEY, b"second"))
    assert write_chunk(store, old, recognizer, workspace=tmp_path) is Written.SUPERSEDED
    assert store.get(old.output_key) is None


def test_an_older_transcript_never_replaces_a_newer_one(store: MemoryStore, tmp_path: Path) -> None:
    """The audio changes, and its new transcript is written, between our last look and our write."""
    store.upload(KEY, b"first")
    old = job_of(store)

    def overwrite_before_the_put(name: str, key: str, when: str) -> None:
        if (name, key, when) == ("put", old.output_key, "before"):
            store.hook = lambda *_: None
            store.upload(KEY, b"second")
            store.upload(old.output_key, transcript_for(job_of(store), "second").to_json())

    store.hook = overwrite_before_the_put
    assert write_chunk(store, old, Recognizer(old), workspace=tmp_path) is Written.SUPERSEDED
    outcome = read_outcome(store, job_of(store))
    assert outcome.transcript is not None
    assert outcome.transcript.text == "second"


def test_where_nothing_was_seen_three_requests_are_enough(store: MemoryStore, tmp_path: Path) -> None:
    store.upload(KEY)
    job = job_of(store)
    assert write_chunk(store, job, Recognizer(job), workspace=tmp_path, seen=NOTHING) is Written.WRITTEN
    assert [name for name, _ in store.trace] == ["download", "head", "put"]


def test_what_came_since_nothing_was_seen_is_left_as_it_is(store: MemoryStore, tmp_path: Path) -> None:
    store.upload(KEY, b"first")
    old = job_of(store)
    etag = store.upload(old.output_key, transcript_for(old, "another writer's").to_json())
    assert write_chunk(store, old, Recognizer(old), workspace=tmp_path, seen=NOTHING) is Written.WRITTEN
    assert read_outcome(store, old).etag == etag


def test_missing_audio_is_permanent(store: MemoryStore, tmp_path: Path) -> None:
    job = Job(bucket=store.bucket, key=KEY, etag="e")
    with pytest.raises(SourceMissing):
        write_chunk(store, job, Recognizer(job), workspace=tmp_path)


def test_a_write_whose_answer_was_lost_counts_as_written(store: MemoryStore, tmp_path: Path) -> None:
    store.upload(KEY)
    job = job_of(store)

    def lose_the_answer(name: str, key: str, when: str) -> None:
        if (name, when) == ("put", "after"):
            store.hook = lambda *_: None
            raise StoreUnavailable("connection closed")

    store.hook = lose_the_answer
    recognizer = Recognizer(job)
    assert write_chunk(store, job, recognizer, workspace=tmp_path) is Written.WRITTEN
    assert recognizer.calls == 1


def test_an_unreadable_transcript_is_done_again(store: MemoryStore, tmp_path: Path) -> None:
    store.upload(KEY)
    job = job_of(store)
    store.upload(job.output_key, b"{not json")
    assert write_chunk(store, job, Recognizer(job), workspace=tmp_path) is Written.WRITTEN
    assert read_outcome(store, job).is_for(job)


def test_a_bucket_that_refuses_writes_is_named_in_the_end(store: MemoryStore, tmp_path: Path) -> None:
    store.upload(KEY)
    job = job_of(store)

    def deny(name: str, key: str, when: str) -> None:
        if name == "put":
            raise StoreUnavailable("S3 PutObject: AccessDenied")

    store.hook = deny
    with pytest.raises(Contended, match="AccessDenied"):
        write_chunk(store, job, Recognizer(job), workspace=tmp_path)


@pytest.mark.parametrize("order", [("chunk-1.webm", "chunk-1.mp3"), ("chunk-1.mp3", "chunk-1.webm")])
def test_of_two_objects_with_one_chunk_number_the_newest_wins_for_ever(
    store: MemoryStore, tmp_path: Path, order: tuple[str, str]
) -> None:
    keys = [KEY.replace("chunk-1.webm", name) for name in order]
    for key in keys:
        store.upload(key, key.encode())
    older, newer = (job_of(store, key) for key in keys)
    results = []
    for job in (older, newer, older, newer, older):
        results.append(write_chunk(store, job, Recognizer(job), workspace=tmp_path))
    assert results[1:] == [Written.WRITTEN, Written.DUPLICATE, Written.ALREADY_DONE, Written.ALREADY_FAILED]
    assert read_outcome(store, newer).is_for(newer)
    failure = read_failure(store, older)
    assert failure is not None
    assert failure.type == "duplicate-chunk"


def test_a_recorded_failure_is_not_tried_again_unless_asked(store: MemoryStore, tmp_path: Path) -> None:
    store.upload(KEY)
    job = job_of(store)
    record_failure(store, job, InputRefused("no audio", type="media-no-audio"))
    recognizer = Recognizer(job)
    assert write_chunk(store, job, recognizer, workspace=tmp_path) is Written.ALREADY_FAILED
    assert write_chunk(store, job, recognizer, workspace=tmp_path, retry_failed=True) is Written.WRITTEN
    assert standing(store, job) is Standing.TRANSCRIBED


def test_a_failure_is_never_recorded_over_a_success(store: MemoryStore, tmp_path: Path) -> None:
    store.upload(KEY)
    job = job_of(store)
    write_chunk(store, job, Recognizer(job), workspace=tmp_path)
    record_failure(store, job, InputRefused("too late"))
    assert read_failure(store, job) is None


def test_a_late_failure_of_an_old_version_leaves_the_newer_ones_record(store: MemoryStore) -> None:
    store.upload(KEY, b"first")
    old = job_of(store)
    store.upload(KEY, b"second")
    new = job_of(store)
    record_failure(store, new, InputRefused("second has no audio"))
    record_failure(store, old, InputRefused("first has no audio"))
    assert standing(store, new) is Standing.FAILED


def test_a_failure_that_is_overtaken_at_any_read_leaves_the_newer_ones_record(store: MemoryStore) -> None:
    for read in range(3):
        store.upload(KEY, f"first {read}".encode())
        old = job_of(store)
        reads: list[str] = []

        def overtake(name: str, key: str, when: str, read: int = read, reads: list[str] = reads) -> None:
            if when == "after" and name in ("get", "head"):
                reads.append(key)
                if len(reads) == read + 1:
                    store.hook = lambda *_: None
                    store.upload(KEY, f"second {read}".encode())
                    record_failure(store, job_of(store), InputRefused("second has no audio"))

        store.hook = overtake
        record_failure(store, old, InputRefused("first has no audio"))
        assert len(reads) == read + 1
        assert standing(store, job_of(store)) is Standing.FAILED


def test_two_objects_with_one_chunk_number_that_both_fail_come_to_rest(store: MemoryStore, tmp_path: Path) -> None:
    keys = [KEY, KEY.replace("webm", "mp3")]
    for key in keys:
        store.upload(key, key.encode())
    older, newer = (job_of(store, key) for key in keys)
    for job in (older, newer, older, newer):
        record_failure(store, job, InputRefused("no audio"))
    assert standing(store, newer) is Standing.FAILED
    assert standing(store, older) is Standing.DUPLICATE
    assert write_chunk(store, older, Recognizer(older), workspace=tmp_path) is Written.DUPLICATE


def test_a_record_for_want_of_a_header_falls_when_another_chunk_1_comes(store: MemoryStore) -> None:
    later = KEY.replace("chunk-1", "chunk-2")
    store.upload(later, b"rest")
    job = job_of(store, later)
    record_failure(store, job, InputRefused("no header", type=HEADER_MISSING))
    assert standing(store, job) is Standing.FAILED
    store.upload(KEY, b"header")
    assert standing(store, job) is Standing.OPEN
    record_failure(store, job, InputRefused("no header there either", type=HEADER_MISSING))
    assert standing(store, job) is Standing.FAILED


def test_a_failure_of_old_audio_says_nothing_about_new_audio(store: MemoryStore) -> None:
    store.upload(KEY, b"first")
    record_failure(store, job_of(store), InputRefused("no audio"))
    store.upload(KEY, b"second")
    assert standing(store, job_of(store)) is Standing.OPEN


def stitch(store: MemoryStore, job: Job, text: str = "better", *, retry_failed: bool = False) -> Written:
    """What a stitched pass does with a transcript that it has made."""
    better = transcript_for(job, text, stitched=True)
    return write_transcript(store, job, lambda: None, made=better, stitched=True, retry_failed=retry_failed)


def test_a_stitched_transcript_replaces_a_live_one_and_never_the_other_way_round(
    store: MemoryStore, tmp_path: Path
) -> None:
    store.upload(KEY)
    job = job_of(store)
    live = Recognizer(job)
    assert write_chunk(store, job, live, workspace=tmp_path) is Written.WRITTEN
    assert stitch(store, job) is Written.WRITTEN
    assert stitch(store, job, "again") is Written.ALREADY_DONE
    assert write_chunk(store, job, live, workspace=tmp_path) is Written.ALREADY_DONE
    outcome = read_outcome(store, job)
    assert outcome.transcript is not None
    assert (outcome.transcript.text, live.calls) == ("better", 1)


def test_a_live_writer_that_is_overtaken_by_a_stitched_one_leaves_it(store: MemoryStore, tmp_path: Path) -> None:
    store.upload(KEY)
    job = job_of(store)

    def overtake(name: str, key: str, when: str) -> None:
        if (name, when) == ("put", "before"):
            store.hook = lambda *_: None
            stitch(store, job)

    store.hook = overtake
    write_chunk(store, job, Recognizer(job), workspace=tmp_path)
    outcome = read_outcome(store, job)
    assert outcome.transcript is not None
    assert outcome.transcript.is_stitched


def test_a_stitched_pass_of_older_audio_leaves_the_live_transcript_of_newer_audio(
    store: MemoryStore, tmp_path: Path
) -> None:
    store.upload(KEY, b"first")
    old = job_of(store)
    store.upload(KEY, b"second")
    new = job_of(store)
    write_chunk(store, new, Recognizer(new), workspace=tmp_path)
    assert stitch(store, old) is Written.SUPERSEDED
    assert read_outcome(store, new).is_for(new)


def test_a_stitched_pass_minds_recorded_failures_as_everyone_does(store: MemoryStore) -> None:
    store.upload(KEY)
    job = job_of(store)
    record_failure(store, job, InputRefused("no audio"))
    assert stitch(store, job) is Written.ALREADY_FAILED
    assert stitch(store, job, retry_failed=True) is Written.WRITTEN
    assert stitch(store, job) is Written.ALREADY_DONE


def test_a_failure_that_a_transcript_outweighs_does_not_keep_the_stitched_one_out(
    store: MemoryStore, tmp_path: Path
) -> None:
    store.upload(KEY)
    job = job_of(store)
    record_failure(store, job, InputRefused("no audio"))
    write_chunk(store, job, Recognizer(job), workspace=tmp_path, retry_failed=True)
    assert stitch(store, job) is Written.WRITTEN


def test_a_live_transcript_stands_when_its_audio_is_gone(store: MemoryStore, tmp_path: Path) -> None:
    store.upload(KEY)
    job = job_of(store)
    write_chunk(store, job, Recognizer(job), workspace=tmp_path)
    store.delete(KEY)
    assert stitch(store, job) is Written.ALREADY_DONE
    store.delete(job.output_key)
    with pytest.raises(SourceMissing):
        stitch(store, job)


def test_a_transcript_that_could_not_be_made_is_asked_for_again_while_its_audio_is_there(store: MemoryStore) -> None:
    """None says that the audio changed or went away; when it did not, the next try may do."""
    store.upload(KEY)
    job = job_of(store)
    made = iter([None, None, transcript_for(job)])
    assert write_transcript(store, job, lambda: next(made)) is Written.WRITTEN


def test_only_the_very_version_of_the_audio_is_fetched(store: MemoryStore, tmp_path: Path) -> None:
    store.upload(KEY, b"first")
    job = job_of(store)
    assert fetch(store, job, tmp_path / "audio")
    assert (tmp_path / "audio").read_bytes() == b"first"
    store.upload(KEY, b"second")
    assert not fetch(store, job, tmp_path / "other")
    store.delete(KEY)
    assert not fetch(store, job, tmp_path / "other")
    assert not (tmp_path / "other").exists()


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(faults=st.lists(st.tuples(st.integers(0, 12), st.sampled_from(["before", "after"]), st.booleans()), max_size=6))
def test_faults_at_any_call_lose_nothing_and_mislabel_nothing(
    tmp_path: Path, faults: list[tuple[int, str, bool]]
) -> None:
    """Each fault is an error before or after one S3 call, or a re-recording there; then deliveries go on."""
    store = MemoryStore()
    store.upload(KEY, b"v0")
    counter = 0
    versions = 0

    def inject(name: str, key: str, when: str) -> None:
        nonlocal counter, versions
        counter += when == "before"
        for number, moment, overwrite in faults:
            if (counter, when) == (number, moment):
                if overwrite:
                    versions += 1
                    MemoryStore.upload(store, KEY, f"v{versions}".encode())
                else:
                    raise StoreUnavailable("injected")

    store.hook = inject
    for _ in range(len(faults) + 1):
        job = job_of(store)
        try:
            write_chunk(store, job, Recognizer(job), workspace=tmp_path)
        except TransientError:
            continue
    store.hook = lambda *_: None
    job = job_of(store)
    write_chunk(store, job, Recognizer(job), workspace=tmp_path)
    outcome = read_outcome(store, job)
    assert outcome.is_for(job)
    assert outcome.transcript is not None
    assert outcome.transcript.text == f"v{versions}"


class Turns:
    """Runs several writers at once, one S3 call at a time, in the order that `order` says, over and over."""

    def __init__(self, store: MemoryStore, order: list[int], at_call: Callable[[str], None]) -> None:
        self._order = cycle(order)
        self._at_call = at_call
        self._news: Queue[str] = Queue()  # of the one whose turn it is: "waits" or "ended"
        self._mine = threading.local()
        store.hook = self._hook

    def run(self, writers: list[Callable[[], object]]) -> None:
        with ThreadPoolExecutor(len(writers)) as pool:
            gates = [threading.Semaphore(0) for _ in writers]
            futures = [pool.submit(self._write, *pair) for pair in zip(writers, gates, strict=True)]
            running = list(gates)
            while running:
                gate = running[next(self._order) % len(running)]
                gate.release()
                if self._news.get() == "ended":
                    running.remove(gate)
        for future in futures:
            future.result()

    def _write(self, writer: Callable[[], object], gate: threading.Semaphore) -> None:
        self._mine.gate = gate
        gate.acquire()
        try:
            writer()
        finally:
            self._news.put("ended")

    def _hook(self, name: str, key: str, when: str) -> None:
        if when == "before":
            self._news.put("waits")
            self._mine.gate.acquire()
        self._at_call(when)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_stitched_and_live_writers_that_race_end_stitched_if_any_stitched_write_was_made(
    tmp_path: Path, data: st.DataObject
) -> None:
    """Any interleaving of their S3 calls, an error before or after some, a re-recording at others."""
    store = MemoryStore()
    store.upload(KEY, b"v0")
    kinds = data.draw(st.lists(st.sampled_from(["live", "stitched"]), min_size=2, max_size=4), label="writers")
    faults = data.draw(
        st.dictionaries(st.integers(1, 60), st.sampled_from(["before", "after", "re-record"]), max_size=5)
    )
    order = data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=60), label="order")
    calls = 0
    seen: dict[str, bool] = {}  # by ETag of the audio, whether its transcript was stitched
    stitched: set[str] = set()  # ETags that a stitched pass calls done

    def look() -> None:
        if job_of(store).output_key not in store.objects:
            return
        transcript = read_transcript(store.objects[job_of(store).output_key][0])
        assert transcript is not None
        assert isinstance(transcript.source, ObjectRef)
        assert transcript.is_stitched or not seen.get(transcript.source.etag), "live over stitched"
        seen[transcript.source.etag] = transcript.is_stitched

    def at_call(when: str) -> None:
        nonlocal calls
        look()
        calls += when == "before"
        fault = faults.get(calls)
        if fault == "re-record" and when == "before":
            store.upload(KEY, f"v{calls}".encode())
        elif fault == when:
            raise StoreUnavailable("injected")

    def writer(kind: str) -> Callable[[], object]:
        job = job_of(store)

        def write() -> None:
            try:
                if kind == "live":
                    write_chunk(store, job, Recognizer(job), workspace=tmp_path)
                elif stitch(store, job) in (Written.WRITTEN, Written.ALREADY_DONE):
                    stitched.add(job.etag)
            except TransientError:
                return

        return write

    Turns(store, order, at_call).run([writer(kind) for kind in kinds])
    store.hook = lambda *_: None
    look()
    assert all(seen[etag] for etag in stitched)
