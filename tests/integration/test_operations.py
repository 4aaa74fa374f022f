"""An operator's commands as a person types them, against a local AWS, and the manual that names them."""

import csv
import gzip
import hashlib
import io
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import boto3
import pytest

from batch_worker.dead_letters import Look
from batch_worker.report import Day, Run, write
from infra.local import stack
from shared.jobs import Job, Reason
from shared.keys import Session
from shared.queues import Queue
from shared.store import S3Store
from tests.fakes import transcript_for
from tests.integration.conftest import System
from tests.patience import eventually

pytestmark = pytest.mark.integration

REGION = "us-east-2"
PREFIX = "ops"
BUCKET = "ops-audio"
PAGE = (stack.ROOT / "docs/operations.md").read_text()
SCRIPTS = stack.ROOT / "infra/scripts"
LETTER_QUEUES = ("SQS_DLQ_URL", "SQS_FAILURES_QUEUE_URL")


@dataclass
class Place:
    """A bucket, the three queues and a group, and nothing that works on them."""

    environment: dict[str, str]
    home: Path

    def client(self, service: str) -> Any:
        names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
        endpoint, key, secret = (self.environment[name] for name in names)
        session = boto3.Session(aws_access_key_id=key, aws_secret_access_key=secret, region_name=REGION)
        return session.client(service, endpoint_url=endpoint)  # type: ignore[call-overload]

    @property
    def store(self) -> S3Store:
        return S3Store(self.client("s3"), BUCKET)

    def queue(self, name: str = "SQS_QUEUE_URL") -> Queue:
        return Queue(self.client("sqs"), self.environment[name])

    def upload(self, key: str) -> Job:
        etag = str(self.client("s3").put_object(Bucket=BUCKET, Key=key, Body=key.encode())["ETag"]).strip('"')
        return Job(bucket=BUCKET, key=key, etag=etag, size=len(key))

    def transcribe(self, job: Job) -> None:
        self.client("s3").put_object(Bucket=BUCKET, Key=job.output_key, Body=transcript_for(job).to_json())

    def keys_in(self, name: str = "SQS_QUEUE_URL") -> list[str]:
        """The keys of a queue's jobs, which are taken out of it."""
        queue, keys = self.queue(name), []
        while messages := queue.receive(most=10, wait=0, visibility=60):
            for message in messages:
                keys.append(message.document()["key"])
                queue.delete(message)
        return keys

    def first_letter(self) -> str:
        """As much of its id as is listed."""
        with Look(self.queue("SQS_DLQ_URL")) as look:
            return next(iter(look)).message.id[:8]

    def depth(self, name: str = "SQS_QUEUE_URL") -> int:
        return self.queue(name).backlog().visible

    def cli(self, *arguments: str, status: int = 0) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "cli", *arguments],
            cwd=stack.ROOT, env=self.shell(), capture_output=True, text=True, check=False,
        )  # fmt: skip
        assert done.returncode == status, done.stdout + done.stderr
        return done.stdout + (done.stderr if status else "")

    def shell(self) -> dict[str, str]:
        settings = {"ENV_FILE": os.devnull, "LOCAL_HOME": str(self.home)}
        return {**stack.without_aws(os.environ), **self.environment, **settings}


