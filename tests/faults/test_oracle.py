"""The oracle sees each violation in a bucket that was broken by hand, and none in one that is well."""

import json
from collections.abc import Callable

import pytest

from shared.combine import Combiner
from shared.errors import PermanentError
from shared.jobs import Job, JobMessage, Reason
from shared.keys import Session
from shared.outcomes import duplicate_chunk, record_failure
from shared.store import StoredObject
from tests.fakes import MemoryStore, transcript_for
from tests.faults.oracle import (
    Found,
    Upload,
    Version,
    outcome,
    regressions,
    transcribed,
    violations,
    wrong_session,
    wrong_write,
)

ANN, BOB = Session("ann", "talk"), Session("bob", "talk")


class World:
    """Two sessions of two chunks, done by the project's own code, and what was uploaded."""

    def __init__(self) -> None:
        self.store = MemoryStore()
        self.uploads: list[Upload] = []
        self.messages: list[str] = []
        for session in (ANN, BOB):
            for number in (1, 2):
                self.record(session, number, f"{session.user} says {number}")
                self.transcribe(session, number)
            self.upload(session.manifest_key, b'{"chunkCount": 2}', None)
            self.combine(session)

    def upload(self, key: str, body: bytes, says: str | None) -> Upload:
        upload = Upload(key, self.store.upload(key, body), body, says)
        self.uploads.append(upload)
        return upload

    def record(self, session: Session, number: int, says: str) -> Upload:
        return self.upload(f"{session.audio_prefix}chunk-{number}.webm", says.encode(), says)

    def newest(self, session: Session, number: int) -> Upload:
        key = f"{session.audio_prefix}chunk-{number}.webm"
        return next(upload for upload in reversed(self.uploads) if upload.key == key)

    def job(self, session: Session, number: int) -> Job:
        upload = self.newest(session, number)
        return Job(bucket=self.store.bucket, key=upload.key, etag=upload.etag)

    def transcribe(self, session: Session, number: int, *, says: str | None = None, stitched: bool = False) -> None:
        job = self.job(session, number)
        text = says or self.newest(session, number).says or ""
        self.store.upload(job.output_key, transcript_for(job, text, stitched=stitched).to_json())

    def fail(self, session: Session, number: int) -> None:
        record_failure(self.store, self.job(session, number), PermanentError("no audio", type="media-empty"))

    def queue(self, session: Session, number: int) -> None:
        self.messages.append(JobMessage.of(self.job(session, number), Reason.FAILED).to_json())

    def combine(self, session: Session) -> None:
        Combiner(self.store, lambda event: None).combine(session)

    def body(self, key: str) -> bytes:
        return self.store.objects[key][0]

    def found(self) -> Found:
        objects = {key: StoredObject(body, info.etag) for key, (body, info) in self.store.objects.items()}
        return Found(self.store.bucket, objects, self.messages)

    def wrong(self) -> str:
        return "\n".join(violations(self.found(), self.uploads))


@pytest.fixture
def world() -> World:
    return World()


def test_a_system_at_rest_is_well(world: World) -> None:
    assert world.wrong() == ""
    assert transcribed(world.found(), world.uploads) == 4


def _lost(world: World) -> None:
    world.store.delete(world.job(ANN, 1).output_key)


def _outdated(world: World) -> None:
    world.record(ANN, 1, "ann says something else")


def _only_unreadable(world: World) -> None:
    _lost(world)
    world.messages.append(json.dumps({"key": world.job(ANN, 1).key}))


def _message_of_the_old_version(world: World) -> None:
    world.queue(ANN, 1)
    _outdated(world)


def _queued_too(world: World) -> None:
    world.queue(BOB, 2)


def _strange_key(world: World) -> None:
    world.store.upload("users/ann/transcripts/talk-chunk-3.json", b"{}")


def _foreign_words(world: World) -> None:
    world.transcribe(ANN, 1, says="bob says 1")
    world.combine(ANN)


def _foreign_source(world: World) -> None:
    body = transcript_for(world.job(BOB, 1), "bob says 1").to_json()
    world.store.upload(world.job(ANN, 1).output_key, body)


