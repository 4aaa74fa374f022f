"""CloudWatch: log lines in the embedded format become metrics, SQS tells a queue's age, alarms watch by the clock."""

import json
import logging
import operator
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ministack.core.responses import set_request_account_id, set_request_region
from ministack.services import autoscaling, cloudwatch, cloudwatch_logs, sqs

from infra.local.emulator.patching import patch
from infra.local.emulator.query import structure

AGE = "ApproximateAgeOfOldestMessage"
CLOCK_SECONDS = 1
COMPARISONS = {
    "GreaterThanOrEqualToThreshold": operator.ge,
    "GreaterThanThreshold": operator.gt,
    "LessThanThreshold": operator.lt,
    "LessThanOrEqualToThreshold": operator.le,
}

log = logging.getLogger(__name__)

_append = cloudwatch_logs._append_log_events
_put_alarm = cloudwatch._put_metric_alarm
_describe_alarms = cloudwatch._describe_alarms
_get_metric_data = cloudwatch._get_metric_data


def install() -> None:
    patch(
        cloudwatch_logs,
        "_append_log_events",
        append_events,
        because="log lines in the embedded metric format made no metrics",
    )
    patch(
        cloudwatch,
        "_evaluate_alarm",
        evaluate,
        because="an alarm looked at all dimensions of its metric, and never at data that is missing",
    )
    patch(cloudwatch, "_put_metric_alarm", put_alarm, because="the metric math of an alarm was dropped")
    patch(
        cloudwatch,
        "_describe_alarms",
        describe_alarms,
        because="the query protocol, which older AWS CLIs speak, told a third of an alarm",
    )
    patch(cloudwatch, "_get_metric_data", get_metric_data, because="SQS did not tell how old a queue's messages are")
    threading.Thread(target=_watch_the_clock, name="alarm-clock", daemon=True).start()


# Metrics --------------------------------------------------------------------------------------------------------


def append_events(stream: dict[str, Any], events: Iterable[Mapping[str, Any]]) -> None:
    _append(stream, events)
    found = [datum for event in events for datum in embedded_metrics(event["message"])]
    for namespace, name, unit, dimensions, moment, values in found:
        cloudwatch._store_datum(namespace, name, dimensions, moment, unit, None, values, None, None)
    if found:
        cloudwatch._evaluate_all_alarms()


def embedded_metrics(line: str) -> Iterator[tuple[str, str, str, dict[str, str], float, list[float]]]:
    """Namespace, name, unit, dimensions, time and values of each metric that a log line brings.

    https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/CloudWatch_Embedded_Metric_Format_Specification.html
    """
    if '"_aws"' not in line:
        return
    try:
        document = json.loads(line)
        directives, moment = document["_aws"]["CloudWatchMetrics"], document["_aws"]["Timestamp"] / 1000
    except (ValueError, KeyError, TypeError):
        return
    for directive in directives:
        for names in directive.get("Dimensions") or [[]]:
            dimensions = {name: str(document[name]) for name in names if name in document}
            for metric in directive["Metrics"]:
                if (value := document.get(metric["Name"])) is not None:
                    values = value if isinstance(value, list) else [value]
                    unit = metric.get("Unit", "None")
                    yield directive["Namespace"], metric["Name"], unit, dimensions, moment, values


def get_metric_data(params: Any, document: Any, is_cbor: bool, is_json: bool = False) -> Any:
    """The age of a queue is told when it is asked for, not every minute."""
    for query in (document or {}).get("MetricDataQueries", ()):
        metric = query.get("MetricStat", {}).get("Metric", {})
        if (metric.get("Namespace"), metric.get("MetricName")) == ("AWS/SQS", AGE):
            _tell_age(cloudwatch._dims_from_list(metric["Dimensions"])["QueueName"])
    return _get_metric_data(params, document, is_cbor, is_json)


def _tell_age(name: str) -> None:
    queue = next((queue for url, queue in sqs._queues.items() if url.rpartition("/")[2] == name), None)
    if queue and queue["messages"]:
        now = time.time()
        age = now - min(message["sent_at"] for message in queue["messages"])
        # A second ago: whoever asks for all until now does not get what is told just now.
        cloudwatch._store_datum("AWS/SQS", AGE, {"QueueName": name}, now - 1, "Seconds", age, None, None, None)


# Alarms ---------------------------------------------------------------------------------------------------------


