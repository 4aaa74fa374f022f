"""The worker as a process: killed or stopped at the wrong moment, it loses nothing."""

import json
import os
import signal
from pathlib import Path

import pytest

from shared.jobs import Job, Reason
from shared.keys import Session
from shared.queues import Queue
from tests.integration.conftest import DATA, StartWorker, System
from tests.integration.overheard import Overheard
from tests.patience import eventually

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("empty_queues")]

LEASE_SECONDS = 10
LEASE = {"VISIBILITY_TIMEOUT": str(LEASE_SECONDS), "HEARTBEAT_INTERVAL": "1"}


def queue_session(system: System, session: Session, count: int) -> list[str]:
    """Chunks in S3 and their jobs in the queue, past the router: their uploads are no events of the server's."""
    system.local.stop_server()
    keys = system.upload(session, count=count)
    eventually(lambda: system.decided(keys), "a decision on each chunk")
    system.manifest(session, count)
    return keys


def transcriptions(log: str, keys: list[str]) -> int:
    """How many of these jobs a worker did, one by one or together."""
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    lines = [line for line in lines if line.get("key") in keys]
    alone = sum(line.get("result") == "transcribed" for line in lines)
    return alone + sum(line["results"].get("transcribed", 0) for line in lines if "results" in line)


def test_a_worker_killed_in_the_middle_hides_its_jobs_for_one_visibility_timeout_only(
    system: System, start_worker: StartWorker, tmp_path: Path
) -> None:
    session = Session("u", "killed worker")
    keys = queue_session(system, session, 4)
    system.local.start_server()
    system.local.await_server()
    worker = start_worker(tmp_path / "first.log", **LEASE)
    eventually(lambda: system.get(f"{session.transcript_prefix}001.json"), "the first transcript")
    worker.send_signal(signal.SIGKILL)
    worker.wait()
    second = start_worker(tmp_path / "second.log", "--until-empty", **LEASE)
    assert second.wait(timeout=90) == 0  # less than the default timeout
    transcript = system.transcript(session)
    assert transcript is not None
    assert len(transcript.source.chunks) == len(keys)  # type: ignore[union-attr]
    assert system.depth() == 0


def test_leases_are_renewed_while_a_long_job_runs(system: System, start_worker: StartWorker, tmp_path: Path) -> None:
    """The server stands still until the renewals have spanned more than one lease: no message came again."""
    session = Session("u", "long job")
    keys = queue_session(system, session, 6)
    system.local.start_server()
    system.local.await_server()
    server = system.local._state().server_pid
    log = tmp_path / "worker.log"
    with (
        Overheard(system.settings["FAST_API_SERVER_URL"]) as way,
        Overheard(system.settings["AWS_ENDPOINT_URL"]) as aws,
    ):
        way.on(b"POST ", call=lambda: os.kill(server, signal.SIGSTOP))
        ways = {"FAST_API_SERVER_URL": way.url, "AWS_ENDPOINT_URL": aws.url}
        worker = start_worker(log, "--until-empty", WORKER_CONCURRENCY="6", **LEASE, **ways)
        try:
            rounds = LEASE_SECONDS + 1  # one each second
            eventually(lambda: aws.times(b".ChangeMessageVisibility") > rounds * len(keys), "renewals of each message")
        finally:
            os.kill(server, signal.SIGCONT)
        assert worker.wait(timeout=90) == 0
        assert way.times(b"POST ") == 1
    assert system.transcript(session) is not None
    assert transcriptions(log.read_text(), keys) == len(keys)


def test_a_worker_that_is_told_to_stop_gives_back_what_it_has_not_done(
    system: System, start_worker: StartWorker, tmp_path: Path
) -> None:
    session = Session("u", "stopped worker")
    queue_session(system, session, 6)
    system.local.start_server()
    system.local.await_server()
    log = tmp_path / "worker.log"
    worker = start_worker(log, WORKER_CONCURRENCY="2", DRAIN_TIMEOUT="20")
    eventually(lambda: system.get(f"{session.transcript_prefix}001.json"), "the first transcript")
    worker.send_signal(signal.SIGTERM)
    assert worker.wait(timeout=60) == 0
    names = ["ApproximateNumberOfMessagesNotVisible"]
    url = system.settings["SQS_QUEUE_URL"]
    hidden = system.sqs.get_queue_attributes(QueueUrl=url, AttributeNames=names)["Attributes"][names[0]]
    assert hidden == "0"
    assert system.local.work() == 0
    assert system.transcript(session) is not None


def test_two_workers_share_a_queue(system: System, start_worker: StartWorker, tmp_path: Path) -> None:
    session = Session("u", "two workers")
    keys = queue_session(system, session, 6)
    system.local.start_server()
    system.local.await_server()
    logs = [tmp_path / "one.log", tmp_path / "two.log"]
    workers = [start_worker(log, "--until-empty", WORKER_CONCURRENCY="2") for log in logs]
    assert [worker.wait(timeout=90) for worker in workers] == [0, 0]
    assert system.transcript(session) is not None
    assert sum(transcriptions(log.read_text(), keys) for log in logs) == len(keys)


def test_a_poison_message_is_parked_and_the_rest_goes_on(system: System) -> None:
    session = Session("u", "beside poison")
    queue_session(system, session, 1)
    queue = Queue(system.sqs, system.settings["SQS_QUEUE_URL"])
    queue.send_raw('{"version": 99, "job_id": "x"}')
    gone = Job(bucket=system.settings["AUDIO_BUCKET"], key="calls/gone.mp3", etag="e")
    queue.send(gone, Reason.FAILED)
    assert system.local.work() == 0
    assert system.transcript(session) is not None
    assert system.depth("SQS_DLQ_URL") == 1
    system.sqs.purge_queue(QueueUrl=system.settings["SQS_DLQ_URL"])
    record = json.loads(system.get("transcripts/calls/gone.mp3.error.json") or b"{}")
    assert record["type"] == "source-missing"


def test_a_server_that_is_told_to_stop_finishes_what_it_has_taken(server: System) -> None:
    session = Session("u", "stopped server")
    key = server.upload(session, count=1)[0]
    eventually(lambda: server.get(f"{session.transcript_prefix}001.json"), "a warm server")
    job = f"s3://{server.settings['AUDIO_BUCKET']}/{key.replace('001', '002')}"
    server.put(key.replace("001", "002"), (DATA / "session-a/chunk-002.webm").read_bytes())
    os.kill(server.local._state().server_pid, signal.SIGTERM)
    server.local.stop_server()
    assert server.local.work() == 0
    assert server.get(f"{session.transcript_prefix}002.json"), job
