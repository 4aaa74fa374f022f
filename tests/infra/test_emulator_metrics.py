"""Metrics and alarms in the project's emulator, as AWS's clients see them."""

import json
import re
import time
from typing import Any
from xml.etree import ElementTree

import httpx
import pytest
from botocore.auth import SigV4Auth
from botocore.awsrequest import AWSRequest
from botocore.credentials import Credentials

from infra.local import stack
from tests.infra.conftest import Aws, until

pytestmark = pytest.mark.integration


def put_alarm(aws: Aws, name: str, queue: str, **more: Any) -> None:
    aws("cloudwatch").put_metric_alarm(
        **{
            "AlarmName": name,
            "Namespace": "Test",
            "MetricName": "Depth",
            "Dimensions": [{"Name": "Queue", "Value": queue}],
            "Statistic": "Maximum",
            "Period": 60,
            "EvaluationPeriods": 1,
            "Threshold": 3,
            "ComparisonOperator": "GreaterThanOrEqualToThreshold",
            **more,
        }
    )


def state(aws: Aws, name: str) -> str:
    return str(aws("cloudwatch").describe_alarms(AlarmNames=[name])["MetricAlarms"][0]["StateValue"])


def test_a_log_line_in_the_embedded_format_is_a_metric_which_its_own_alarm_sees(aws: Aws) -> None:
    put_alarm(aws, "depth-of-a", "a")
    put_alarm(aws, "depth-of-b", "b")
    metric = {"Namespace": "Test", "Dimensions": [["Queue"]], "Metrics": [{"Name": "Depth", "Unit": "Count"}]}
    now = int(time.time() * 1000)
    line = json.dumps(
        {"_aws": {"Timestamp": now, "CloudWatchMetrics": [metric]}, "Queue": "a", "Depth": [1, 5], "Path": "/x"}
    )
    where = {"logGroupName": "metrics", "logStreamName": "metrics"}
    aws("logs").create_log_group(logGroupName="metrics")
    aws("logs").create_log_stream(**where)

    events = [{"timestamp": now, "message": text} for text in ("plain", '{"_aws": 3}', line)]
    aws("logs").put_log_events(**where, logEvents=events)

    assert state(aws, "depth-of-a") == "ALARM"
    assert state(aws, "depth-of-b") == "INSUFFICIENT_DATA"


def test_an_alarm_keeps_its_metric_math(aws: Aws) -> None:
    metric = {"Namespace": "Test", "MetricName": "Depth", "Dimensions": [{"Name": "Queue", "Value": "a"}]}
    queries = [
        {"Id": "bad", "Expression": "IF(depth > 1, 1, 0)", "ReturnData": True},
        {"Id": "depth", "MetricStat": {"Metric": metric, "Period": 60, "Stat": "Sum"}, "ReturnData": False},
    ]
    comparison = {"Threshold": 1, "ComparisonOperator": "GreaterThanThreshold", "EvaluationPeriods": 1}

    aws("cloudwatch").put_metric_alarm(AlarmName="math", Metrics=queries, **comparison)

    (alarm,) = aws("cloudwatch").describe_alarms(AlarmNames=["math"])["MetricAlarms"]
    assert alarm["Metrics"] == queries
    assert "Statistic" not in alarm


