"""Which GPU servers there are: a fixed list, or the running EC2 instances with a tag, by private address."""

from collections.abc import Callable
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

CACHE_SECONDS = 10.0

Discover = Callable[[], tuple[str, ...]]


def fixed(urls: tuple[str, ...]) -> Discover:
    return lambda: urls


def tagged(ec2: Any, tag: str, *, port: int, clock: Callable[[], float]) -> Discover:
    """Servers on running instances that carry `tag` ("Name=value").

    When EC2 does not answer there are no servers: the queue takes the job, nothing is lost.
    """
    name, _, value = tag.partition("=")
    filters = [
        {"Name": f"tag:{name}", "Values": [value]},
        {"Name": "instance-state-name", "Values": ["running"]},
    ]
    cached: tuple[float, tuple[str, ...]] = (float("-inf"), ())

    def discover() -> tuple[str, ...]:
        nonlocal cached
        if clock() - cached[0] >= CACHE_SECONDS:
            cached = clock(), _addresses(ec2, filters, port)
        return cached[1]

    return discover


def _addresses(ec2: Any, filters: list[dict[str, Any]], port: int) -> tuple[str, ...]:
    try:
        pages = list(ec2.get_paginator("describe_instances").paginate(Filters=filters))
    except (ClientError, BotoCoreError):
        return ()
    return tuple(
        f"http://{instance['PrivateIpAddress']}:{port}"
        for page in pages
        for reservation in page["Reservations"]
        for instance in reservation["Instances"]
        if instance.get("PrivateIpAddress")
    )
