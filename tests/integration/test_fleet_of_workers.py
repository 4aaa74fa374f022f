"""Several workers at one queue, and instances of a group: killed, interrupted and scaled in, they lose nothing."""

import contextlib
import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from batch_worker.notices import MARGIN_SECONDS
from cli.local import QUEUE_PREFIX, REGION
from shared.jobs import Job, Reason
from shared.keys import Session
from shared.queues import Queue
from shared.server import Limits, Said, ServerClient
from tests.imds import FakeImds
from tests.integration.conftest import StartWorker, System
from tests.integration.overheard import Overheard
from tests.integration.test_worker_process import LEASE, transcriptions
from tests.patience import PATIENCE_SECONDS, eventually

pytestmark = [pytest.mark.integration, pytest.mark.usefixtures("empty_queues")]

GROUP = f"{QUEUE_PREFIX}-gpu"
REQUEST_SECONDS = 0.3
SEED = 5


@pytest.fixture(scope="module", autouse=True)
def no_events(system: System) -> Iterator[None]:
    """Uploads are no events here: the server stays on, and the router does not do the workers' jobs."""
    events, rule = system.local.client("events"), f"{QUEUE_PREFIX}-uploads"
    events.disable_rule(Name=rule)
    system.local.start_server()
    system.local.await_server()
    yield
    events.enable_rule(Name=rule)


def queue_session(system: System, session: Session, count: int) -> list[str]:
    """A whole session in S3, and jobs for its chunks in the queue."""
    keys = system.upload(session, count=count)
    system.manifest(session, count)
    queue, bucket = Queue(system.sqs, system.settings["SQS_QUEUE_URL"]), system.settings["AUDIO_BUCKET"]
    for key in keys:
        etag = system.s3.head_object(Bucket=bucket, Key=key)["ETag"].strip('"')
        queue.send(Job(bucket=bucket, key=key, etag=etag), Reason.FAILED)
    return keys


def messages(system: System) -> tuple[int, int]:
    """How many are visible, and how many are in somebody's hands."""
    backlog = Queue(system.sqs, system.settings["SQS_QUEUE_URL"]).backlog()
    return backlog.visible, backlog.in_flight


def transcripts(system: System, session: Session) -> int:
    listed = system.s3.list_objects_v2(Bucket=system.settings["AUDIO_BUCKET"], Prefix=session.transcript_prefix)
    return int(listed["KeyCount"])


def test_three_workers_do_each_job_once(system: System, start_worker: StartWorker, tmp_path: Path) -> None:
    """And all three sweep the bucket when the queue is empty: a chunk whose message was lost is done all the same."""
    lost = queue_session(system, Session("u", "lost in the fleet"), 1)
    queue = Queue(system.sqs, system.settings["SQS_QUEUE_URL"])
    (message,) = queue.receive(most=10, wait=1, visibility=60)
    queue.delete(message)
    sessions = [Session("u", f"fleet {number}") for number in range(3)]
    keys = [key for session in sessions for key in queue_session(system, session, 5)]
    logs = [tmp_path / f"{number}.log" for number in range(3)]
    settings = {"GROUP_MESSAGES": "3", "WORKER_CONCURRENCY": "2", "SESSION_FINISH": "combine"}
    workers = [start_worker(log, "--until-empty", **settings) for log in logs]
    assert [worker.wait(timeout=120) for worker in workers] == [0, 0, 0]
    assert all(system.transcript(session) for session in sessions)
    assert system.get("users/u/transcripts/lost in the fleet-chunk-001.json")
    texts = [log.read_text() for log in logs]
    assert sum(transcriptions(text, keys) for text in texts) == len(keys)
    assert 1 <= sum(transcriptions(text, lost) for text in texts) <= len(workers)  # found at once by all, at the worst
    assert system.depth() == 0


