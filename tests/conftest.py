"""Fixtures that every folder of tests uses."""

import os
from collections.abc import Iterator

import boto3
import pytest
from hypothesis import settings
from moto import mock_aws

from shared.store import CLIENT_CONFIG, S3Store, Store
from tests.fakes import MemoryStore

# CI sees the same examples every time; a person's runs look for new ones.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("dev", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


LONGEST = "integration"  # the folder whose tests take longest: they begin first
ONE_STACK = {LONGEST, "infra"}  # folders whose tests share a local AWS


@pytest.hookimpl(tryfirst=True)  # before xdist reads the groups
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """For `pytest -n`: what shares a session's fixtures stays in one process, one file or one folder."""
    for item in items:
        folder = item.path.parent.name
        item.add_marker(pytest.mark.xdist_group(folder if folder in ONE_STACK else item.path.stem))
    items.sort(key=lambda item: item.path.parent.name != LONGEST)


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
