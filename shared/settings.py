"""Settings: read once at the edge of a program, wrong or missing ones named in words a person can act on."""

from typing import Any, Literal, TypeVar

from pydantic import Field, SecretStr, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from shared.errors import SettingsError

S = TypeVar("S", bound=BaseSettings)


class AwsSettings(BaseSettings):
    """What every program needs to find its bucket, queues and bus. Field names are the variables' names."""

    model_config = SettingsConfigDict(frozen=True, extra="ignore", env_ignore_empty=True)

    aws_region: str = Field(description="the region of bucket and queues, e.g. us-east-2")
    audio_bucket: str = Field(
        min_length=3, max_length=63, description="the bucket with the audio; step-020 of infra/scripts creates it"
    )
    event_bus_name: str = Field(default="default", description="the bus that gets 'Session Transcribed'")
    expected_bucket_owner: str | None = Field(
        default=None, pattern=r"^\d{12}$", description="account id that must own the bucket; S3 checks it"
    )
    session_finish: Literal["restitch", "combine"] = Field(
        default="restitch",
        description="restitch: a session of chunks that were heard alone is heard once more, whole; combine: it is not",
    )
    api_key: SecretStr | None = Field(default=None, description="the server's key")

    @property
    def restitch(self) -> bool:
        return self.session_finish == "restitch"

    @property
    def server_key(self) -> str | None:
        """The key to send. While keys are rotated the server takes several; callers use the first."""
        return self.api_key.get_secret_value().split(",")[0].strip() if self.api_key else None


def load(settings: type[S], **values: Any) -> S:
    """Build settings from the environment.

    Raises:
        SettingsError: says which variable, what is wrong with it and what is expected, for all of them at once.
    """
    try:
        return settings(**values)
    except ValidationError as error:
        lines = [_describe(settings, problem) for problem in error.errors(include_url=False)]
        raise SettingsError("\n".join(lines) + "\nSee .env.example for every variable.") from None


def _describe(settings: type[BaseSettings], problem: Any) -> str:
    name = str(problem["loc"][0]) if problem["loc"] else ""
    expected = settings.model_fields[name].description if name in settings.model_fields else None
    if problem["type"] == "missing":
        given = "is not set"
    elif "key" in name:  # a secret must not reach a log
        given = f"is wrong: {problem['msg']}"
    else:
        given = f"is {problem['input']!r}: {problem['msg']}" if name else problem["msg"]
    return f"{name.upper()} {given}".strip() + (f" (expected: {expected})" if expected else "")