def test_an_older_client_learns_all_of_an_alarm_too(aws: Aws, emulator: stack.Emulator) -> None:
    """AWS CLI 2.9 speaks the query protocol, boto3 another one."""
    queries = {
        "Metrics.member.1.Id": "a",
        "Metrics.member.1.MetricStat.Metric.Namespace": "Test",
        "Metrics.member.1.MetricStat.Metric.MetricName": "Depth",
        "Metrics.member.1.MetricStat.Period": "60",
        "Metrics.member.1.MetricStat.Stat": "Sum",
    }
    comparison = {"Threshold": "1", "ComparisonOperator": "GreaterThanThreshold", "EvaluationPeriods": "1"}
    put_alarm(aws, "old-plain", "a", TreatMissingData="notBreaching", AlarmDescription="<what> it & is")

    in_the_old_way(emulator, {"Action": "PutMetricAlarm", "AlarmName": "old-math", **comparison, **queries})
    told = in_the_old_way(emulator, {"Action": "DescribeAlarms", "AlarmNamePrefix": "old-"})

    alarms = told["DescribeAlarmsResult"]["MetricAlarms"]["member"]
    math, plain = sorted(alarms, key=lambda alarm: str(alarm["AlarmName"]))
    assert math["Metrics"]["member"]["MetricStat"]["Metric"] == {"Namespace": "Test", "MetricName": "Depth"}
    assert "Statistic" not in math
    assert plain["Dimensions"] == {"member": {"Name": "Queue", "Value": "a"}}
    assert (plain["AlarmDescription"], plain["TreatMissingData"]) == ("<what> it & is", "notBreaching")
    assert (plain["ActionsEnabled"], plain["Period"]) == ("true", "60")


def in_the_old_way(emulator: stack.Emulator, parameters: dict[str, str]) -> Any:
    """A call by the query protocol; the answer's XML as dictionaries, of which lists of one are one."""
    request = AWSRequest("POST", emulator.endpoint, data={"Version": "2010-08-01", **parameters})
    SigV4Auth(Credentials(stack.ACCOUNT, stack.SECRET), "monitoring", "us-east-2").add_auth(request)
    prepared = request.prepare()
    answer = httpx.post(emulator.endpoint, content=prepared.body, headers=dict(prepared.headers))
    assert answer.status_code == 200, answer.text
    return _plain(ElementTree.fromstring(re.sub(r' xmlns="[^"]*"', "", answer.text)))


def _plain(element: ElementTree.Element) -> Any:
    found: dict[str, Any] = {}
    for child in element:
        known, one = found.get(child.tag), _plain(child)
        found[child.tag] = one if known is None else [*(known if isinstance(known, list) else [known]), one]
    return found or element.text or ""


def test_an_alarm_is_over_when_no_more_bad_data_comes(aws: Aws) -> None:
    put_alarm(aws, "over", "over", Period=10, TreatMissingData="notBreaching")
    datum = {"MetricName": "Depth", "Dimensions": [{"Name": "Queue", "Value": "over"}], "Value": 9.0}

    aws("cloudwatch").put_metric_data(Namespace="Test", MetricData=[datum])

    def changes() -> list[str]:
        items = aws("cloudwatch").describe_alarm_history(AlarmName="over", HistoryItemType="StateUpdate")
        data = [json.loads(item["HistoryData"]) for item in items["AlarmHistoryItems"]]
        return [change["newState"]["stateValue"] for change in reversed(data)]

    until(lambda: changes()[-2:] == ["ALARM", "OK"])


def test_sqs_tells_how_old_the_oldest_message_of_a_queue_is(aws: Aws, queue: tuple[str, str]) -> None:
    url, _ = queue
    metric = {
        "Namespace": "AWS/SQS",
        "MetricName": "ApproximateAgeOfOldestMessage",
        "Dimensions": [{"Name": "QueueName", "Value": url.rpartition("/")[2]}],
    }
    query = {"Id": "age", "MetricStat": {"Metric": metric, "Period": 60, "Stat": "Maximum"}}

    cloudwatch = aws("cloudwatch")

    def ages() -> list[float]:
        now = time.time()
        answer = cloudwatch.get_metric_data(MetricDataQueries=[query], StartTime=now - 900, EndTime=now)
        return list(answer["MetricDataResults"][0]["Values"])

    assert ages() == []
    began = time.monotonic()
    aws("sqs").send_message(QueueUrl=url, MessageBody="old")
    until(lambda: max(ages(), default=0) > 1)
    assert max(ages()) <= time.monotonic() - began