def test_workers_that_are_killed_at_any_moment_lose_nothing(
    system: System, start_worker: StartWorker, tmp_path: Path
) -> None:
    session = Session("u", "killing")
    count = 10
    queue_session(system, session, count)
    moments = random.Random(SEED)
    for round in range(4):
        log = tmp_path / f"{round}.log"
        worker = start_worker(log, GROUP_MESSAGES="2", WORKER_CONCURRENCY="1", **LEASE)
        eventually(lambda: messages(system)[1] or messages(system)[0] == 0, "a message in the worker's hands")
        time.sleep(moments.uniform(0, 1.5))  # the moment itself
        worker.send_signal(signal.SIGKILL)
        worker.wait()
        eventually(lambda: messages(system)[1] == 0, "all messages are visible again", seconds=60)  # by default: 120
    assert start_worker(tmp_path / "last.log", "--until-empty").wait(timeout=120) == 0
    transcript = system.transcript(session)
    assert transcript is not None
    assert len(transcript.source.chunks) == count  # type: ignore[union-attr]
    assert system.depth() == system.depth("SQS_DLQ_URL") == 0


def interruption(*, seconds_to_work: float) -> str:
    end = datetime.now(UTC) + timedelta(seconds=MARGIN_SECONDS + seconds_to_work)
    return json.dumps({"action": "terminate", "time": end.strftime("%Y-%m-%dT%H:%M:%SZ")})


def metadata(instance: str) -> dict[str, str]:
    return {"instance-id": instance, "instance-type": "g5.xlarge", "instance-life-cycle": "spot"}


@pytest.mark.parametrize("finishes", [True, False])
def test_before_a_spot_interruption_a_worker_ends_what_it_can_and_hands_back_the_rest(
    system: System, start_worker: StartWorker, tmp_path: Path, finishes: bool
) -> None:
    session = Session("u", f"interrupted {finishes}")
    queue_session(system, session, 6)
    server = system.local._state().server_pid
    log = tmp_path / "log"
    stopped = threading.Event()

    def stop() -> None:
        os.kill(server, signal.SIGSTOP)
        stopped.set()

    with FakeImds(**metadata("i-0123")) as imds, Overheard(system.settings["FAST_API_SERVER_URL"]) as way:
        way.on(b"POST /transcribe-session", call=stop)
        settings = {"IMDS_ENDPOINT": imds.url, "FAST_API_SERVER_URL": way.url}
        settings |= {"GROUP_MESSAGES": "2", "WORKER_CONCURRENCY": "1"}
        worker = start_worker(log, "--until-idle", **settings)
        try:
            eventually(lambda: messages(system) == (4, 2), "two messages in the worker's hands")
            assert stopped.wait(PATIENCE_SECONDS)
            imds.items["spot/instance-action"] = interruption(seconds_to_work=60 if finishes else 2)
            eventually(lambda: '"kind":"interruption"' in log.read_text(), "the notice was seen")
            if finishes:
                os.kill(server, signal.SIGCONT)
            assert worker.wait(timeout=120) == 0
            done = 2 if finishes else 0
            assert messages(system) == (6 - done, 0)
            assert transcripts(system, session) == done
        finally:
            os.kill(server, signal.SIGCONT)
    assert start_worker(tmp_path / "last.log", "--until-empty").wait(timeout=120) == 0
    assert system.transcript(session) is not None


# An Auto Scaling group -----------------------------------------------------------------------------------------------


@pytest.fixture
def group(system: System) -> Iterator[Any]:
    """Auto Scaling's client, for a group of two instances, one of which is at work on something else."""
    ec2, scaling = system.local.client("ec2"), system.local.client("autoscaling")
    template = {"ImageId": ec2.describe_images()["Images"][0]["ImageId"], "InstanceType": "g5.xlarge"}
    ec2.create_launch_template(LaunchTemplateName=GROUP, LaunchTemplateData=template)
    scaling.create_auto_scaling_group(
        AutoScalingGroupName=GROUP,
        MinSize=0,
        MaxSize=2,
        DesiredCapacity=2,
        AvailabilityZones=[f"{REGION}a"],
        LaunchTemplate={"LaunchTemplateName": GROUP},
    )
    yield scaling
    scaling.delete_auto_scaling_group(AutoScalingGroupName=GROUP, ForceDelete=True)
    ec2.delete_launch_template(LaunchTemplateName=GROUP)


