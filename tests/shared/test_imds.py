"""The instance metadata service's client: its token, what is not there, and a service that is away."""

import httpx
import pytest

from shared.imds import Imds
from tests.imds import FakeImds


def test_a_token_serves_until_it_is_too_old() -> None:
    with FakeImds(**{"instance-id": "i-0123"}) as metadata:
        imds = Imds(metadata.url)
        assert imds.get("instance-id") == imds.get("instance-id") == "i-0123"
        assert len(metadata.tokens) == 1
        metadata.tokens.clear()
        assert imds.get("instance-id") == "i-0123"


def test_what_is_not_there_is_none_and_what_fails_raises() -> None:
    with FakeImds() as metadata:
        assert Imds(metadata.url).get("spot/instance-action") is None
    with pytest.raises(httpx.HTTPError):
        Imds("http://127.0.0.1:9").get("instance-id")