def _never_uploaded(world: World) -> None:
    job = world.job(ANN, 2).model_copy(update={"etag": "made-up"})
    world.store.upload(job.output_key, transcript_for(job, "ann says 2").to_json())


def _not_combined(world: World) -> None:
    world.store.delete(ANN.output_key)


def _stale_session(world: World) -> None:
    world.record(ANN, 2, "ann says two")
    world.transcribe(ANN, 2)


def _stale_subtitles(world: World) -> None:
    world.store.upload(ANN.derived_key("srt"), world.body(BOB.derived_key("srt")))


def _another_s_session(world: World) -> None:
    world.store.upload(ANN.output_key, world.body(BOB.output_key))


def _foreign_segments(world: World) -> None:
    document = json.loads(world.body(world.job(ANN, 1).output_key))
    document["segments"] = json.loads(world.body(world.job(BOB, 1).output_key))["segments"]
    world.store.upload(world.job(ANN, 1).output_key, json.dumps(document).encode())


def _foreign_segment_text(world: World) -> None:
    document = json.loads(world.body(world.job(ANN, 1).output_key))
    document["segments"][0]["text"] = "bob says 1"
    world.store.upload(world.job(ANN, 1).output_key, json.dumps(document).encode())


def _session_of_an_open_one(world: World) -> None:
    world.uploads = [upload for upload in world.uploads if upload.key != ANN.manifest_key]
    world.store.delete(ANN.manifest_key)


def _subtitles_alone(world: World) -> None:
    _session_of_an_open_one(world)
    world.store.delete(ANN.output_key)


def _bad_manifest_passed_over(world: World) -> None:
    world.upload(ANN.manifest_key, b"{}", None)


def _good_manifest_blamed(world: World) -> None:
    manifest = next(upload for upload in world.uploads if upload.key == ANN.manifest_key)
    source = {"bucket": world.store.bucket, "key": manifest.key, "etag": manifest.etag}
    record = {"type": "bad-manifest", "message": "", "source": source, "attempts": 1, "created_at": 0}
    world.store.upload(ANN.error_key, json.dumps(record).encode())


def _unreadable_record(world: World) -> None:
    world.store.upload(ANN.error_key, b"garbage")


def _unreadable_report(world: World) -> None:
    world.store.upload("reports/batch/2026-11-26.json", b"garbage")


def _upload_gone(world: World) -> None:
    world.store.upload(world.job(ANN, 1).key, b"something else")


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (_lost, "chunk-1.webm: lost"),
        (_outdated, "chunk-1.webm: lost"),
        (_only_unreadable, "chunk-1.webm: lost"),
        (_message_of_the_old_version, "chunk-1.webm: lost"),
        (_queued_too, "in 2 places"),
        (_strange_key, "nothing that was uploaded has its result there"),
        (_foreign_words, "says 'bob says 1', its audio 'ann says 1'"),
        (_foreign_source, "whose place is another"),
        (_never_uploaded, "which never existed"),
        (_not_combined, "the session is complete, and this is missing"),
        (_stale_session, "is not what its chunks make"),
        (_stale_subtitles, "talk.srt: is not what its chunks make"),
        (_another_s_session, "or is another's"),
        (_foreign_segments, "says 'bob says 1', its audio 'ann says 1'"),
        (_foreign_segment_text, "says 'bob says 1', its audio 'ann says 1'"),
        (_session_of_an_open_one, "never existed"),
        (_subtitles_alone, "talk.srt: there is no session transcript"),
        (_bad_manifest_passed_over, "nothing tells that the manifest is bad"),
        (_good_manifest_blamed, "its manifest is well"),
        (_unreadable_record, "talk.error.json: nobody can read it"),
        (_unreadable_report, "is no report"),
        (_upload_gone, "the upload itself is not what it was"),
    ],
)
def test_each_violation_is_seen(world: World, harm: Callable[[World], None], words: str) -> None:
    harm(world)
    assert words in world.wrong()


def test_a_bad_manifest_with_its_record_is_well(world: World) -> None:
    world.upload(ANN.manifest_key, b"{}", None)
    world.combine(ANN)
    assert world.wrong() == ""


