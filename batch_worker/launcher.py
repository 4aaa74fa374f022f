"""The launcher's Lambda entry point: how many instances is the backlog worth, and is there one that has to end?

A handler that returns has succeeded: whatever goes wrong raises, and Lambda tries again. The same event twice changes
nothing the second time.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from typing import Any

import boto3
from aws_lambda_powertools import Logger

from batch_worker.backlog import Backlog
from batch_worker.capacity import Decision, Fleet, Occasion, Policy, Reason, Waiting, decide, hours_allowed
from batch_worker.group import Group, Standing
from batch_worker.launcher_settings import LauncherSettings
from batch_worker.reaper import End, failed_boots, to_end
from shared.errors import BadEvent
from shared.queues import RECEIVE_CONFIG, Queue
from shared.settings import load
from shared.store import CLIENT_CONFIG
from shared.telemetry import (
    CAPACITY_DECISIONS,
    DEFAULT_DEPLOYMENT,
    DESIRED_CAPACITY,
    INSTANCES_REAPED,
    Observe,
    Telemetry,
)

LATE_HOURS = 0.25  # what is there so long after MAX_INSTANCE_HOURS, when it should have ended itself, hangs

logger = Logger(service="launcher")
telemetry = Telemetry(os.environ.get("QUEUE_PREFIX") or DEFAULT_DEPLOYMENT)


def handler(event: Any, context: Any) -> dict[str, Any]:
    """`{"occasion": "window"}` when the schedule says so, `{"occasion": "watch"}` every few minutes."""
    try:
        occasion = Occasion(event["occasion"])
    except (KeyError, TypeError, ValueError) as error:
        raise BadEvent('the launcher wants {"occasion": "window"} or {"occasion": "watch"}') from error
    try:
        decision = _launcher().run(occasion)
    finally:
        telemetry.flush()
    return {"capacity": decision.capacity, "reason": decision.reason, "why": decision.why}


@dataclass(frozen=True)
class Launcher:
    """`policy`: without the group's limits. `max_instance_hours`: after which an instance should have ended itself."""

    backlog: Backlog
    group: Group
    policy: Policy
    max_instance_hours: float
    observe: Observe
    now: Callable[[], datetime] = lambda: datetime.now(UTC)

    def run(self, occasion: Occasion) -> Decision:
        """Decide, do it, and end what has to end.

        Raises:
            TransientError, ClientError, BotoCoreError: AWS would not answer.
            LookupError: there is no group.
        """
        now = self.now()
        waiting, group = self.backlog.waiting(now), self.group.look(now)
        policy = replace(self.policy, smallest=group.smallest, largest=group.largest)
        fleet = Fleet(
            desired=group.desired,
            alive=len(group.instances),
            failed_boots=failed_boots(group.activities, group.instances, now),
        )
        decision = decide(waiting, fleet, policy, occasion, lambda: self.backlog.audio_seconds(waiting))
        if decision.capacity != fleet.desired:
            self.group.set_desired(decision.capacity)
        self._tell(occasion, waiting, fleet, decision)
        self._reap(group, policy, decision, now)
        return decision

    def _tell(self, occasion: Occasion, waiting: Waiting, fleet: Fleet, decision: Decision) -> None:
        facts = {"occasion": occasion, "jobs": waiting.jobs, "oldest": waiting.oldest, **vars(fleet), **vars(decision)}
        logger.info("capacity", extra=facts)
        if waiting.jobs or fleet.desired or decision.capacity:  # each hour in which a metric is told costs
            self.observe(CAPACITY_DECISIONS, decision.reason)
            self.observe(DESIRED_CAPACITY, value=decision.capacity)

    def _reap(self, group: Standing, policy: Policy, decision: Decision, now: datetime) -> None:
        ends = to_end(
            group.instances,
            hours=hours_allowed(len(group.instances), policy, self.max_instance_hours + LATE_HOURS),
            gave_up=decision.reason is Reason.GAVE_UP,
            spare=decision.capacity - group.smallest,
            now=now,
        )
        for instance, end in ends:
            if not self.group.end(instance):
                continue
            logger.warning("ended", extra={"instance": instance.id, "launched": str(instance.launched), "reason": end})
            if end is End.TOO_LONG:
                self.observe(INSTANCES_REAPED)


@cache
def _launcher() -> Launcher:
    settings = load(LauncherSettings)
    sqs = boto3.client("sqs", config=RECEIVE_CONFIG)
    letters = [url for url in (settings.sqs_dlq_url, settings.sqs_failures_queue_url) if url]
    return Launcher(
        backlog=Backlog(
            jobs=Queue(sqs, settings.sqs_queue_url),
            letters=[Queue(sqs, url) for url in letters],
            cloudwatch=boto3.client("cloudwatch", config=CLIENT_CONFIG),
        ),
        group=Group(
            autoscaling=boto3.client("autoscaling", config=CLIENT_CONFIG),
            ec2=boto3.client("ec2", config=CLIENT_CONFIG),
            name=settings.group,
        ),
        policy=settings.policy,
        max_instance_hours=settings.max_instance_hours,
        observe=telemetry.observe,
    )
