"""The oracle sees each violation in a bucket that was broken by hand, and none in one that is well."""

import json
from collections.abc import Callable

import pytest

from shared.combine import Combiner
from shared.errors import PermanentError
from shared.jobs import Job, JobMessage, Reason
from shared.keys import Session
from shared.outcomes import record_failure
from shared.store import StoredObject
from tests.fakes import MemoryStore, transcript_for
from tests.faults.oracle import Found, Upload, regressions, transcribed, violations, wrong_session

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


def _failed_too(world: World) -> None:
    job = world.job(ANN, 1)
    transcript = world.body(job.output_key)
    world.store.delete(job.output_key)
    world.fail(ANN, 1)
    world.store.upload(job.output_key, transcript)


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
        (_failed_too, "in 2 places"),
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
