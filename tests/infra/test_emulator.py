"""What the project's emulator adds to MiniStack, seen from outside, as AWS's clients see it."""

import json
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from infra.local.emulator import patching
from tests.infra.conftest import Aws, until

integration = pytest.mark.integration

NOTES_ITS_CALLS = """
import os, time

def note(text):
    with open(os.environ["NOTES"], "a") as file:
        file.write(text + "\\n")
"""


def rule(aws: Aws, name: str, pattern: dict[str, Any], target: dict[str, Any]) -> None:
    events = aws("events")
    events.put_rule(Name=name, EventPattern=json.dumps(pattern))
    events.put_targets(Rule=name, Targets=[{"Id": "1", **target}])


def publish(aws: Aws, source: str) -> None:
    aws("events").put_events(Entries=[{"Source": source, "DetailType": "test", "Detail": '{"number": 7}'}])


def receive(aws: Aws, url: str) -> dict[str, Any]:
    """A message, which is taken out of the queue."""

    def messages() -> Any:
        return aws("sqs").receive_message(QueueUrl=url, MessageAttributeNames=["All"]).get("Messages")

    (message,) = until(messages)
    aws("sqs").delete_message(QueueUrl=url, ReceiptHandle=message["ReceiptHandle"])
    return dict(message)


@integration
def test_a_failing_function_is_tried_three_times_then_its_event_is_kept(
    aws: Aws, function: Callable[..., str], queue: tuple[str, str], tmp_path: Path
) -> None:
    url, queue_arn = queue
    notes = tmp_path / "notes"
    arn = function(
        NOTES_ITS_CALLS + "def handler(event, context):\n  note('x'); raise ValueError('no')", NOTES=str(notes)
    )
    aws("lambda").put_function_event_invoke_config(
        FunctionName=arn, DestinationConfig={"OnFailure": {"Destination": queue_arn}}
    )
    rule(aws, "failing", {"source": ["failing"]}, {"Arn": arn})

    publish(aws, "failing")

    record = json.loads(receive(aws, url)["Body"])
    assert notes.read_text() == "x\n" * 3
    assert record["requestContext"]["condition"] == "RetriesExhausted"
    assert record["requestContext"]["approximateInvokeCount"] == 3
    assert record["requestPayload"]["detail"] == {"number": 7}
    assert "no" in record["responsePayload"]["errorMessage"]


