"""Notices that an instance is about to end: a thread asks for them every 5 seconds, as AWS advises.

https://docs.aws.amazon.com/AWSEC2/latest/UserGuide/spot-instance-termination-notices.html
https://docs.aws.amazon.com/autoscaling/ec2/userguide/retrieving-target-lifecycle-state-through-imds.html
"""

import json
import threading
from collections.abc import Callable
from datetime import UTC, datetime

import httpx
from aws_lambda_powertools import Logger

from batch_worker.stopping import Stopping
from shared.imds import Imds
from shared.telemetry import INSTANCE_NOTICES, Observe

INTERVAL_SECONDS = 5.0
NOTICE_SECONDS = 120.0
MARGIN_SECONDS = 20.0  # to give back what is not finished by then

logger = Logger(service="batch-worker", child=True)


class Notices:
    """Stops the worker in time for its instance's end. Use as a context manager.

    A recommendation to rebalance only says that the end is likelier than before, at times long before it and often for
    nothing: to leave then gives up for certain what the two minutes' notice may cost, so the work goes on.
    """

    def __init__(
        self,
        imds: Imds,
        stopping: Stopping,
        observe: Observe,
        *,
        interval: float = INTERVAL_SECONDS,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        self._imds = imds
        self._stopping = stopping
        self._observe = observe
        self._interval = interval
        self._now = now
        self._advised = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="notices", daemon=True)

    def __enter__(self) -> "Notices":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _run(self) -> None:
        while not (self._look() or self._stop.wait(self._interval)):
            pass

    def _look(self) -> bool:
        """True once the end is certain."""
        try:
            interruption = self._imds.get("spot/instance-action")
            target = self._imds.get("autoscaling/target-lifecycle-state")
            advice = self._imds.get("events/recommendations/rebalance")
        except httpx.HTTPError as error:
            logger.warning("no notices can be read", extra={"reason": type(error).__name__})
            return False
        if interruption:
            seconds = seconds_for_work(interruption, self._now())
            self._note("interruption", notice=interruption, seconds=seconds)
            self._stopping.within(seconds)
            return True
        if target == "Terminated":
            self._note("scale-in")
            self._stopping.set()
            return True
        if advice and not self._advised:
            self._advised = True
            self._note("rebalance", notice=advice)
        return False

    def _note(self, kind: str, **details: object) -> None:
        logger.warning("notice", extra={"kind": kind, **details})
        self._observe(INSTANCE_NOTICES, kind)


def seconds_for_work(interruption: str, now: datetime) -> float:
    """How long to go on after an interruption notice: until its time, less a margin; one without a time is new."""
    try:
        left = (datetime.fromisoformat(json.loads(interruption)["time"]) - now).total_seconds()
    except (ValueError, TypeError, KeyError):
        left = NOTICE_SECONDS
    return max(0.0, min(left, NOTICE_SECONDS) - MARGIN_SECONDS)
