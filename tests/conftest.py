"""Fixtures that every folder of tests uses."""

from collections.abc import Iterator

import boto3
import pytest
from moto import mock_aws

from shared.store import CLIENT_CONFIG, S3Store, Store
from tests.fakes import MemoryStore


@pytest.fixture
def store() -> MemoryStore:
    return MemoryStore()


@pytest.fixture(params=["memory", "s3"])
def any_store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[Store]:
    """The in-memory port and the real one on moto: what a test shows of one must hold for the other."""
    if request.param == "memory":
        yield MemoryStore()
        return
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    with mock_aws():
        client = boto3.client("s3", region_name="us-east-1", config=CLIENT_CONFIG)
        client.create_bucket(Bucket="audio-bucket")
        yield S3Store(client, "audio-bucket")
