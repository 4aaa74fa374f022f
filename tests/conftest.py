"""Fixtures that every folder of tests uses."""

import os
from collections.abc import Iterator
from pathlib import PurePath

import boto3
import pytest
from hypothesis import settings
from moto import mock_aws
from xdist.remote import Producer
from xdist.scheduler import LoadScopeScheduling
from xdist.scheduler.protocol import Scheduling

from shared.store import CLIENT_CONFIG, S3Store, Store
from tests.fakes import MemoryStore

# CI sees the same examples every time; a person's runs look for new ones.
settings.register_profile("ci", derandomize=True, deadline=None)
settings.register_profile("dev", deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


LONGEST = "integration"  # the folder whose tests take longest: they begin first
ONE_STACK = {LONGEST, "infra"}  # folders whose tests share a local AWS


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.parent.name != LONGEST)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Scheduling:
    """For `pytest -n`: what shares a session's fixtures stays in one process, a file or a whole folder."""
    return Together(config, log)


class Together(LoadScopeScheduling):
    def _split_scope(self, nodeid: str) -> str:
        file = PurePath(nodeid.partition("::")[0])
        return str(file.parent if file.parent.name in ONE_STACK else file)


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
