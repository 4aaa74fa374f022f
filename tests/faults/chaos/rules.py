"""Faults of AWS and of the way to the server, by kind, as microburst's rules (`proxy` has what it lacks)."""

from collections.abc import Mapping
from typing import Any

Rules = dict[str, dict[str, Any]]

# Headers of the answer that a rule asks for.
IN_PART = "x-in-part"  # the batch is to be taken but for its last entry
ONLY_WITH = "x-only-with"  # a field: an answer without it, or with nothing in it, is spared and does not count


def _fails(code: str, status: int, **match: Any) -> dict[str, Any]:
    return {**match, "error": {"code": code, "status": status}}


_LOST = {"response": {"abort_bytes": 0}}  # done, and its answer lost
_LOST_MESSAGES = {"response": {"abort_bytes": 0, "set_headers": {ONLY_WITH: "Messages"}}}
_IN_PART = {"response": {"set_headers": {IN_PART: "yes"}}}  # a batch without its last entry

S3: Rules = {
    "S3 SlowDown on PUT": _fails("SlowDown", 503, service="s3", operation="PutObject"),
    "S3 SlowDown on GET": _fails("SlowDown", 503, service="s3", operation="GetObject"),
    "S3 503 on HEAD": _fails("ServiceUnavailable", 503, service="s3", operation="HeadObject"),
    "S3 500 on list": _fails("InternalError", 500, service="s3", operation="ListObjectsV2"),
    "S3 500 on PUT": _fails("InternalError", 500, service="s3", operation="PutObject"),
    "S3 connection reset on GET": {"service": "s3", "operation": "GetObject", "reset": True},
    "S3 connection reset on PUT": {"service": "s3", "operation": "PutObject", "reset": True},
    "S3 body truncated": {"service": "s3", "operation": "GetObject", "response": {"truncate_frac": 0.5}},
    "S3 body breaks off": {"service": "s3", "operation": "GetObject", "response": {"abort_frac": 0.5}},
    "S3 body corrupted": {"service": "s3", "operation": "GetObject", "response": {"corrupt_bytes": 3}},
    "S3 PUT done, answer lost": {"service": "s3", "operation": "PutObject", **_LOST},
    "S3 conditional conflict": _fails(
        "ConditionalRequestConflict", 409, service="s3", operation="PutObject", headers={"if-none-match": ""}
    ),
    "S3 credentials expired": _fails("ExpiredToken", 400, service="s3"),
    "S3 clock skewed": _fails("RequestTimeTooSkewed", 403, service="s3"),
}
S3_LATE: Rules = {
    "S3 body slow": {"service": "s3", "operation": "GetObject", "response": {"bandwidth_kbps": 50}},
    "S3 late": {"service": "s3", "latency": {"min": 50, "max": 500}},
}
SQS: Rules = {
    "SQS throttles send": _fails("RequestThrottled", 400, service="sqs", operation="SendMessage"),
    "SQS throttles receive": _fails("ThrottlingException", 400, service="sqs", operation="ReceiveMessage"),
    "SQS 503 on send": _fails("ServiceUnavailable", 503, service="sqs", operation="SendMessage"),
    "SQS delete fails": _fails("ServiceUnavailable", 503, service="sqs", operation="DeleteMessageBatch"),
    "SQS lease not renewed": _fails("InternalError", 500, service="sqs", operation="ChangeMessageVisibility"),
    "SQS send done, answer lost": {"service": "sqs", "operation": "SendMessage", **_LOST},
    "SQS receive done, answer lost": {"service": "sqs", "operation": "ReceiveMessage", **_LOST_MESSAGES},
    "SQS delete done, answer lost": {"service": "sqs", "operation": "DeleteMessageBatch", **_LOST},
    "SQS deletes a batch in part": {"service": "sqs", "operation": "DeleteMessageBatch", **_IN_PART},
    "SQS connection reset": {"service": "sqs", "reset": True},
    "SQS credentials expired": _fails("ExpiredTokenException", 403, service="sqs"),
}
# Of requests that are too few for a rate: those that replace an output, the sweep's, and the letters'.
REWRITES: Rules = {
    "S3 conditional conflict on a rewrite": _fails(
        "ConditionalRequestConflict", 409, service="s3", operation="PutObject", headers={"if-match": ""}
    )
}
SWEEP: Rules = {
    "SQS throttles a batch of sends": _fails("RequestThrottled", 400, service="sqs", operation="SendMessageBatch"),
    "SQS batch of sends done, answer lost": {"service": "sqs", "operation": "SendMessageBatch", **_LOST},
    "SQS takes a batch of sends in part": {"service": "sqs", "operation": "SendMessageBatch", **_IN_PART},
    "S3 500 on the sweep's list": _fails("InternalError", 500, service="s3", operation="ListObjectsV2"),
}
LETTERS: Rules = {
    "SQS delete of a letter fails": _fails("ServiceUnavailable", 503, service="sqs", operation="DeleteMessage"),
    "SQS delete of a letter done, answer lost": {"service": "sqs", "operation": "DeleteMessage", **_LOST},
}
BUS: Rules = {"EventBridge 503": _fails("ServiceUnavailable", 503, service="events", operation="PutEvents")}
AWS: Rules = S3 | SQS | BUS

DOOR: Rules = {
    "way to the server: 503": _fails("ServiceUnavailable", 503, service="*"),
    "way to the server: 429": _fails("TooManyRequests", 429, service="*"),
    "way to the server: reset before": {"service": "*", "reset": True},
    "way to the server: answer lost": {"service": "*", **_LOST},
    "way to the server: answer truncated": {"service": "*", "response": {"truncate_frac": 0.5}},
}
DOOR_LATE: Rules = {"way to the server: late": {"service": "*", "latency": {"min": 50, "max": 300}}}


def at_rate(rules: Mapping[str, Mapping[str, Any]], rate: float) -> Rules:
    """So that `rate` of the requests of every operation that has a rule of its own meet a fault, all kinds together.

    microburst takes the first rule that fits and whose draw says so: n rules with p each let (1 - p)**n through. Rules
    of a whole service get an equal share of its most crowded operation; those of one operation what is left for it.
    """
    made: Rules = {}
    for service in {rule["service"] for rule in rules.values()}:
        own = [rule.get("operation") for rule in rules.values() if rule["service"] == service]
        of_all = own.count(None)
        crowd = of_all + max((own.count(operation) for operation in own if operation), default=0)
        passed = (1 - rate) ** (of_all / crowd)  # by those of the whole service
        for kind, rule in rules.items():
            if rule["service"] == service:
                operation = rule.get("operation")
                let_through = (
                    ((1 - rate) / passed) ** (1 / own.count(operation)) if operation else passed ** (1 / of_all)
                )
                made[kind] = {**rule, "probability": 1 - let_through}
    return {kind: made[kind] for kind in rules}
