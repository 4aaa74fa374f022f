"""The session write protocol: once, right, whoever races, whatever fails, in whatever order things come."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shared.chunk_writer import write_chunk, write_transcript
from shared.combine import VIEW, Combined, Combiner, SessionTranscribed, Status
from shared.errors import InputRefused, StoreUnavailable, TransientError
from shared.jobs import Job
from shared.keys import Session
from shared.outcomes import record_failure
from shared.store import Store
from shared.transcript import SessionRef, Transcript, read_transcript
from tests.fakes import MemoryStore, transcript_for

SESSION = Session("u", "s")


class Recording:
    """A producer and its chunks, against one store."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.events: list[SessionTranscribed] = []
        self.combiner = self.new_combiner()

    def new_combiner(self) -> Combiner:
        return Combiner(self.store, self.events.append)

    def upload(self, number: int | str, text: str, extension: str = "webm") -> Job:
        key = f"{SESSION.audio_prefix}chunk-{number}.{extension}"
        self._write(key, text.encode())
        info = self.store.head(key)
        assert info
        return Job(bucket=self.store.bucket, key=key, etag=info.etag)

    def transcribe(self, job: Job, workspace: Path) -> None:
        write_chunk(self.store, job, lambda audio: transcript_for(job, audio.read_text()), workspace=workspace)

    def chunk(self, number: int | str, text: str, workspace: Path) -> None:
        self.transcribe(self.upload(number, text), workspace)

    def manifest(self, count: object) -> None:
        body = count if isinstance(count, bytes) else json.dumps({"chunkCount": count, "title": "x"}).encode()
        self._write(SESSION.manifest_key, body)

    def combine(self) -> Combined:
        return self.combiner.combine(SESSION)

    def transcript(self) -> Transcript | None:
        stored = self.store.get(SESSION.output_key)
        return read_transcript(stored.body) if stored else None

    def _write(self, key: str, body: bytes) -> None:
        info = self.store.head(key)
        self.store.put(key, body, content_type="x/y", if_match=info.etag if info else "")


@pytest.fixture
def recording(any_store: Store) -> Recording:
    return Recording(any_store)


def text_of(recording: Recording) -> str | None:
    transcript = recording.transcript()
    return transcript.text if transcript else None


def test_a_complete_session_is_written_in_all_forms_and_announced_once(recording: Recording, tmp_path: Path) -> None:
    for number, text in enumerate(["one", "two", "three"], 1):
        recording.chunk(number, text, tmp_path)
    recording.manifest(3)
    assert recording.combine() == Combined(Status.COMPLETE, written=True, live=3)
    assert recording.combine() == Combined(Status.COMPLETE, written=False, live=3)
    assert text_of(recording) == "one two three"
    for extension in ("srt", "vtt", "txt"):
        assert recording.store.head(SESSION.derived_key(extension))
    [event] = recording.events
    assert (event.chunks, event.failed, event.audio_seconds) == (3, 0, {"direct": 15.0})


def test_while_the_recording_runs_a_look_costs_one_read(store: MemoryStore, tmp_path: Path) -> None:
    recording = Recording(store)
    recording.chunk(1, "one", tmp_path)
    store.trace.clear()
    assert recording.combine().status is Status.RECORDING
    assert store.trace == [("get", SESSION.manifest_key)]


@pytest.mark.parametrize("manifest_first", [True, False])
def test_the_manifest_may_come_before_or_after_the_last_transcript(
    recording: Recording, tmp_path: Path, manifest_first: bool
) -> None:
    if manifest_first:
        recording.manifest(2)
    for number in (2, 1):
        assert text_of(recording) is None
        recording.chunk(number, f"text{number}", tmp_path)
        recording.combine()
    recording.manifest(2)
    recording.combine()
    assert text_of(recording) == "text1 text2"


def test_chunks_are_told_by_their_index_not_by_their_count(recording: Recording, tmp_path: Path) -> None:
    for number in (1, 2, 99):
        recording.chunk(number, "x", tmp_path)
    recording.manifest(3)
    assert recording.combine() == Combined(Status.OPEN, missing=1)
    assert text_of(recording) is None


def test_padding_does_not_matter(recording: Recording, tmp_path: Path) -> None:
    for number in ("001", "2", "03"):
        recording.chunk(number, f"t{int(number)}", tmp_path)
    recording.manifest(3)
    recording.combine()
    assert text_of(recording) == "t1 t2 t3"