def test_a_recorded_failure_or_a_message_accounts_for_a_chunk(world: World) -> None:
    """The message also for its session, which whoever has it completes."""
    for number, account in ((1, world.fail), (2, world.queue)):
        world.record(ANN, number, f"ann says {number} again")
        account(ANN, number)
    assert world.wrong() == ""
    assert transcribed(world.found(), world.uploads) == 2


def test_a_session_with_other_chunks_than_its_manifest_names_is_wrong_at_any_instant(world: World) -> None:
    document = json.loads(world.body(ANN.output_key))
    del document["source"]["chunks"][1]
    wrong = "\n".join(wrong_session(ANN.output_key, json.dumps(document).encode(), world.uploads))
    assert "has the chunks [1]" in wrong
    assert "says 'ann says 1 ann says 2'" in wrong


def test_going_back_to_an_older_version_is_seen(world: World) -> None:
    key = world.job(ANN, 1).output_key
    before = {name: world.body(name) for name in (key, ANN.output_key)}
    world.record(ANN, 1, "ann again")
    world.transcribe(ANN, 1)
    world.combine(ANN)
    for name, old in before.items():
        new = world.body(name)
        assert list(regressions(name, old, new, world.uploads)) == []
        (wrong,) = regressions(name, new, old, world.uploads)
        assert "went back to an older version" in wrong


def test_a_live_transcript_over_a_stitched_one_is_seen(world: World) -> None:
    key = world.job(ANN, 1).output_key
    live = world.body(key)
    world.transcribe(ANN, 1, stitched=True)
    stitched = world.body(key)
    assert list(regressions(key, live, stitched, world.uploads)) == []
    assert len(list(regressions(key, stitched, live, world.uploads))) == 1


def test_a_record_beside_the_transcript_of_its_version_says_nothing(world: World) -> None:
    job = world.job(ANN, 1)
    transcript = world.body(job.output_key)
    world.store.delete(job.output_key)
    world.fail(ANN, 1)
    world.store.upload(job.output_key, transcript)
    assert world.wrong() == ""


def test_a_record_for_want_of_a_header_falls_when_the_header_comes(world: World) -> None:
    world.store.delete(world.job(ANN, 2).output_key)
    record_failure(world.store, world.job(ANN, 2), PermanentError("no header", type="media-header-missing"))
    world.combine(ANN)
    assert world.wrong() == ""
    world.record(ANN, 1, "ann says one")
    world.transcribe(ANN, 1)
    assert outcome(world.found(), world.newest(ANN, 2)) is None
    assert "chunk-2.webm: lost" in world.wrong()


def rival(world: World, says: str) -> Job:
    """A newer object with the number of Ann's first chunk, which has no job yet."""
    upload = world.upload(f"{ANN.audio_prefix}chunk-1.mp3", says.encode(), says)
    return Job(bucket=world.store.bucket, key=upload.key, etag=upload.etag)


def test_of_two_objects_with_one_number_the_newer_counts(world: World) -> None:
    old, new = world.job(ANN, 1), rival(world, "ann says one")
    world.store.upload(new.output_key, transcript_for(new, "ann says one").to_json())
    record_failure(world.store, old, duplicate_chunk(new.key))
    assert "talk.json: is not what its chunks make" in world.wrong()
    world.combine(ANN)
    assert world.wrong() == ""


def test_the_older_of_two_objects_with_one_number_does_not_count(world: World) -> None:
    new = rival(world, "")
    record_failure(world.store, new, PermanentError("no audio", type="media-empty"))
    assert "talk.json: is not what its chunks make" in world.wrong()


def test_the_older_one_needs_no_record_where_the_newer_has_its_own(world: World) -> None:
    old, new = world.job(ANN, 1), rival(world, "")
    world.store.delete(old.output_key)
    assert "chunk-1.webm: lost" in world.wrong()
    record_failure(world.store, new, PermanentError("no audio", type="media-empty"))
    world.combine(ANN)
    assert world.wrong() == ""


