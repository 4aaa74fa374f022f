"""The Lambda's entry point: builds the router once per environment, and maps outcomes to what Lambda acts on.

A handler that returns has succeeded, as far as an asynchronous invocation goes: so whatever could not be handled
raises, and Lambda's two retries and its failure destination keep the event.
"""

import os
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from functools import cache
from typing import Any
from zoneinfo import ZoneInfo

import boto3
from aws_lambda_powertools import Logger

from router_lambda.decide import Decision, Policy
from router_lambda.discovery import fixed, tagged
from router_lambda.route import Decided, Router
from router_lambda.server_key import stored
from router_lambda.settings import RouterSettings
from shared.bus import publisher
from shared.combine import Combiner
from shared.errors import PermanentError
from shared.events import unwrap_events
from shared.queues import SEND_CONFIG, Queue
from shared.server import ServerClient
from shared.settings import load
from shared.store import CLIENT_CONFIG, S3Store
from shared.telemetry import (
    DECISIONS,
    DEFAULT_DEPLOYMENT,
    JOBS_QUEUED,
    RETRIES,
    UNAUTHORIZED,
    UPLOAD_TO_TRANSCRIPT,
    Telemetry,
    counted,
)

logger = Logger(service="router")
telemetry = Telemetry(os.environ.get("QUEUE_PREFIX") or DEFAULT_DEPLOYMENT)


def handler(event: Any, context: Any) -> dict[str, Any]:
    """Handle one event or a batch of them; raises if any could not be handled, after all were tried."""
    router = _router()
    decisions, errors = [], []
    try:
        for one in unwrap_events(event):
            started = time.monotonic()
            try:
                decided = router.handle(one, remaining=lambda: context.get_remaining_time_in_millis() / 1000)
            except Exception as error:  # the outermost edge: logged here, raised below
                errors.append(error)
                _log_error(error)
            else:
                decisions.append(asdict(decided))
                _log(decided, time.monotonic() - started)
                _count(decided, one)
    finally:
        telemetry.flush()
    if len(errors) == 1:
        raise errors[0]
    if errors:
        raise ExceptionGroup(f"{len(errors)} events were not handled", errors)
    return {"decisions": decisions}


def _log(decided: Decided, seconds: float) -> None:
    logger.info("decided", extra={**asdict(decided), "milliseconds": round(seconds * 1000)})


def _count(decided: Decided, event: Any) -> None:
    telemetry.observe(DECISIONS, decided.decision)
    if decided.queued:
        telemetry.observe(JOBS_QUEUED, decided.queued)
    if decided.attempts > 1:
        telemetry.observe(RETRIES, value=decided.attempts - 1)
    if decided.unauthorized:
        telemetry.observe(UNAUTHORIZED)
    if decided.decision is Decision.DIRECT and (uploaded := _uploaded(event)):
        waited = (datetime.now(UTC) - uploaded).total_seconds()
        telemetry.observe(UPLOAD_TO_TRANSCRIPT, "direct", value=max(0.0, waited))


def _uploaded(event: Any) -> datetime | None:
    """When the upload was, as EventBridge or S3's own notification says it; other events do not."""
    try:
        uploaded = datetime.fromisoformat(event.get("time") or event.get("eventTime"))
    except (TypeError, ValueError):
        return None
    return uploaded if uploaded.tzinfo else None


def _log_error(error: Exception) -> None:
    permanent = isinstance(error, PermanentError)
    name = error.type if isinstance(error, PermanentError) else type(error).__name__
    logger.error("not handled", extra={"error": name, "reason": str(error)}, exc_info=not permanent)
    telemetry.observe(DECISIONS, "refused" if permanent else "error")


@cache
def _router() -> Router:
    settings = load(RouterSettings)
    store = S3Store(
        boto3.client("s3", config=CLIENT_CONFIG), settings.audio_bucket, expected_owner=settings.expected_bucket_owner
    )
    if settings.server_urls or not settings.gpu_server_tag:
        discover = fixed(settings.server_urls)
    else:
        ec2 = boto3.client("ec2", config=CLIENT_CONFIG)
        discover = tagged(ec2, settings.gpu_server_tag, port=settings.fast_api_port, clock=time.monotonic)
    key = _server_key(settings)
    publish = publisher(boto3.client("events", config=CLIENT_CONFIG), settings.event_bus_name)
    return Router(
        store=store,
        queue=Queue(boto3.client("sqs", config=SEND_CONFIG), settings.sqs_queue_url),
        combiner=Combiner(store, counted(publish, telemetry.observe)),
        discover=discover,
        connect=lambda url: ServerClient(url, api_key=key()),
        policy=Policy(
            batch_only=settings.routing == "batch",
            defer_above=settings.defer_above_bytes,
            long_above=settings.long_audio_bytes,
            live_window=settings.live_window,
            restitch=settings.restitch,
        ),
        timezone=ZoneInfo(settings.live_timezone),
        health_seconds=settings.health_check_timeout,
    )


def _server_key(settings: RouterSettings) -> Callable[[], str | None]:
    name = settings.api_key_parameter
    if not name:
        return lambda: settings.server_key
    # Made when a server is first asked: a cold start that meets none does not wait for it.
    parameter = cache(lambda: stored(boto3.client("ssm", config=CLIENT_CONFIG), name))
    return lambda: parameter()()
