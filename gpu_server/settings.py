"""The GPU server's settings."""

import ipaddress
from pathlib import Path
from typing import Literal, Self

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.telemetry import DEFAULT_DEPLOYMENT


class ServerSettings(BaseSettings):
    """Without AUDIO_BUCKET the server takes uploads only; without API_KEY it listens on loopback only."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    fast_api_host: str = Field(default="127.0.0.1", description="address to listen on")
    fast_api_port: int = Field(default=8000, ge=1, le=65535)
    api_key: SecretStr | None = Field(default=None, description="the key callers send; several with commas")
    api_key_file: Path | None = Field(default=None, description="a file with the key, instead of API_KEY")
    auth: Literal["on", "off"] = Field(default="on", description="off: no key, loopback only")

    whisper_model: str = Field(default="tiny.en", description="a Whisper model's name, or a folder with one")
    engine: Literal["auto", "whisperx", "faster-whisper"] = "auto"
    device: Literal["auto", "cpu", "cuda"] = "auto"
    compute_type: str = Field(default="default", description="CTranslate2's: int8, float16, ...")
    threads: int = Field(default=0, ge=0, description="CPU threads for recognition; 0: all")
    beam_size: int = Field(
        default=5, ge=1, le=16, description="of the search; on a CPU it is used where a greedy one is unsure"
    )
    vad: Literal["auto", "silero", "pyannote"] = Field(
        default="auto", description="the speech detector; auto is Silero's, pyannote's comes with the whisperx engine"
    )
    live_context: float = Field(
        default=0.0, ge=0, le=20, description="seconds of a session's audio before a lone chunk that are heard with it"
    )
    session_finish: Literal["restitch", "combine"] = Field(
        default="restitch", description="restitch: a session whose chunks came one by one is heard again as a whole"
    )
    align_model_dir: Path | None = Field(default=None, description="folder of wav2vec2 models, one per language")

    aws_region: str | None = None
    audio_bucket: str | None = Field(default=None, description="the bucket the server may read and write")
    event_bus_name: str = "default"
    expected_bucket_owner: str | None = Field(default=None, pattern=r"^\d{12}$")

    max_in_flight: int = Field(default=32, ge=1, description="jobs at once, running and waiting; more get 429")
    max_upload_bytes: int = Field(default=500_000_000, ge=1)
    max_audio_seconds: float = Field(default=4 * 3600.0, gt=0)
    decoders: int = Field(default=2, ge=1, description="decoder processes")
    decode_timeout: float = Field(default=120.0, gt=0, description="seconds for one file")
    request_timeout: float = Field(default=1800.0, gt=0, description="seconds until a waiting caller gets 504")
    drain_timeout: float = Field(default=25.0, gt=0, description="seconds for work in flight after SIGTERM")

    metrics: Literal["off", "emf"] = Field(
        default="off", description="emf: print metrics for CloudWatch, every minute, to stdout"
    )
    queue_prefix: str = Field(default=DEFAULT_DEPLOYMENT, description="names this deployment in the metrics")

    allow_url_fetch: bool = Field(default=False, description="turns POST /transcribe-url on")
    url_fetch_hosts: str = Field(default="", description="host:port entries, with commas, allowed even if private")
    url_fetch_timeout: float = Field(default=60.0, gt=0)

    @property
    def keys(self) -> tuple[str, ...]:
        """The accepted keys: two of them while one is being rotated."""
        if self.auth == "off":
            return ()
        text = self.api_key.get_secret_value() if self.api_key else ""
        if self.api_key_file:
            text = self.api_key_file.read_text()
        return tuple(key.strip() for key in text.split(",") if key.strip())

    @property
    def fetch_hosts(self) -> frozenset[str]:
        return frozenset(host.strip() for host in self.url_fetch_hosts.split(",") if host.strip())

    @field_validator("api_key_file")
    @classmethod
    def _readable(cls, path: Path | None) -> Path | None:
        try:
            if path:
                path.read_text()
        except OSError as error:
            raise ValueError(f"cannot be read: {error.strerror}") from error
        return path

    @model_validator(mode="after")
    def _no_open_door(self) -> Self:
        if not self.keys and not _is_loopback(self.fast_api_host):
            raise ValueError(
                f"FAST_API_HOST={self.fast_api_host} is reachable from outside and there is no API_KEY: "
                "set API_KEY (or API_KEY_FILE), or listen on 127.0.0.1"
            )
        if self.audio_bucket and not self.aws_region:
            raise ValueError("AUDIO_BUCKET is set and AWS_REGION is not: set the bucket's region")
        return self


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
