"""The store port, on both of its implementations; and what only the real one can show."""

from pathlib import Path
from typing import Any

import boto3
import pytest
from botocore.exceptions import (
    ClientError,
    ConnectionClosedError,
    FlexibleChecksumError,
    IncompleteReadError,
    ReadTimeoutError,
)
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from moto import mock_aws

from shared.errors import StoreUnavailable
from shared.store import ABSENT, CLIENT_CONFIG, Changed, PreconditionFailed, S3Store, Store
from tests.fakes import MemoryStore

CONDITIONS = ("absent", "current", "older")


def put(store: Store, key: str, body: bytes, if_match: str = ABSENT, **metadata: str) -> str:
    return store.put(key, body, content_type="text/plain", if_match=if_match, metadata=metadata)


def test_what_is_not_there_is_none(any_store: Store, tmp_path: Path) -> None:
    assert any_store.head("a") is None
    assert any_store.get("a") is None
    assert not any_store.download("a", tmp_path / "a", etag="e")
    assert list(any_store.list("")) == []


def test_only_one_of_two_creations_wins(any_store: Store) -> None:
    put(any_store, "a", b"1")
    with pytest.raises(PreconditionFailed):
        put(any_store, "a", b"2")
    stored = any_store.get("a")
    assert stored is not None
    assert stored.body == b"1"


def test_a_replacement_needs_the_current_etag(any_store: Store) -> None:
    first = put(any_store, "a", b"1")
    second = put(any_store, "a", b"2", first)
    with pytest.raises(PreconditionFailed):
        put(any_store, "a", b"3", first)
    with pytest.raises(PreconditionFailed):
        put(any_store, "gone", b"3", second)
    info = any_store.head("a")
    assert info is not None
    assert info.etag == second


def test_a_download_is_of_one_version(any_store: Store, tmp_path: Path) -> None:
    first = put(any_store, "a", b"1")
    assert any_store.download("a", tmp_path / "a", etag=first)
    assert (tmp_path / "a").read_bytes() == b"1"
    put(any_store, "a", b"2", first)
    with pytest.raises(Changed):
        any_store.download("a", tmp_path / "a", etag=first)


def test_metadata_and_odd_keys_come_back(any_store: Store) -> None:
    key = "users/jo é/a+b%20c/☕.json"
    put(any_store, key, b"1", view="abc")
    info = any_store.head(key)
    assert info is not None
    assert (info.key, info.size, info.metadata) == (key, 1, {"view": "abc"})
    assert [item.key for item in any_store.list("users/jo é/")] == [key]


def test_a_listing_goes_on_after_a_thousand_keys(any_store: Store) -> None:
    for number in range(1005):
        put(any_store, f"p/{number:04}", b"")
    put(any_store, "q/other", b"")
    assert [info.key for info in any_store.list("p/")] == [f"p/{number:04}" for number in range(1005)]
    assert [info.key for info in any_store.list("p/", after="p/1001")] == ["p/1002", "p/1003", "p/1004"]


@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from([b"1", b"2"]), st.sampled_from(CONDITIONS))))
def test_memory_and_s3_agree_on_every_sequence_of_writes(writes: list[tuple[str, bytes, str]]) -> None:
    def run(store: Store) -> list[Any]:
        history: list[Any] = []
        past: dict[str, str] = {}
        for key, body, condition in writes:
            info = store.head(key)
            current, older = info.etag if info else "0" * 32, past.get(key, "f" * 32)
            if_match = dict(zip(CONDITIONS, (ABSENT, current, older), strict=True))[condition]
            try:
                etag = put(store, key, body, if_match)
                past.setdefault(key, etag)
                history.append("written")
            except PreconditionFailed:
                history.append("refused")
            stored = store.get(key)
            history.append(stored and stored.body)
        return history

    with mock_aws():
        client = boto3.client(
            "s3", region_name="us-east-1", config=CLIENT_CONFIG, aws_access_key_id="x", aws_secret_access_key="x"
        )
        client.create_bucket(Bucket="audio-bucket")
        assert run(MemoryStore()) == run(S3Store(client, "audio-bucket"))


class FlakyClient:
    """A boto3 client whose first `faults` calls fail."""

    def __init__(self, client: Any, *faults: Exception) -> None:
        self._client, self._faults = client, list(faults)

    def __getattr__(self, name: str) -> Any:
        def call(**arguments: Any) -> Any:
            if self._faults:
                raise self._faults.pop(0)
            return getattr(self._client, name)(**arguments)

        return call


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
    with mock_aws():
        client = boto3.client("s3", region_name="us-east-1", config=CLIENT_CONFIG)
        client.create_bucket(Bucket="audio-bucket")
        yield client


def test_faults_that_botocore_passes_on_are_retried(client: Any) -> None:
    client.put_object(Bucket="audio-bucket", Key="a", Body=b"1")
    faults = FlexibleChecksumError(error_msg="truncated"), IncompleteReadError(actual_bytes=1, expected_bytes=2)
    store = S3Store(FlakyClient(client, *faults), "audio-bucket")
    stored = store.get("a")
    assert stored is not None
    assert stored.body == b"1"


def test_a_store_that_stays_away_is_a_transient_error(client: Any) -> None:
    for fault in (FlexibleChecksumError(error_msg="truncated"), ConnectionClosedError(endpoint_url="x")):
        with pytest.raises(StoreUnavailable):
            S3Store(FlakyClient(client, *[fault] * 10), "audio-bucket").get("a")


def test_a_stalled_call_is_not_tried_longer_than_the_client_does(client: Any) -> None:
    """Four rounds on top of botocore's three would outlive the Lambda, and its fallback with it."""
    flaky = FlakyClient(client, *[ReadTimeoutError(endpoint_url="x")] * 10)
    with pytest.raises(StoreUnavailable):
        S3Store(flaky, "audio-bucket").get("a")
    assert len(flaky._faults) == 9


def test_a_missing_bucket_is_named(client: Any) -> None:
    with pytest.raises(StoreUnavailable, match="NoSuchBucket"):
        S3Store(client, "other-bucket").get("a")


@pytest.mark.parametrize(
    ("code", "status"), [("PermanentRedirect", 301), ("AccessDenied", 403), ("InvalidBucketName", 400)]
)
def test_a_bucket_that_is_set_up_wrong_is_named(client: Any, code: str, status: int) -> None:
    """A wrong region, a missing permission: our configuration, never the audio's fault."""
    answer = {
        "Error": {"Code": code, "Message": "look at your settings"},
        "ResponseMetadata": {"HTTPStatusCode": status},
    }
    store = S3Store(FlakyClient(client, ClientError(answer, "GetObject")), "audio-bucket")  # type: ignore[arg-type]
    with pytest.raises(StoreUnavailable, match=f"{code}: look at your settings"):
        store.get("a")


def test_the_client_gives_up_before_a_lambda_does() -> None:
    assert CLIENT_CONFIG.connect_timeout <= 2
    assert CLIENT_CONFIG.read_timeout <= 5
    assert CLIENT_CONFIG.retries == {"mode": "standard", "total_max_attempts": 3}