def _watch_the_clock() -> None:
    while True:
        time.sleep(CLOCK_SECONDS)
        for (account, region, _), alarm in cloudwatch._alarms.all_items():
            set_request_account_id(account)
            set_request_region(region)
            try:
                evaluate(alarm)
            except Exception:  # one alarm's fault must not stop the clock of the others
                log.exception("alarm %s", alarm.get("AlarmName"))


def put_alarm(params: Any, document: Any, is_cbor: bool, is_json: bool = False) -> Any:
    answer = _put_alarm(params, document, is_cbor, is_json)
    asked = document if is_cbor or is_json else structure(_texts(params))
    queries = asked.get("Metrics")
    if answer[0] == 200 and queries:
        alarm = cloudwatch._alarms[asked["AlarmName"]]
        alarm["Metrics"] = queries
        for name in ("Namespace", "MetricName", "Statistic", "ExtendedStatistic", "Period", "Unit"):
            del alarm[name]  # with math, each metric has its own
    return answer


def describe_alarms(params: Any, document: Any, is_cbor: bool, is_json: bool = False) -> Any:
    if is_cbor or is_json:
        return _describe_alarms(params, document, is_cbor, is_json)
    status, _, body = _describe_alarms(params, structure(_texts(params)), False, True)
    if status != 200:
        return _describe_alarms(params, document, is_cbor)
    found = {name: _without_nothing(value) for name, value in json.loads(body).items()}
    inner = f"<DescribeAlarmsResult>{autoscaling._member_xml(found)}</DescribeAlarmsResult>"
    return cloudwatch._xml(200, "DescribeAlarmsResponse", inner)


def _texts(params: Mapping[str, Any]) -> dict[str, str]:
    return {name: cloudwatch._p(params, name) for name in params}


def _without_nothing(value: Any) -> Any:
    if isinstance(value, list):
        return [_without_nothing(one) for one in value]
    if isinstance(value, dict):
        return {name: _without_nothing(one) for name, one in value.items() if one is not None}
    return value


def evaluate(alarm: dict[str, Any]) -> None:
    """Bring the alarm's state up to date; one with metric math stays as it is."""
    if not alarm.get("MetricName"):
        return
    old, (new, reason) = alarm["StateValue"], _state(alarm)
    if new == old:
        return
    alarm.update(StateValue=new, StateReason=reason, StateUpdatedTimestamp=int(time.time()))
    cloudwatch._record_history(alarm["AlarmName"], old, new, reason)
    cloudwatch._dispatch_alarm_actions(alarm, old, new, reason)
    cloudwatch._evaluate_parent_alarms(alarm)


def _state(alarm: Mapping[str, Any]) -> tuple[str, str]:
    """How AWS judges the last periods, without its longer look back.

    https://docs.aws.amazon.com/AmazonCloudWatch/latest/monitoring/alarms-and-missing-data.html
    """
    values = _values(alarm)
    compare, threshold = COMPARISONS[alarm["ComparisonOperator"]], float(alarm["Threshold"])
    missing = alarm.get("TreatMissingData") or "missing"
    present = [value for value in values if value is not None]
    needed = int(alarm.get("DatapointsToAlarm") or len(values))
    breaching = sum(compare(value, threshold) for value in present)
    if missing == "breaching":
        breaching += len(values) - len(present)
    elif missing != "notBreaching":
        if not present:
            return (alarm["StateValue"] if missing == "ignore" else "INSUFFICIENT_DATA"), "Unchecked: no data"
        needed = min(needed, len(present))
    reason = f"Threshold Crossed: {breaching} of {len(values)} datapoints, {present} against {threshold}"
    return ("ALARM" if breaching >= needed else "OK"), reason


def _values(alarm: Mapping[str, Any]) -> list[float | None]:
    """The statistic of each of the last periods, the newest first; None where there was no data."""
    dimensions = cloudwatch._dims_key(cloudwatch._dims_from_list(alarm.get("Dimensions") or []))
    points = cloudwatch._metrics.get((alarm["Namespace"], alarm["MetricName"], dimensions), [])
    statistic = alarm.get("ExtendedStatistic") or alarm.get("Statistic") or "Average"
    now, period = time.time(), int(alarm["Period"])
    values: list[float | None] = []
    for age in range(int(alarm["EvaluationPeriods"])):
        end = now - age * period
        within = [point for point in points if end - period < point["Timestamp"] <= end]
        values.append(cloudwatch._stat_value(cloudwatch._calc_stats(within), statistic, within) if within else None)
    return values