def state_of(scaling: Any) -> tuple[int, dict[str, bool]]:
    """Its desired capacity, and for each instance whether it is protected."""
    (found,) = scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[GROUP])["AutoScalingGroups"]
    return found["DesiredCapacity"], {one["InstanceId"]: one["ProtectedFromScaleIn"] for one in found["Instances"]}


@contextlib.contextmanager
def requests_all_the_time(system: System) -> Iterator[None]:
    """As the router's, each answered at once: the chunk that they ask for has its transcript."""
    (key,) = system.upload(Session("u", "round the clock"), count=1)
    bucket = system.settings["AUDIO_BUCKET"]
    job = Job(bucket=bucket, key=key, etag=system.s3.head_object(Bucket=bucket, Key=key)["ETag"].strip('"'))
    server = ServerClient(system.settings["FAST_API_SERVER_URL"], api_key=system.settings["API_KEY"])
    over = threading.Event()
    said: list[Said] = []

    def ask() -> None:
        while not over.wait(REQUEST_SECONDS):
            said.append(server.transcribe(job, Limits(connect=5, total=60), route="direct").said)

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        yield
    finally:
        over.set()
        asking.join()
    assert set(said) == {Said.DONE}


LAST_LOOK = (b"Action=SetInstanceProtection", b"ProtectedFromScaleIn=false")
END = (b"Action=TerminateInstanceInAutoScalingGroup",)


@pytest.mark.parametrize("surplus", [False, True])
@pytest.mark.parametrize("moment", [LAST_LOOK, END])
def test_a_job_that_comes_while_an_instance_ends_itself_is_not_lost(
    system: System,
    start_worker: StartWorker,
    group: Any,
    tmp_path: Path,
    moment: tuple[bytes, ...],
    surplus: bool,
) -> None:
    """Before its last look it stays and does it; after that the job waits in the queue for the next worker.

    It ends because it is idle; or, `surplus`, because the other one comes before it, though it is never idle.
    """
    mine, other = sorted(state_of(group)[1], reverse=surplus)
    group.set_instance_protection(AutoScalingGroupName=GROUP, InstanceIds=[other], ProtectedFromScaleIn=True)
    session = Session("u", f"scaled in {moment == END} {surplus}")
    queue_session(system, session, 1)
    queue = Queue(system.sqs, system.settings["SQS_QUEUE_URL"])
    (job,) = queue.receive(most=1, wait=1, visibility=600)  # the other instance has it, and gives it back just then
    protected: list[bool] = []

    def give_back() -> None:
        protected.append(state_of(group)[1][mine])
        queue.extend(job, 0)

    with (
        FakeImds(**metadata(mine)) as imds,
        Overheard(system.settings["AWS_ENDPOINT_URL"]) as way,
        requests_all_the_time(system) if surplus else contextlib.nullcontext(),
    ):
        way.on(*moment, call=give_back)
        settings = {"IMDS_ENDPOINT": imds.url, "AWS_ENDPOINT_URL": way.url}
        settings["IDLE_TIMEOUT_MINUTES"] = "0.25" if surplus else "0.05"  # it must see a request in each
        worker = start_worker(tmp_path / "log", "--until-idle", **settings)
        assert worker.wait(timeout=120) == 0
    assert ('"message":"surplus"' in (tmp_path / "log").read_text()) == surplus
    assert protected == [moment == LAST_LOOK]
    assert messages(system) == ((1, 0) if moment == END else (0, 0))
    assert (system.transcript(session) is None) == (moment == END)
    assert state_of(group) == (1, {other: True})
    assert start_worker(tmp_path / "last.log", "--until-empty").wait(timeout=120) == 0
    assert system.transcript(session) is not None
