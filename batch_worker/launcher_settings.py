"""The launcher's settings: the environment of its Lambda function."""

import math

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from batch_worker.capacity import Mode, Policy
from shared.prices import prices
from shared.telemetry import DEFAULT_DEPLOYMENT

# Seconds from the launch of an instance to a healthy server: the image is pulled and unpacked, the model loaded. A
# guess, nobody has measured it; an instance that takes 20 minutes gives up.
BOOT_SECONDS = 300.0


class LauncherSettings(BaseSettings):
    """Nothing of the audio is needed to count what waits."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    sqs_queue_url: str = Field(description="URL of the jobs queue; step-020 of infra/scripts prints it")
    sqs_dlq_url: str | None = Field(default=None, description="URL of its dead-letter queue")
    sqs_failures_queue_url: str | None = Field(default=None, description="URL of the router's failure destination")
    queue_prefix: str = Field(default=DEFAULT_DEPLOYMENT, description="names the group of instances, and the metrics")
    mode: Mode = Field(default=Mode.SCHEDULED, description="scheduled, on-demand or always")
    target_minutes: float = Field(default=60.0, gt=0, description="in which a backlog should be done")
    instance_speed: float = Field(default=40.0, gt=0, description="audio seconds that an instance does in a second")
    least_jobs: int = Field(default=1, ge=1, description="for which a window starts an instance")
    latest_age_hours: float = Field(default=24.0, gt=0, description="of a job that a window does not pass by")
    on_demand_age_minutes: float = Field(default=15.0, gt=0, description="of a job that starts an instance by itself")
    run_budget: float | None = Field(default=None, gt=0, description="dollars for one emptying of the queue")
    boots_allowed: int = Field(default=2, ge=1, description="instances that may fail to start, in 3 hours")
    idle_timeout_minutes: float = Field(default=10.0, gt=0, description="after which an instance ends itself")
    max_instance_hours: float = Field(default=12.0, gt=0, description="after which an instance ends in any case")
    instance_types: str = Field(default="g4dn.xlarge,g5.xlarge,g6.xlarge", description="with commas")
    instance_type: str | None = Field(default=None, description="the only one")
    on_demand_percent: int = Field(default=0, ge=0, le=100, description="share of on-demand instances")

    @model_validator(mode="after")
    def _a_budget_needs_prices(self) -> "LauncherSettings":
        if self.run_budget and None in self._prices:
            raise ValueError("RUN_BUDGET needs a price of each instance type in shared/prices.json")
        return self

    @property
    def group(self) -> str:
        """The Auto Scaling group, as infra/scripts name it."""
        return f"{self.queue_prefix}-gpu"

    @property
    def policy(self) -> Policy:
        """Without the group's own limits, which it is asked for."""
        return Policy(
            mode=self.mode,
            smallest=0,
            largest=0,
            speed=self.instance_speed,
            target=self.target_minutes * 60,
            boot=BOOT_SECONDS,
            idle=self.idle_timeout_minutes * 60,
            least_jobs=self.least_jobs,
            latest_age=self.latest_age_hours * 3600,
            on_demand_age=self.on_demand_age_minutes * 60,
            price=max(price or 0.0 for price in self._prices),
            budget=self.run_budget or math.inf,
            boots_allowed=self.boots_allowed,
        )

    @property
    def _prices(self) -> list[float | None]:
        """Dollars an hour of each type that may come. The dearest is reckoned with."""
        market = "spot" if self.on_demand_percent == 0 else "on-demand"
        types = (self.instance_type or self.instance_types).split(",")
        return [prices().an_hour(type, market) for type in types]