def test_a_failed_chunk_leaves_a_gap_and_a_later_success_repairs_it(recording: Recording, tmp_path: Path) -> None:
    recording.chunk(1, "one", tmp_path)
    broken = recording.upload(2, "two")
    record_failure(recording.store, broken, InputRefused("no audio", type="media-no-audio"))
    recording.manifest(2)
    recording.combine()
    transcript = recording.transcript()
    assert transcript is not None
    assert (transcript.text, len(transcript.gaps)) == ("one", 1)
    write_chunk(
        recording.store, broken, lambda audio: transcript_for(broken, "two"), workspace=tmp_path, retry_failed=True
    )
    recording.combine()
    assert text_of(recording) == "one two"
    assert [event.failed for event in recording.events] == [1, 0]


def stitch(recording: Recording, job: Job, text: str) -> None:
    """What a server's stitched pass does for one chunk."""
    write_transcript(recording.store, job, lambda: transcript_for(job, text, stitched=True), stitched=True)


def test_readers_see_the_live_session_first_and_the_better_one_after_the_stitched_pass(
    recording: Recording, tmp_path: Path
) -> None:
    jobs = [recording.upload(number, text) for number, text in enumerate(["wreck a", "nice beach"], 1)]
    for job in jobs:
        recording.transcribe(job, tmp_path)
    recording.manifest(2)
    assert recording.combine() == Combined(Status.COMPLETE, written=True, live=2)
    assert text_of(recording) == "wreck a nice beach"
    stitch(recording, jobs[0], "recognise")
    assert text_of(recording) == "wreck a nice beach"
    stitch(recording, jobs[1], "speech")
    assert recording.combine() == Combined(Status.COMPLETE, written=True, live=0)
    assert text_of(recording) == "recognise speech"
    assert recording.combine() == Combined(Status.COMPLETE, written=False, live=0)
    transcript = recording.transcript()
    assert transcript is not None
    assert transcript.pass_ is None
    assert len(recording.events) == 2


def test_live_counts_what_a_stitched_pass_would_better_and_nothing_else(store: MemoryStore, tmp_path: Path) -> None:
    recording = Recording(store)
    jobs = [recording.upload(number, f"t{number}") for number in range(1, 5)]
    record_failure(store, jobs[0], InputRefused("no audio"))
    for job in jobs[1:]:
        recording.transcribe(job, tmp_path)
    stitch(recording, jobs[2], "better")
    recording.manifest(4)
    assert recording.combine().live == 2
    store.delete(jobs[1].key)
    assert recording.combine().live == 1


def test_a_single_chunk_has_nothing_to_be_heard_with(recording: Recording, tmp_path: Path) -> None:
    recording.chunk(1, "one", tmp_path)
    recording.manifest(1)
    assert recording.combine() == Combined(Status.COMPLETE, written=True, live=0)


def test_the_count_of_live_chunks_costs_a_finished_session_no_further_call(store: MemoryStore, tmp_path: Path) -> None:
    recording = Recording(store)
    for number in (1, 2):
        recording.chunk(number, "text", tmp_path)
    recording.manifest(2)
    recording.combine()
    store.trace.clear()
    assert recording.combine().live == 2
    assert len(store.trace) == 7  # the manifest, two listings, and the four files' heads


def test_a_session_written_before_there_was_a_stitched_pass_is_left_as_it_is(
    store: MemoryStore, tmp_path: Path
) -> None:
    recording = Recording(store)
    for number in (1, 2):
        recording.chunk(number, "text", tmp_path)
    recording.manifest(2)
    recording.combine()
    body, info = store.objects[SESSION.output_key]
    store.objects[SESSION.output_key] = body, replace(info, metadata={VIEW: info.metadata[VIEW]})
    assert recording.combine() == Combined(Status.COMPLETE, written=False, live=0)


def test_a_re_recorded_chunk_rebuilds_the_session(recording: Recording, tmp_path: Path) -> None:
    recording.chunk(1, "old", tmp_path)
    recording.manifest(1)
    recording.combine()
    job = recording.upload(1, "new")
    assert recording.combine() == Combined(Status.OPEN, missing=1)
    assert text_of(recording) == "old"
    recording.transcribe(job, tmp_path)
    recording.combine()
    assert text_of(recording) == "new"


def test_an_unreadable_transcript_stops_the_session_and_is_not_skipped(recording: Recording, tmp_path: Path) -> None:
    recording.chunk(1, "one", tmp_path)
    job = recording.upload(2, "two")
    recording.store.put(job.output_key, b"{", content_type="x/y", if_match="")
    recording.manifest(2)
    assert recording.combine() == Combined(Status.OPEN, missing=1)
    recording.transcribe(job, tmp_path)
    recording.combine()
    assert text_of(recording) == "one two"


