"""The main job with nothing replaced: real events, the real Lambda zip, the real server, real speech."""

import itertools
import json
import os
import signal
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any

import jiwer
import pytest

from cli.demo import NORMALIZE
from cli.local import BUCKET
from shared.keys import Session
from shared.transcript import SessionRef, Transcript
from tests.gpu_server import media
from tests.integration.conftest import DATA, System
from tests.patience import eventually

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("empty_queues")]
numbers = itertools.count(1)


@pytest.fixture
def session(request: pytest.FixtureRequest) -> Session:
    """A session of the test's own, with an id such as people choose."""
    return Session("ann+bob@example.com", f"{request.node.name[:40]} {next(numbers)}")


def wer(text: str, sample: str) -> float:
    said = " ".join((DATA / sample / "text.txt").read_text().split())
    return float(jiwer.wer(said, text, NORMALIZE, NORMALIZE))


def passes(system: System, session: Session, count: int) -> set[str | None]:
    """How the chunks of a session were heard: `live`, `stitched`, or None without a transcript."""
    bodies = [system.get(f"{session.transcript_prefix}{number:03}.json") for number in range(1, count + 1)]
    return {json.loads(body)["pass"] if body else None for body in bodies}


def test_a_recording_is_transcribed_while_the_server_is_on(server: System, session: Session) -> None:
    keys = server.upload(session)
    server.manifest(session, len(keys))
    transcript = eventually(lambda: server.transcript(session), "the session transcript")
    assert wer(transcript.text, "session-a") <= 0.15
    assert transcript.gaps == ()
    assert isinstance(transcript.source, SessionRef)
    assert [chunk.key for chunk in transcript.source.chunks] == keys
    words = [word for segment in transcript.segments for word in segment.words]
    assert all(one.start <= one.end <= transcript.duration for one in words)
    bodies = [server.get(f"{session.transcript_prefix}{number:03}.json") for number in range(1, len(keys) + 1)]
    assert {json.loads(body)["route"] for body in bodies if body} == {"direct"}
    for extension in ("srt", "vtt", "txt"):
        assert server.get(session.derived_key(extension))


@pytest.mark.parametrize("manifest_last", [False, True])
def test_a_session_that_came_chunk_by_chunk_is_heard_again_as_a_whole(
    server: System, session: Session, manifest_last: bool
) -> None:
    """The server does it when its last chunk completes the session, the router when the manifest does."""
    if not manifest_last:
        server.manifest(session, 4)
    server.upload(session, count=4)
    eventually(lambda: None not in passes(server, session, 4), "every transcript")
    if manifest_last:
        assert passes(server, session, 4) == {"live"}
        server.manifest(session, 4)
    eventually(lambda: passes(server, session, 4) == {"stitched"}, "the stitched pass")
    etags = {key: server.s3.head_object(Bucket=BUCKET, Key=key)["ETag"].strip('"') for key in outputs(session, 4)}
    transcript = eventually(lambda: made_from(server.transcript(session), set(etags.values())), "the better transcript")
    assert "our little garden" in transcript.text


def outputs(session: Session, count: int) -> list[str]:
    return [f"{session.transcript_prefix}{number:03}.json" for number in range(1, count + 1)]


def made_from(transcript: Transcript | None, etags: set[str]) -> Transcript | None:
    """The session transcript, once it is made from these chunk transcripts."""
    source = transcript.source if transcript else None
    made = isinstance(source, SessionRef) and {chunk.outcome_etag for chunk in source.chunks} == etags
    return transcript if made else None


def test_what_comes_while_the_server_is_off_waits_in_the_queue_for_the_worker(
    no_server: System, session: Session
) -> None:
    keys = no_server.upload(session, "session-b")
    no_server.manifest(session, len(keys))
    decided = eventually(lambda: no_server.decided(keys), "a decision on each chunk")
    assert set(decided.values()) == {"queued"}
    assert no_server.local.work() == 0
    transcript = no_server.transcript(session)
    assert transcript is not None
    assert wer(transcript.text, "session-b") <= 0.05  # heard together: nothing is cut
    assert passes(no_server, session, len(keys)) == {"stitched"}
    assert no_server.depth() == no_server.depth("SQS_DLQ_URL") == no_server.depth("SQS_FAILURES_QUEUE_URL") == 0


