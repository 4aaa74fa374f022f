"""`python -m batch_worker [--until-empty | --until-idle]`: wires settings, AWS and server; status 0: all is done."""

import argparse
import contextlib
import os
import signal
import sys
from typing import Any

import boto3
from aws_lambda_powertools import Logger

from batch_worker.arrivals import Arrivals
from batch_worker.batch import Batch, Summary
from batch_worker.drain import HEALTH_LIMITS, Drain, Tally
from batch_worker.instance import Instance, membership, this_instance
from batch_worker.lease import Leases
from batch_worker.letters import Letters
from batch_worker.notices import Notices
from batch_worker.recorder import Recorder
from batch_worker.settings import WorkerSettings
from batch_worker.stay import Stay
from batch_worker.stopping import Stopping
from batch_worker.work import Worker
from shared.bus import publisher
from shared.combine import Combiner
from shared.errors import SettingsError, TransientError
from shared.imds import Imds
from shared.queues import RECEIVE_CONFIG, Queue
from shared.server import ServerClient
from shared.settings import load
from shared.store import CLIENT_CONFIG, S3Store
from shared.telemetry import Observe, Pulse, Telemetry, counted, unobserved

EXIT_LEFT = 1
EXIT_SETTINGS = 2

logger = Logger(service="batch-worker", stream=sys.stderr)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m batch_worker", description=__doc__)
    until = parser.add_mutually_exclusive_group()
    until.add_argument("--until-empty", action="store_true", help="drain, sweep, and exit with a summary")
    until.add_argument("--until-idle", action="store_true", help="the same, stay while jobs come, and end the instance")
    arguments = parser.parse_args()
    try:
        settings = load(WorkerSettings)
    except SettingsError as error:
        print(error, file=sys.stderr)
        return EXIT_SETTINGS
    stopping = Stopping(settings.drain_timeout)
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stopping.set())
    telemetry = Telemetry(settings.queue_prefix) if settings.metrics == "emf" else None
    imds = Imds(settings.imds_endpoint)
    instance = this_instance(imds) if arguments.until_idle else None
    tally = Tally(_observe(telemetry))
    recorder = _recorder(settings, instance, tally) if arguments.until_empty or arguments.until_idle else None
    with (
        Pulse(telemetry.flush) if telemetry else contextlib.nullcontext(),
        Notices(imds, stopping, _observe(telemetry)) if instance else contextlib.nullcontext(),
        Leases(visibility=settings.visibility_timeout, interval=settings.heartbeat_interval) as leases,
        recorder or contextlib.nullcontext(),
    ):
        batch = _batch(settings, stopping, leases, telemetry, tally, recorder)
        try:
            if arguments.until_empty:
                return _report(batch.run())
            if arguments.until_idle:
                _report(_stay(settings, batch, instance).run())
            else:
                batch.drain.run(until_empty=False)
        except TransientError as error:
            logger.error("stopped", extra={"reason": str(error)})
            return EXIT_LEFT
    return 0


def _report(summary: Summary) -> int:
    print(summary.text())
    return 0 if summary.all_done else EXIT_LEFT


def _observe(telemetry: Telemetry | None) -> Observe:
    return telemetry.observe if telemetry else unobserved


def _stay(settings: WorkerSettings, batch: Batch, instance: Instance | None) -> Stay:
    client = boto3.client("autoscaling", config=CLIENT_CONFIG, region_name=settings.aws_region)
    return Stay(batch, membership(client, instance) if instance else None, settings.idle_timeout_minutes * 60)


def _recorder(settings: WorkerSettings, instance: Instance | None, tally: Tally) -> Recorder:
    server = _server(settings)

    def busy_seconds() -> float | None:
        work = server.work(HEALTH_LIMITS)
        return work.busy_seconds if work else None

    return Recorder(_store(settings), instance, tally.results, busy_seconds=busy_seconds)


def _server(settings: WorkerSettings) -> ServerClient:
    return ServerClient(settings.fast_api_server_url, api_key=settings.server_key)


def _store(settings: WorkerSettings) -> S3Store:
    s3 = boto3.client("s3", config=CLIENT_CONFIG, region_name=settings.aws_region)
    return S3Store(s3, settings.audio_bucket, expected_owner=settings.expected_bucket_owner)


def _batch(
    settings: WorkerSettings,
    stopping: Stopping,
    leases: Leases,
    telemetry: Telemetry | None,
    tally: Tally,
    recorder: Recorder | None,
) -> Batch:
    observe = _observe(telemetry)
    region: dict[str, Any] = {"region_name": settings.aws_region}
    sqs = boto3.client("sqs", config=RECEIVE_CONFIG, **region)
    events = boto3.client("events", config=CLIENT_CONFIG, **region)
    publish = counted(publisher(events, settings.event_bus_name), observe)
    store = _store(settings)
    dead_letters = Queue(sqs, settings.sqs_dlq_url) if settings.sqs_dlq_url else None
    worker = Worker(
        store=store,
        combiner=Combiner(store, publish),
        server=_server(settings),
        job_seconds=settings.job_timeout,
        stopping=stopping,
        witness=recorder,
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
        group_messages=settings.group_messages,
        tally=tally,
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