def test_of_two_objects_with_one_number_the_loser_gets_a_record(store: MemoryStore, tmp_path: Path) -> None:
    recording = Recording(store)
    recording.chunk("1", "older", tmp_path)
    recording.chunk("001", "newer", tmp_path)
    recording.manifest(1)
    recording.combine()
    assert text_of(recording) == "newer"
    loser = Job(bucket=store.bucket, key=f"{SESSION.audio_prefix}chunk-1.webm", etag="x")
    assert not store.head(loser.audio.error_key)  # it has its transcript, which is just not used


def test_audio_that_expired_leaves_its_transcript_standing(store: MemoryStore, tmp_path: Path) -> None:
    recording = Recording(store)
    for number in (1, 2):
        recording.chunk(number, f"t{number}", tmp_path)
    recording.manifest(2)
    store.delete(f"{SESSION.audio_prefix}chunk-1.webm")
    recording.combine()
    assert text_of(recording) == "t1 t2"


@pytest.mark.parametrize(
    "count", [0, -1, "3", 1.5, None, True, 1_000_000_000, b"{", b"[]", b"{}", b'{"chunkCount": 1}' + b" " * 70_000]
)
def test_a_manifest_without_a_usable_count_is_recorded_and_the_next_one_counts(
    recording: Recording, tmp_path: Path, count: object
) -> None:
    recording.chunk(1, "one", tmp_path)
    recording.manifest(count)
    assert recording.combine().status is Status.BAD_MANIFEST
    recording.combine()
    stored = recording.store.get(SESSION.error_key)
    assert stored is not None
    assert json.loads(stored.body)["type"] == "bad-manifest"
    recording.manifest(1)
    recording.combine()
    assert text_of(recording) == "one"


def test_a_bad_manifest_that_was_overwritten_meanwhile_leaves_the_newer_ones_record(store: MemoryStore) -> None:
    recording = Recording(store)
    recording.manifest("many")

    def overtake(name: str, key: str, when: str) -> None:
        if (name, key, when) == ("get", SESSION.manifest_key, "after"):
            store.hook = lambda *_: None
            recording.manifest("more")
            recording.new_combiner().combine(SESSION)

    store.hook = overtake
    recording.combine()
    record = json.loads(store.objects[SESSION.error_key][0])
    assert record["source"]["etag"] == store.objects[SESSION.manifest_key][1].etag


def test_the_session_names_every_input_by_etag(recording: Recording, tmp_path: Path) -> None:
    recording.chunk(1, "one", tmp_path)
    recording.manifest(1)
    recording.combine()
    transcript = recording.transcript()
    assert transcript is not None
    assert isinstance(transcript.source, SessionRef)
    for key, etag in [
        (transcript.source.manifest_key, transcript.source.manifest_etag),
        (transcript.source.chunks[0].key, transcript.source.chunks[0].etag),
        (transcript.source.chunks[0].outcome_key, transcript.source.chunks[0].outcome_etag),
    ]:
        info = recording.store.head(key)
        assert info is not None
        assert info.etag == etag


def test_rebuilding_gives_the_same_bytes(store: MemoryStore, tmp_path: Path) -> None:
    recording = Recording(store)
    for number in (1, 2, 3):
        recording.chunk(number, f"t{number}", tmp_path)
    recording.manifest(3)
    recording.combine()
    keys = [SESSION.derived_key(extension) for extension in ("json", "srt", "vtt", "txt")]
    before = {key: store.objects[key][0] for key in keys}
    for key in keys:
        store.delete(key)
    recording.combine()
    assert {key: store.objects[key][0] for key in keys} == before


def test_a_spoilt_derived_file_is_repaired(store: MemoryStore, tmp_path: Path) -> None:
    recording = Recording(store)
    recording.chunk(1, "one", tmp_path)
    recording.manifest(1)
    recording.combine()
    right = store.objects[SESSION.derived_key("srt")][0]
    store.upload(SESSION.derived_key("srt"), b"what a stale combiner wrote")
    recording.combine()
    assert store.objects[SESSION.derived_key("srt")][0] == right
    assert len(recording.events) == 1


def test_a_stalled_combiner_cannot_put_an_older_view_over_a_newer_one(store: MemoryStore, tmp_path: Path) -> None:
    """It has read everything, then a chunk is re-recorded, transcribed and combined by another, then it writes."""
    recording = Recording(store)
    recording.chunk(1, "old", tmp_path)
    recording.manifest(1)

    def overtake(name: str, key: str, when: str) -> None:
        if (name, key, when) == ("put", SESSION.output_key, "before"):
            store.hook = lambda *_: None
            recording.chunk(1, "new", tmp_path)
            recording.new_combiner().combine(SESSION)

    store.hook = overtake
    recording.combine()
    assert text_of(recording) == "new"
    assert store.objects[SESSION.derived_key("txt")][0] == b"new\n"