def test_going_back_to_the_older_of_two_objects_with_one_number_is_seen(world: World) -> None:
    new = rival(world, "ann says one")
    old, newer = world.body(new.output_key), transcript_for(new, "ann says one").to_json()
    assert list(regressions(new.output_key, old, newer, world.uploads)) == []
    assert ["went back" in wrong for wrong in regressions(new.output_key, newer, old, world.uploads)] == [True]


def written(world: World) -> dict[Version, bytes]:
    """What lies there, in the order in which it was."""
    objects = sorted(world.store.objects.values(), key=lambda stored: stored[1].last_modified)
    return {(info.key, info.etag): body for body, info in objects}


def wrong_at(world: World, key: str, body: bytes, *, replaced: str = "") -> str:
    return "\n".join(wrong_write(key, body, world.uploads, written(world), replaced=replaced))


def test_all_that_our_programs_write_is_judged(world: World) -> None:
    recording = world.upload("calls/a.wav", b"hello", "hello")
    job = Job(bucket=world.store.bucket, key=recording.key, etag=recording.etag)
    world.store.upload(job.output_key, transcript_for(job, "hello").to_json())
    outputs = set(world.store.objects) - {upload.key for upload in world.uploads}
    assert {key.rpartition(".")[2] for key in outputs} == {"json", "srt", "vtt", "txt"}
    for key in outputs:
        assert wrong_at(world, key, world.body(key)) == ""
        assert wrong_at(world, key, world.body(key).replace(b"says", b"sighs").replace(b"hello", b"bye")) != ""
    assert "nothing that was uploaded" in wrong_at(world, "users/eve/transcripts/talk.json", b"{}")
    assert "is no report" in wrong_at(world, "reports/batch/2026-11-26.json", b"{}")


@pytest.mark.parametrize("extension", ["srt", "vtt", "txt"])
def test_subtitles_have_all_chunks_in_their_order(world: World, extension: str) -> None:
    key = ANN.derived_key(extension)
    body = world.body(key)
    assert wrong_at(world, key, body.replace(b"1", b"3").replace(b"2", b"1").replace(b"3", b"2")) != ""
    assert wrong_at(world, key, body.replace(b"ann says 2", b"")) != ""
    world.store.delete(world.job(ANN, 2).output_key)
    world.fail(ANN, 2)
    assert wrong_at(world, key, body.replace(b"ann says 2", b"")) == ""


def test_a_session_whose_chunks_changed_places_is_wrong(world: World) -> None:
    document = json.loads(world.body(ANN.output_key))
    one, two = document["source"]["chunks"]
    document["source"]["chunks"] = [two | {"index": 1}, one | {"index": 2}]
    assert "chunk-2.webm as chunk 1" in wrong_at(world, ANN.output_key, json.dumps(document).encode())


def test_a_session_names_what_was_written_for_each_chunk_and_how_it_ended(world: World) -> None:
    document = json.loads(world.body(ANN.output_key))
    entry = document["source"]["chunks"][0]
    made_up = document | {"source": document["source"] | {"chunks": [entry | {"outcome_etag": "made-up"}]}}
    assert "that was never written" in wrong_at(world, ANN.output_key, json.dumps(made_up).encode())
    entry["status"] = "failed"
    assert "is failed by" in wrong_at(world, ANN.output_key, json.dumps(document).encode())


def test_a_session_does_not_say_that_a_chunk_failed_whose_transcript_was_there(world: World) -> None:
    """Not so when the transcript may have come after the session's maker looked."""
    job = world.job(ANN, 1)
    transcript = world.body(job.output_key)
    world.store.delete(job.output_key)
    world.fail(ANN, 1)
    world.combine(ANN)
    session = world.store.objects[ANN.output_key]
    world.store.upload(job.output_key, transcript)  # after all
    assert wrong_at(world, ANN.output_key, session[0]) == ""
    world.upload(ANN.manifest_key, b'{"chunkCount":2}', None)
    world.combine(ANN)
    assert "chunk 1 failed, which had" in wrong_at(
        world, ANN.output_key, session[0], replaced=world.store.objects[ANN.output_key][1].etag
    )
