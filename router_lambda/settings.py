"""The router's settings: the environment of the Lambda function."""

import ipaddress
from datetime import time
from typing import Literal
from urllib.parse import urlsplit
from zoneinfo import ZoneInfo

from pydantic import Field, field_validator

from shared.settings import AwsSettings


class RouterSettings(AwsSettings):
    sqs_queue_url: str = Field(description="URL of the jobs queue; step-020 of infra/scripts prints it")
    fast_api_server_url: str = Field(
        default="", description="base URL of the GPU server, or several with commas; empty: found by GPU_SERVER_TAG"
    )
    gpu_server_tag: str = Field(
        default="", pattern=r"^([^=]+=[^=]+)?$", description="Name=value tag of running GPU instances"
    )
    fast_api_port: int = Field(default=8000, ge=1, le=65535)
    api_key_parameter: str | None = Field(default=None, description="SSM parameter that holds the server's key")
    health_check_timeout: float = Field(default=2.0, gt=0, le=10, description="seconds")
    routing: Literal["live", "batch"] = Field(default="live", description="live, or batch: everything to the queue")
    defer_above_bytes: int | None = Field(default=None, ge=0, description="larger audio goes to the queue")
    long_audio_bytes: int = Field(default=5_000_000, ge=0, description="larger audio is not waited for")
    live_hours: str = Field(
        default="",
        pattern=r"^(([01]\d|2[0-3]):[0-5]\d-([01]\d|2[0-3]):[0-5]\d)?$",
        description="HH:MM-HH:MM, outside of which everything goes to the queue; empty: always live",
    )
    live_timezone: str = Field(default="UTC", description="IANA time zone of LIVE_HOURS, e.g. Europe/Berlin")

    @field_validator("fast_api_server_url")
    @classmethod
    def _no_plain_http_to_the_internet(cls, urls: str) -> str:
        for url in filter(None, urls.split(",")):
            parts = urlsplit(url.strip())
            if parts.scheme not in ("http", "https") or not parts.hostname:
                raise ValueError("not an http(s) URL")
            if parts.scheme == "http" and _is_public_address(parts.hostname):
                raise ValueError("a public address needs https: audio and key would travel in the clear")
        return urls

    @field_validator("live_timezone")
    @classmethod
    def _known_zone(cls, zone: str) -> str:
        try:
            ZoneInfo(zone)
        except (KeyError, ValueError, OSError) as error:
            raise ValueError("not an IANA time zone") from error
        return zone

    @property
    def server_urls(self) -> tuple[str, ...]:
        return tuple(url.strip() for url in self.fast_api_server_url.split(",") if url.strip())

    @property
    def live_window(self) -> tuple[time, time] | None:
        if not self.live_hours:
            return None
        start, end = self.live_hours.split("-")
        return time.fromisoformat(start), time.fromisoformat(end)


def _is_public_address(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return False