def test_a_combiner_that_stalls_with_an_older_manifest_cannot_put_its_view_over_a_newer_one(
    store: MemoryStore, tmp_path: Path
) -> None:
    """Found by the simulation: the manifest was read before the session that it would have replaced."""
    recording = Recording(store)
    recording.chunk(1, "one", tmp_path)
    recording.chunk(2, "two", tmp_path)
    recording.manifest(1)
    written: list[str | None] = []

    def overtake(name: str, key: str, when: str) -> None:
        if (name, key, when) == ("get", SESSION.manifest_key, "after"):
            store.hook = note
            recording.manifest(2)
            recording.new_combiner().combine(SESSION)

    def note(name: str, key: str, when: str) -> None:
        if (name, key, when) == ("put", SESSION.output_key, "after"):
            written.append(text_of(recording))

    store.hook = overtake
    recording.combine()
    assert written == ["one two"]


def test_a_session_write_whose_answer_was_lost_is_announced(store: MemoryStore, tmp_path: Path) -> None:
    """The SDK's own retry of a write that had worked is answered with 412."""
    recording = Recording(store)
    recording.chunk(1, "one", tmp_path)
    recording.manifest(1)

    def write_before_the_put(name: str, key: str, when: str) -> None:
        if (name, key, when) == ("put", SESSION.output_key, "before"):
            store.hook = lambda *_: None
            Combiner(store, lambda event: None).combine(SESSION)

    store.hook = write_before_the_put
    assert recording.combine().written
    assert len(recording.events) == 1


def test_a_session_of_more_than_a_thousand_chunks_completes_without_quadratic_work(
    store: MemoryStore, tmp_path: Path
) -> None:
    """As a drain does it: the manifest is there from the start, and every finished chunk looks at the session."""
    recording, count = Recording(store), 1200
    recording.manifest(count)
    jobs = [recording.upload(number, f"t{number}") for number in range(1, count + 1)]
    store.trace.clear()
    for job in jobs:
        recording.transcribe(job, tmp_path)
        recording.combine()
    transcript = recording.transcript()
    assert transcript is not None
    assert transcript.text.split() == [f"t{number}" for number in range(1, count + 1)]
    listings = sum(name == "list" for name, _ in store.trace)
    assert listings < 2 * 20
    assert len(store.trace) < count * 15


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_order_with_faults_ends_in_the_same_session(tmp_path: Path, data: st.DataObject) -> None:
    """Uploads, re-recordings, transcripts and the manifest in any order, two combiners, S3 failing now and then."""
    store = MemoryStore()
    recording = Recording(store)
    other = recording.new_combiner()
    count = data.draw(st.integers(1, 4))
    steps = data.draw(st.permutations([("upload", n) for n in range(1, count + 1)] + [("manifest", 0)])) + data.draw(
        st.lists(st.tuples(st.just("upload"), st.integers(1, count)), max_size=2)
    )
    failing = data.draw(st.sets(st.integers(0, 60), max_size=8))
    calls = 0

    def fail_sometimes(name: str, key: str, when: str) -> None:
        nonlocal calls
        calls += 1
        if calls in failing:
            raise StoreUnavailable("injected")

    final: dict[int, str] = {}
    pending: list[Job] = []
    for number, (what, index) in enumerate(steps):
        store.hook = lambda *_: None
        if what == "manifest":
            recording.manifest(count)
        else:
            final[index] = f"v{number}"
            pending.append(recording.upload(index, final[index]))
        store.hook = fail_sometimes
        for job in list(pending):
            try:
                recording.transcribe(job, tmp_path)
                (recording.combiner if number % 2 else other).combine(SESSION)
            except TransientError:
                continue
            pending.remove(job)
        session = store.objects.get(SESSION.output_key)
        if session:  # at every instant: whole, of one view
            transcript = read_transcript(session[0])
            assert transcript is not None
            assert isinstance(transcript.source, SessionRef)
            assert [chunk.index for chunk in transcript.source.chunks] == list(range(1, count + 1))
    store.hook = lambda *_: None
    for job in pending:
        recording.transcribe(job, tmp_path)
        recording.combine()
    assert recording.new_combiner().combine(SESSION).status is Status.COMPLETE
    assert text_of(recording) == " ".join(final[index] for index in sorted(final))
    assert store.objects[SESSION.derived_key("txt")][0].decode() == text_of(recording) + "\n"  # type: ignore[operator]
