"""Settings name what is wrong with them."""

import pytest

from router_lambda.settings import RouterSettings
from shared.errors import SettingsError
from shared.settings import load

GOOD = {"AWS_REGION": "us-east-2", "AUDIO_BUCKET": "audio-bucket", "SQS_QUEUE_URL": "https://sqs/q"}


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in RouterSettings.model_fields:
        monkeypatch.delenv(name.upper(), raising=False)
    for name, value in GOOD.items():
        monkeypatch.setenv(name, value)
    return monkeypatch


def test_the_minimum_is_enough(environment: pytest.MonkeyPatch) -> None:
    settings = load(RouterSettings)
    assert settings.server_urls == ()
    assert settings.health_check_timeout == 2


@pytest.mark.parametrize("name", sorted(GOOD))
def test_a_missing_setting_is_named(environment: pytest.MonkeyPatch, name: str) -> None:
    environment.delenv(name)
    with pytest.raises(SettingsError, match=f"{name} is not set .expected: "):
        load(RouterSettings)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("FAST_API_SERVER_URL", "http://8.8.8.8:8000"),
        ("FAST_API_SERVER_URL", "ftp://server"),
        ("HEALTH_CHECK_TIMEOUT", "soon"),
        ("LIVE_HOURS", "8-18"),
        ("LIVE_TIMEZONE", "Mars/Olympus"),
        ("ROUTING", "sometimes"),
        ("GPU_SERVER_TAG", "no-equals-sign"),
    ],
)
def test_a_wrong_setting_is_named_with_its_value(environment: pytest.MonkeyPatch, name: str, value: str) -> None:
    environment.setenv(name, value)
    with pytest.raises(SettingsError, match=f"{name} is '{value}'"):
        load(RouterSettings)


def test_several_servers_may_be_named(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("FAST_API_SERVER_URL", "http://10.0.0.1:8000, https://gpu.example.com")
    assert load(RouterSettings).server_urls == ("http://10.0.0.1:8000", "https://gpu.example.com")


def test_empty_means_unset(environment: pytest.MonkeyPatch) -> None:
    environment.setenv("DEFER_ABOVE_BYTES", "")
    assert load(RouterSettings).defer_above_bytes is None