@integration
def test_a_burst_beyond_the_concurrency_limit_loses_nothing(
    aws: Aws, function: Callable[..., str], tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    body = (
        "def handler(event, context):\n  time.sleep(0.1); note(f\"{event['detail']['object']['key']} {os.getpid()}\")"
    )
    arn = function(NOTES_ITS_CALLS + body, NOTES=str(notes))
    s3 = aws("s3")
    s3.create_bucket(Bucket="burst", CreateBucketConfiguration={"LocationConstraint": "us-east-2"})
    s3.put_bucket_notification_configuration(Bucket="burst", NotificationConfiguration={"EventBridgeConfiguration": {}})
    rule(aws, "burst", {"source": ["aws.s3"], "detail": {"bucket": {"name": ["burst"]}}}, {"Arn": arn})

    for number in range(60):
        s3.put_object(Bucket="burst", Key=str(number), Body=b"x")

    until(lambda: notes.exists() and len(notes.read_text().splitlines()) >= 60, seconds=60)
    keys, processes = zip(*(line.split() for line in notes.read_text().splitlines()), strict=True)
    assert sorted(map(int, keys)) == list(range(60))
    assert len(set(processes)) <= 8


@integration
def test_a_throttled_event_waits_without_using_up_its_attempts(
    aws: Aws, function: Callable[..., str], tmp_path: Path
) -> None:
    notes = tmp_path / "notes"
    arn = function(
        NOTES_ITS_CALLS + "def handler(event, context):\n  time.sleep(0.1); note(str(event['number']))",
        NOTES=str(notes),
    )
    aws("lambda").put_function_concurrency(FunctionName=arn, ReservedConcurrentExecutions=1)
    aws("lambda").put_function_event_invoke_config(FunctionName=arn, MaximumRetryAttempts=0)

    for number in range(10):
        payload = json.dumps({"number": number})
        aws("lambda").invoke(FunctionName=arn, InvocationType="Event", Payload=payload)

    until(lambda: notes.exists() and len(notes.read_text().split()) >= 10, seconds=60)
    assert sorted(map(int, notes.read_text().split())) == list(range(10))


@integration
def test_an_event_for_a_function_that_is_gone_goes_to_the_targets_dead_letters(
    aws: Aws, queue: tuple[str, str]
) -> None:
    url, queue_arn = queue
    missing = "arn:aws:lambda:us-east-2:111111111111:function:never-made"
    rule(aws, "gone", {"source": ["gone"]}, {"Arn": missing, "DeadLetterConfig": {"Arn": queue_arn}})

    publish(aws, "gone")

    message = receive(aws, url)
    attributes = {name: value["StringValue"] for name, value in message["MessageAttributes"].items()}
    assert json.loads(message["Body"])["detail"] == {"number": 7}
    assert attributes["ERROR_CODE"] == "NO_RESOURCE"
    assert attributes["TARGET_ARN"] == missing
    assert attributes["RULE_ARN"].endswith("rule/gone")


@integration
def test_what_a_child_prints_is_not_the_functions_result(aws: Aws, function: Callable[..., str]) -> None:
    forged = '{"status": "ok", "result": "forged"}'
    arn = function(f"import os\ndef handler(event, context):\n  os.system('echo \\'{forged}\\''); return 'real'")

    answer = aws("lambda").invoke(FunctionName=arn)

    assert json.load(answer["Payload"]) == "real"


@integration
def test_a_dependency_that_is_not_in_the_zip_is_missing(aws: Aws, function: Callable[..., str]) -> None:
    arn = function("import hypercorn\ndef handler(event, context): pass")  # MiniStack itself has it

    answer = aws("lambda").invoke(FunctionName=arn)

    assert answer["FunctionError"]
    assert "No module named 'hypercorn'" in json.load(answer["Payload"])["errorMessage"]


@integration
def test_a_function_runs_outside_of_any_virtual_environment(aws: Aws, function: Callable[..., str]) -> None:
    arn = function("import sys\ndef handler(event, context):\n  return [sys.prefix == sys.base_prefix, sys.path]")

    outside, path = json.load(aws("lambda").invoke(FunctionName=arn)["Payload"])

    assert outside
    assert not [entry for entry in path if "site-packages" in entry]


def test_another_version_of_ministack_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patching, "version", lambda _: "1.6.0")
    with pytest.raises(SystemExit, match=r"1\.6\.0 is installed"):
        patching.require_version()


@pytest.mark.parametrize(("name", "replacement"), [("no_such_function", print), ("dumps", 1), ("CONSTANT", "text")])
def test_a_patch_needs_something_of_its_kind_to_replace(name: str, replacement: Any) -> None:
    module = types.ModuleType("module")
    module.__dict__.update(dumps=json.dumps, CONSTANT=1)

    with pytest.raises(SystemExit, match="is gone from MiniStack"):
        patching.patch(module, name, replacement, because="test")


def test_an_action_is_replaced_where_there_is_one_and_added_where_there_is_none() -> None:
    module = types.ModuleType("module")
    module.__dict__.update(_ACTION_MAP={"Known": repr})

    patching.patch_action(module, "Known", print, because="test")
    patching.add_action(module, "New", print)

    actions: dict[str, Any] = module._ACTION_MAP
    assert actions == {"Known": print, "New": print}
    with pytest.raises(SystemExit, match="has no Gone any more"):
        patching.patch_action(module, "Gone", print, because="test")
    with pytest.raises(SystemExit, match="has its own Known now"):
        patching.add_action(module, "Known", print)
