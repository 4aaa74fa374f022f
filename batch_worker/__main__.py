"""`python -m batch_worker [--until-empty]`: wires settings, AWS and server; exit status 0 means that all is done."""

import argparse
import contextlib
import os
import signal
import sys
import threading
from typing import Any

import boto3
from aws_lambda_powertools import Logger

from batch_worker.arrivals import Arrivals
from batch_worker.batch import Batch, Summary
from batch_worker.drain import Drain, Tally
from batch_worker.lease import Leases
from batch_worker.letters import Letters
from batch_worker.settings import WorkerSettings
from batch_worker.work import Worker
from shared.bus import publisher
from shared.combine import Combiner
from shared.errors import SettingsError, TransientError
from shared.queues import RECEIVE_CONFIG, Queue
from shared.server import ServerClient
from shared.settings import load
from shared.store import CLIENT_CONFIG, S3Store
from shared.telemetry import Pulse, Telemetry, counted, unobserved

EXIT_LEFT = 1
EXIT_SETTINGS = 2

logger = Logger(service="batch-worker", stream=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m batch_worker", description=__doc__)
    parser.add_argument("--until-empty", action="store_true", help="drain, sweep, and exit with a summary")
    until_empty: bool = parser.parse_args().until_empty
    try:
        settings = load(WorkerSettings)
    except SettingsError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return EXIT_SETTINGS
    stopping = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    telemetry = Telemetry(settings.queue_prefix) if settings.metrics == "emf" else None
    with (
        Pulse(telemetry.flush) if telemetry else contextlib.nullcontext(),
        Leases(visibility=settings.visibility_timeout, interval=settings.heartbeat_interval) as leases,
    ):
        batch = _batch(settings, stopping, leases, telemetry)
        try:
            if until_empty:
                return _report(batch.run())
            batch.drain.run(until_empty=False)
        except TransientError as error:
            logger.error("stopped", extra={"reason": str(error)})
            return EXIT_LEFT
    return 0


def _report(summary: Summary) -> int:
    print(summary.text())  # noqa: T201
    return 0 if summary.all_done else EXIT_LEFT


def _batch(settings: WorkerSettings, stopping: threading.Event, leases: Leases, telemetry: Telemetry | None) -> Batch:
    observe = telemetry.observe if telemetry else unobserved
    region: dict[str, Any] = {"region_name": settings.aws_region}
    sqs = boto3.client("sqs", config=RECEIVE_CONFIG, **region)
    s3 = boto3.client("s3", config=CLIENT_CONFIG, **region)
    events = boto3.client("events", config=CLIENT_CONFIG, **region)
    publish = counted(publisher(events, settings.event_bus_name), observe)
    store = S3Store(s3, settings.audio_bucket, expected_owner=settings.expected_bucket_owner)
    dead_letters = Queue(sqs, settings.sqs_dlq_url) if settings.sqs_dlq_url else None
    worker = Worker(
        store=store,
        combiner=Combiner(store, publish),
        server=ServerClient(settings.fast_api_server_url, api_key=settings.server_key),
        job_seconds=settings.job_timeout,
        stopping=stopping,
    )
    drain = Drain(
        queue=Queue(sqs, settings.sqs_queue_url),
        dead_letters=dead_letters,
        worker=worker,
        leases=leases,
        stopping=stopping,
        concurrency=settings.worker_concurrency,
        visibility=settings.visibility_timeout,
        poll_seconds=settings.poll_seconds,
        server_wait=settings.server_wait,
        drain_timeout=settings.drain_timeout,
        group_messages=settings.group_messages,
        tally=Tally(observe),
        arrivals=Arrivals(store, observe) if telemetry else None,
    )
    letters = [Queue(sqs, url) for url in (settings.sqs_failures_queue_url, settings.sqs_dlq_url) if url]
    return Batch(
        drain=drain,
        letters=[Letters(queue, drain, dead_letters) for queue in letters],
        store=store,
        new_combiner=lambda: Combiner(store, publish),
        restitch=settings.restitch,
    )


if __name__ == "__main__":
    status = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not sys.exit: that would wait for jobs whose messages are given back already.
    os._exit(status)