def test_a_server_killed_in_the_middle_loses_nothing(server: System, session: Session) -> None:
    keys = server.upload(session, count=4)
    eventually(lambda: server.get(f"{session.transcript_prefix}001.json"), "the first transcript")
    os.kill(server.local._state().server_pid, signal.SIGKILL)
    keys += [server.upload(session)[-1]]
    server.manifest(session, 5)
    chunks = sorted((DATA / "session-a").glob("chunk-*.webm"))
    for number in range(5, len(chunks) + 1):  # a producer that goes on
        server.put(f"{session.audio_prefix}{chunks[number - 1].name}", chunks[number - 1].read_bytes())
    server.manifest(session, len(chunks))
    all_keys = [session.audio_prefix + chunk.name for chunk in chunks]
    eventually(lambda: server.decided(all_keys), "a decision on each chunk")
    assert server.local.work() == 0
    transcript = eventually(lambda: server.transcript(session), "the session transcript")
    assert isinstance(transcript.source, SessionRef)
    assert len(transcript.source.chunks) == len(chunks)
    assert wer(transcript.text, "session-a") <= 0.15


def test_a_chunk_recorded_again_rebuilds_its_session(server: System, session: Session) -> None:
    first = DATA / "session-a/chunk-001.webm"
    again = DATA / "session-b/chunk-001.webm"
    server.put(f"{session.audio_prefix}chunk-1.webm", first.read_bytes())
    server.manifest(session, 1)
    eventually(lambda: (t := server.transcript(session)) and "garden" in t.text, "the first version")
    server.put(f"{session.audio_prefix}chunk-1.webm", again.read_bytes())
    eventually(lambda: (t := server.transcript(session)) and "letter" in t.text, "the second version")


def test_a_browsers_timesliced_recording_that_comes_backwards_is_transcribed(server: System, session: Session) -> None:
    """Only chunk 1 has the header, and it comes last: the others wait in the queue until it is there."""
    parts = media.timeslices(media.recording_of(DATA / "session-b/whole.opus"), 8)
    keys = [f"{session.audio_prefix}chunk-{number}.webm" for number in range(len(parts), 0, -1)]
    for key, part in zip(keys, reversed(parts), strict=True):
        server.put(key, part)
        eventually(lambda key=key: server.decided([key]), "a decision on the chunk")
    server.manifest(session, len(parts))
    decided = server.decided(keys)
    assert decided is not None
    assert (decided[keys[0]], decided[keys[-1]]) == ("queued", "direct")
    assert server.local.work() == 0
    transcript = server.transcript(session)
    assert transcript is not None
    assert transcript.gaps == ()
    assert 45 < transcript.duration < 48
    assert wer(transcript.text, "session-b") <= 0.25  # words are cut at the chunks' edges


def test_any_other_audio_gets_a_transcript_under_its_own_key(server: System) -> None:
    key = "calls/Anruf für Ätna + 100%.wav"
    server.put(key, (DATA / "hello.wav").read_bytes())
    body = eventually(lambda: server.get(f"transcripts/{key}.json"), "the transcript")
    assert json.loads(body)["source"]["key"] == key


def test_a_complete_session_is_announced_on_the_bus(server: System, session: Session) -> None:
    events, queue_name = server.local.client("events"), "announcements"
    queue = server.sqs.create_queue(QueueName=queue_name)["QueueUrl"]
    arn = server.sqs.get_queue_attributes(QueueUrl=queue, AttributeNames=["QueueArn"])["Attributes"]["QueueArn"]
    events.put_rule(Name=queue_name, EventPattern=json.dumps({"source": ["transcription.router"]}))
    events.put_targets(Rule=queue_name, Targets=[{"Id": "queue", "Arn": arn}])
    try:
        server.upload(session, count=1)
        server.manifest(session, 1)

        def announced() -> dict[str, Any] | None:
            messages = server.sqs.receive_message(QueueUrl=queue, MaxNumberOfMessages=10).get("Messages", [])
            details = [json.loads(message["Body"])["detail"] for message in messages]
            return next((detail for detail in details if detail["session"] == session.id), None)

        detail = eventually(announced, "the event")
    finally:
        events.remove_targets(Rule=queue_name, Ids=["queue"])
        events.delete_rule(Name=queue_name)
        server.sqs.delete_queue(QueueUrl=queue)
    assert (detail["user"], detail["chunks"], detail["failed"]) == (session.user, 1, 0)
    assert detail["key"] == session.output_key
    assert detail["audio_seconds"]["direct"] > 3