@pytest.fixture(scope="module")
def emulated(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    emulator = stack.start_emulator(tmp_path_factory.mktemp("operated"), port=4666)
    try:
        yield stack.root_environment(emulator.endpoint, REGION)
    finally:
        stack.stop(emulator.pid, grace_seconds=5)


@pytest.fixture(scope="module")
def made(emulated: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place({**emulated, "AUDIO_BUCKET": BUCKET, "QUEUE_PREFIX": PREFIX}, tmp_path_factory.mktemp("home"))
    region = {"LocationConstraint": REGION}
    for bucket in (BUCKET, "ops-inventory"):
        place.client("s3").create_bucket(Bucket=bucket, CreateBucketConfiguration=region)
    sqs = place.client("sqs")
    for name, setting in (("jobs", "SQS_QUEUE_URL"), ("dlq", LETTER_QUEUES[0]), ("failures", LETTER_QUEUES[1])):
        place.environment[setting] = sqs.create_queue(QueueName=f"{PREFIX}-{name}")["QueueUrl"]
    ec2 = place.client("ec2")
    template = {"ImageId": ec2.describe_images()["Images"][0]["ImageId"], "InstanceType": "g4dn.xlarge"}
    ec2.create_launch_template(LaunchTemplateName="ops", LaunchTemplateData=template)
    place.client("autoscaling").create_auto_scaling_group(
        AutoScalingGroupName=f"{PREFIX}-gpu",
        MinSize=0,
        MaxSize=2,
        DesiredCapacity=1,
        AvailabilityZones=[f"{REGION}a"],
        LaunchTemplate={"LaunchTemplateName": "ops"},
    )
    for group in (f"/aws/lambda/{PREFIX}-launcher", f"/{PREFIX}/worker"):
        place.client("logs").create_log_group(logGroupName=group)
    return place


@pytest.fixture
def place(made: Place) -> Place:
    """With an empty bucket and empty queues."""
    s3 = made.client("s3")
    for info in made.store.list(""):
        s3.delete_object(Bucket=BUCKET, Key=info.key)
    for name in ("SQS_QUEUE_URL", *LETTER_QUEUES):
        made.client("sqs").purge_queue(QueueUrl=made.environment[name])
    return made


# Dead letters -------------------------------------------------------------------------------------------------------


def test_dead_letters_are_listed_and_stay(place: Place) -> None:
    assert place.cli("dlq", "list").strip() == "0 in dead-letters"
    for number in range(25):
        place.queue("SQS_DLQ_URL").send(place.upload(f"calls/{number}.mp3"), Reason.UNHEALTHY)
    place.queue("SQS_DLQ_URL").send_raw("nonsense", attributes={"reason": "the message is not JSON"})
    listed = place.cli("dlq", "list")
    assert "calls/7.mp3  (queued as unhealthy)" in listed
    assert "(the message is not JSON)" in listed
    assert re.fullmatch(r"26 in dead-letters, the oldest \d+ min old", listed.splitlines()[-1])
    assert place.depth("SQS_DLQ_URL") == 26
    assert " 2x " in place.cli("dlq", "list", "--most", "3")


def test_one_letter_is_shown_with_what_s3_says_of_it(place: Place) -> None:
    job = place.upload("calls/a [b].mp3")
    place.queue("SQS_DLQ_URL").send(job, Reason.FAILED)
    id = place.first_letter()
    shown = place.cli("dlq", "show", id)
    document, _, standing = shown.rpartition("}")
    assert json.loads(document + "}")["body"]["job_id"] == job.job_id
    assert standing.strip() == "new: calls/a [b].mp3"
    place.transcribe(job)
    assert place.cli("dlq", "show", id).endswith("transcribed: calls/a [b].mp3\n")
    assert "no message" in place.cli("dlq", "show", "zzz", status=1)
    assert place.depth("SQS_DLQ_URL") == 1


def test_letters_are_sent_again_by_choice_and_only_once_told_which(place: Place) -> None:
    dead = place.queue("SQS_DLQ_URL")
    for key in ("calls/a.mp3", "calls/b.mp3", "memos/a.mp3"):
        dead.send(place.upload(key), Reason.FAILED)
    dead.send_raw("nonsense")
    assert "say which" in place.cli("dlq", "redrive", status=2)
    assert "1 sent" in place.cli("dlq", "redrive", "--key", "memos/")
    assert place.keys_in() == ["memos/a.mp3"]
    assert "2 sent to the jobs queue, 1 left" in place.cli("dlq", "redrive", "--all")
    assert sorted(place.keys_in()) == ["calls/a.mp3", "calls/b.mp3"]
    assert place.depth("SQS_DLQ_URL") == 1


def test_a_letter_given_up_completes_its_session(place: Place) -> None:
    session = Session("u", "s")
    done, hopeless = (place.upload(f"{session.audio_prefix}chunk-{number}.webm") for number in (1, 2))
    place.transcribe(done)
    place.client("s3").put_object(Bucket=BUCKET, Key=session.manifest_key, Body=b'{"chunkCount": 2}')
    place.queue("SQS_DLQ_URL").send(hopeless, Reason.FAILED)
    id = place.first_letter()
    assert place.cli("dlq", "fail", id, "--reason", "a test tone") == f"failed: {hopeless.key}\n"
    record = place.store.get(hopeless.audio.error_key)
    assert record is not None
    assert json.loads(record.body)["message"] == "given up: a test tone"
    assert place.store.head(session.output_key) is not None
    assert place.depth("SQS_DLQ_URL") == 0


def test_what_nobody_can_read_is_printed_before_it_is_deleted(place: Place) -> None:
    place.queue("SQS_DLQ_URL").send_raw("precious [nonsense]")
    id = place.first_letter()
    assert "precious [nonsense]" in place.cli("dlq", "fail", id)
    assert place.depth("SQS_DLQ_URL") == 0


def test_the_routers_failures_are_letters_too(place: Place) -> None:
    job = place.upload("calls/a.mp3")
    event = {
        "source": "aws.s3",
        "detail-type": "Object Created",
        "detail": {"bucket": {"name": BUCKET}, "object": {"key": job.key, "etag": job.etag, "size": 3}},
    }
    record = {"requestPayload": event, "responsePayload": {"errorMessage": "S3 is down"}}
    place.queue("SQS_FAILURES_QUEUE_URL").send_raw(json.dumps(record))
    assert "calls/a.mp3  (S3 is down)" in place.cli("dlq", "list", "--queue", "failures")
    assert "1 sent" in place.cli("dlq", "redrive", "--queue", "failures", "--reason", "s3 is")
    [message] = place.queue().receive(most=10, wait=0, visibility=0)
    assert message.document() == record
    assert place.depth("SQS_FAILURES_QUEUE_URL") == 0


# Backfill -----------------------------------------------------------------------------------------------------------


def archive(place: Place, sessions: int, chunks: int = 5) -> list[str]:
    """Sessions of which the first chunk is done; the keys of the others."""
    keys = []
    for number in range(sessions):
        session = Session("ann", f"talk {number:02}")
        place.transcribe(place.upload(f"{session.audio_prefix}chunk-1.webm"))
        keys += [place.upload(f"{session.audio_prefix}chunk-{chunk}.webm").key for chunk in range(2, chunks + 1)]
    return keys


def test_an_archive_is_counted_then_queued_once(place: Place) -> None:
    keys = archive(place, 6)
    place.upload("calls/a+b c.mp3")
    assert "37 objects looked at, 25 would be queued" in place.cli("backfill", "--dry-run")
    assert place.depth() == 0
    assert "24 queued" in place.cli("backfill", "--prefix", "users/ann/")
    assert sorted(place.keys_in()) == sorted(keys)
    assert "25 queued" in place.cli("backfill")  # they are open still; it is no longer in the middle of anything
    assert not list(place.home.glob("backfill-*"))


def test_a_night_may_be_given_a_part_of_an_archive(place: Place) -> None:
    keys = archive(place, 4)
    assert "7 queued; there may be more" in place.cli("backfill", "--most", "7")
    rest = place.cli("backfill")
    assert "goes on after users/ann/" in rest
    assert "16 queued" in rest
    assert sorted(place.keys_in()) == sorted(keys)


def test_a_killed_backfill_goes_on_where_it_was(place: Place) -> None:
    keys = archive(place, 20)
    command = [sys.executable, "-m", "cli", "backfill", "--rate", "4"]
    backfill = subprocess.Popen(command, cwd=stack.ROOT, env=place.shell(), stdout=subprocess.DEVNULL)
    eventually(lambda: place.depth() >= 20, "two batches in the queue")
    backfill.send_signal(signal.SIGKILL)
    backfill.wait()
    assert place.depth() < len(keys)
    assert "80 queued" in place.cli("backfill")
    queued = place.keys_in()
    assert set(queued) == set(keys)
    assert len(queued) <= len(keys) + 10


def deliver(place: Place, keys: list[str]) -> str:
    """An inventory as S3 writes it, of these keys; its manifest's address."""
    s3, text = place.client("s3"), io.StringIO()
    for key in keys:
        s3_encoded = "".join(c if c.isalnum() or c in "/-_.*" else "+" if c == " " else f"%{ord(c):02X}" for c in key)
        csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerow([BUCKET, s3_encoded, "5", "old"])
    body = gzip.compress(text.getvalue().encode())
    data, manifest = (f"{BUCKET}/all/{name}" for name in ("data/1.csv.gz", "2026-01-31T00-00Z/manifest.json"))
    document = {
        "sourceBucket": BUCKET,
        "destinationBucket": "arn:aws:s3:::ops-inventory",
        "version": "2016-11-30",
        "fileFormat": "CSV",
        "fileSchema": "Bucket, Key, Size, ETag",
        "files": [{"key": data, "size": len(body), "MD5checksum": hashlib.md5(body).hexdigest()}],
    }
    s3.put_object(Bucket="ops-inventory", Key=data, Body=body)
    s3.put_object(Bucket="ops-inventory", Key=manifest, Body=json.dumps(document).encode())
    return f"s3://ops-inventory/{manifest}"


def test_an_inventory_saves_the_listing(place: Place) -> None:
    keys = archive(place, 2)
    odd = place.upload("calls/a+b c%25.mp3").key
    manifest = deliver(place, [*reversed(keys), odd, "calls/gone.mp3"])
    assert "10 objects looked at, 9 queued" in place.cli("backfill", "--inventory", manifest)
    assert sorted(place.keys_in()) == sorted([*keys, odd])
    assert "there is no" in place.cli("backfill", "--inventory", "s3://ops-inventory/nothing.json", status=1)


# Settings and the report --------------------------------------------------------------------------------------------


def test_settings_come_from_a_file_as_well_and_missing_ones_are_named(place: Place, tmp_path: Path) -> None:
    env_file = tmp_path / "env"
    bare = {name: value for name, value in place.shell().items() if name not in place.environment}
    env_file.write_text("".join(f"{name}={value}\n" for name, value in place.environment.items()) + "API_KEY=\n")
    command = [sys.executable, "-m", "cli", "dlq", "list"]

    def run(**changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(command, cwd=stack.ROOT, env=bare | changes, capture_output=True, text=True, check=False)

    assert run(ENV_FILE=str(env_file)).stdout == "0 in dead-letters\n"
    missing = run(ENV_FILE=os.devnull)
    assert missing.returncode == 1
    assert "SQS_DLQ_URL is not set" in missing.stdout
    assert "Traceback" not in missing.stderr


def test_a_batch_run_leaves_a_report_that_its_role_may_write(server: System, tmp_path: Path) -> None:
    session = Session("u", "reported")
    server.local.stop_server()
    keys = server.upload(session, count=2)
    eventually(lambda: server.decided(keys), "a decision on each chunk")
    server.manifest(session, 2)
    assert server.local.work() == 0
    place = Place(server.settings, tmp_path)
    day = json.loads(server.get(f"reports/batch/{datetime.now(UTC).date()}.json") or b"{}")
    run = Day.model_validate(day).runs[-1]
    assert run.finished
    assert (run.chunks, run.sessions, run.instance) == (2, 1, None)
    assert run.audio_seconds == pytest.approx(10, abs=1)
    assert 0 < run.busy_seconds < run.working_seconds
    assert run.slowest[0].key == keys[0]
    assert "chunks" in place.cli("report")


# The manual ---------------------------------------------------------------------------------------------------------

# The scripts want a whole deployment; tests/infra runs them.
AS_IT_STANDS = """
aws() { command "$AWS" --endpoint-url "$AWS_ENDPOINT_URL" "$@"; }
python() { command "$PYTHON" "$@"; }
bash() { command bash "$1" --help; }
"""


def blocks(kind: str = "") -> list[str]:
    return re.findall(rf"```bash{f' {kind}' if kind else ''}\n(.*?)```", PAGE, re.DOTALL)


def as_it_stands(place: Place, block: str, **variables: str) -> str:
    aws = str(stack.ROOT / ".venv-aws/bin/aws")
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", AS_IT_STANDS + block],
        cwd=stack.ROOT,
        env={**place.shell(), "AWS": aws, "PYTHON": sys.executable, **variables},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, block + done.stdout + done.stderr
    return done.stdout


def test_the_manuals_commands_do_what_it_says(place: Place) -> None:
    now = datetime.now(UTC)
    figures = {"chunks": 3, "sessions": 1, "audio_seconds": 15.0, "working_seconds": 1.0, "busy_seconds": 1.0}
    write(place.store, Run(id="x", started=now, ended=now, finished=True, results={}, **figures))
    said = [as_it_stands(place, block) for block in blocks()]
    assert any("3 chunks" in words for words in said)
    [group] = place.client("autoscaling").describe_auto_scaling_groups()["AutoScalingGroups"]
    assert (group["MaxSize"], group["DesiredCapacity"]) == (0, 0)
    assert all(one["LifecycleState"].startswith("Terminat") for one in group["Instances"])


def test_the_manuals_commands_for_letters(place: Place) -> None:
    dead = place.queue("SQS_DLQ_URL")
    tone = place.upload("calls/tone.mp3")
    dead.send(tone, Reason.FAILED)
    id = place.first_letter()
    dead.send(place.upload("users/ann/audio/sessions/standup/chunk-1.webm"), Reason.FAILED)
    dead.send_raw(json.dumps({"s3_bucket": BUCKET, "s3_key": "calls/b.mp3"}), attributes={"reason": "S3 is down"})
    dead.send(place.upload("calls/c.mp3"), Reason.FAILED)
    for block in blocks("letters"):
        as_it_stands(place, block, ID=id)
    assert place.depth("SQS_DLQ_URL") == 0
    assert place.depth() == 3
    assert place.store.head(tone.audio.error_key) is not None


def test_the_manuals_commands_for_a_session(place: Place) -> None:
    for number in (1, 2):
        place.transcribe(place.upload(f"users/ann/audio/sessions/standup/chunk-{number}.webm"))
    for block in blocks("session"):
        as_it_stands(place, block)
    manifest = place.store.get("users/ann/audio/sessions/standup/metadata.json")
    assert manifest is not None
    assert json.loads(manifest.body) == {"chunkCount": 2}


def test_the_manuals_commands_for_an_archive(place: Place) -> None:
    keys = archive(place, 2)
    deliver(place, keys)
    for block in blocks("archive"):
        as_it_stands(place, block, INVENTORY_BUCKET="ops-inventory")
    assert len(place.keys_in()) == 3 * len(keys)


def test_every_step_target_and_section_that_the_manual_names_is_there() -> None:
    for block in blocks("steps"):
        for script in re.findall(r"infra/scripts/\S+", block):
            assert (stack.ROOT / script).exists(), script
    for script in re.findall(r"`bash (infra/scripts/[^ `]+)", PAGE):
        assert (stack.ROOT / script).exists(), script
    for number in re.findall(r"step-(\d{3})\b", PAGE):
        assert list(SCRIPTS.glob(f"step-{number}-*.sh")), number
    makefile = (stack.ROOT / "Makefile").read_text()
    for target in re.findall(r"`make ([a-z-]+)", PAGE):
        assert re.search(rf"^{target}:.*##", makefile, re.MULTILINE), target
    sections = {
        re.sub(r"[^a-z -]", "", title.lower()).replace(" ", "-") for title in re.findall("^## (.*)$", PAGE, re.M)
    }
    assert set(re.findall(r"\]\(#([a-z-]+)\)", PAGE)) <= sections


def test_the_manual_says_what_to_do_about_every_alarm() -> None:
    alarms = (stack.ROOT / "infra/monitoring/alarms.json").read_text()
    names = set(re.findall(r'"AlarmName": "\$\{QUEUE_PREFIX\}-([a-z-]+)"', alarms))
    table = PAGE.partition("## Alarms")[2].partition("\n## ")[0]
    rows = re.findall(r"^\| (`.*?) \|", table, re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`([^`]+)`", row)} == names
