"""The worker's settings."""

from typing import Literal

from pydantic import Field

from shared.imds import IMDS
from shared.settings import AwsSettings
from shared.telemetry import DEFAULT_DEPLOYMENT


class WorkerSettings(AwsSettings):
    sqs_queue_url: str = Field(description="URL of the jobs queue; step-020 of infra/scripts prints it")
    sqs_dlq_url: str | None = Field(default=None, description="URL of its dead-letter queue")
    sqs_failures_queue_url: str | None = Field(default=None, description="URL of the router's failure destination")
    fast_api_server_url: str = Field(
        default="http://127.0.0.1:8000", pattern=r"^https?://", description="base URL of the GPU server to work through"
    )
    worker_concurrency: int = Field(default=4, ge=1, le=64, description="jobs at the server at once")
    group_messages: int = Field(
        default=100, ge=1, le=10_000, description="messages received together at most, to find chunks of one session"
    )
    visibility_timeout: int = Field(default=120, ge=2, le=43_200, description="seconds a received message is ours")
    heartbeat_interval: float = Field(default=30.0, gt=0, description="seconds between renewals of that")
    job_timeout: float = Field(default=1800.0, gt=0, description="seconds for one job at the server")
    server_wait: float = Field(default=300.0, ge=0, description="seconds to wait for a server that is starting")
    poll_seconds: int = Field(default=20, ge=1, le=20, description="long poll; also how long 'empty' must last")
    drain_timeout: float = Field(default=25.0, gt=0, description="seconds for jobs in flight after SIGTERM")
    idle_timeout_minutes: float = Field(default=10.0, gt=0, description="minutes without work until --until-idle ends")
    imds_endpoint: str = Field(
        default=IMDS, pattern=r"^https?://", description="base URL of EC2's instance metadata service"
    )
    metrics: Literal["off", "emf"] = Field(
        default="off", description="emf: print metrics for CloudWatch, every minute, to stdout"
    )
    queue_prefix: str = Field(default=DEFAULT_DEPLOYMENT, description="names this deployment in the metrics")