class FailingServer:
    """A server in the real one's place that is healthy and answers every job with `status`."""

    def __init__(self, port: int, status: int, headers: dict[str, str]) -> None:
        bodies: list[str] = []

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self._answer(200, {})

            def do_POST(self) -> None:
                bodies.append(self.rfile.read(int(self.headers["Content-Length"])).decode())
                self._answer(status, headers)

            def _answer(self, status: int, headers: dict[str, str]) -> None:
                self.send_response(status)
                for name, value in {"Content-Length": "2", **headers}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(b"{}")

            def log_message(self, *arguments: object) -> None:
                pass

        self.bodies = bodies
        self._server = ThreadingHTTPServer(("127.0.0.1", port), Handler)

    def __enter__(self) -> "FailingServer":
        Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.mark.parametrize(
    ("status", "headers", "posts"), [(500, {}, 4), (429, {"Retry-After": "120"}, 1), (401, {}, 1), (200, {}, 4)]
)
def test_the_router_tries_a_failing_server_as_often_as_it_makes_sense(
    no_server: System, session: Session, status: int, headers: dict[str, str], posts: int
) -> None:
    port = int(no_server.settings["FAST_API_SERVER_URL"].rpartition(":")[2])
    with FailingServer(port, status, headers) as failing:
        keys = no_server.upload(session, count=1)
        decided = eventually(lambda: no_server.decided(keys), "a decision")
    assert decided == {keys[0]: "queued"}
    assert sum(keys[0] in body for body in failing.bodies) == posts  # the session before may still have its say
    assert no_server.local.work() == 0
    assert no_server.get(f"{session.transcript_prefix}001.json")


def test_an_event_that_nobody_can_read_ends_with_the_failures_and_a_person_finds_it(server: System) -> None:
    events = server.local.client("events")
    entry = {"Source": "audio.upload", "DetailType": "Audio Uploaded", "Detail": '{"s3Location": {"bucket": 7}}'}
    events.put_events(Entries=[entry])
    eventually(lambda: server.depth("SQS_FAILURES_QUEUE_URL"), "the failure record")
    assert server.local.work() == 0
    assert server.depth("SQS_FAILURES_QUEUE_URL") == 0
    assert server.depth("SQS_DLQ_URL") == 1
    url = server.settings["SQS_DLQ_URL"]
    letter = server.sqs.receive_message(QueueUrl=url, MessageAttributeNames=["All"], VisibilityTimeout=0)["Messages"][0]
    assert "s3Location" in letter["MessageAttributes"]["reason"]["StringValue"]
    server.sqs.purge_queue(QueueUrl=url)


def test_an_application_event_is_as_good_as_s3s(no_server: System, session: Session) -> None:
    key = f"{session.audio_prefix}chunk-1.webm"
    etag = no_server.put(key, (DATA / "session-a/chunk-001.webm").read_bytes())
    detail = {"s3Location": {"bucket": BUCKET, "key": key}, "force_batch": True, "userId": "someone else"}
    entry = {"Source": "custom.upload-service", "DetailType": "Audio Upload Completed", "Detail": json.dumps(detail)}
    no_server.local.client("events").put_events(Entries=[entry])
    reasons = eventually(
        lambda: {line["reason"] for line in no_server.decisions(key)} & {"the event asks for the batch"},
        "the forced decision",
    )
    assert reasons
    assert no_server.local.work() == 0
    stored = json.loads(no_server.get(f"{session.transcript_prefix}1.json") or b"{}")
    assert stored["source"]["etag"] == etag


def test_no_transcript_text_reaches_any_log(server: System, session: Session) -> None:
    server.upload(session, count=1)
    server.manifest(session, 1)
    transcript = eventually(lambda: server.transcript(session), "the session transcript")
    canary = max(transcript.text.split(), key=len)
    for log in (server.local.home / "log").glob("*.log"):
        assert canary not in log.read_text(), log.name
