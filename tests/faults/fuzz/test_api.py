"""The server keeps the word of its own OpenAPI document, whatever is asked of it."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from gpu_server.decode_pool import DecodePool
from gpu_server.decoding import Limits
from shared.store import Store
from tests.faults.fuzz import api
from tests.gpu_server.served import Served

EXAMPLES = 40  # of each operation


@pytest.fixture(scope="module")
def decoders() -> Iterator[DecodePool]:
    pool = DecodePool(workers=1, limits=Limits(max_seconds=60))
    yield pool
    pool.close()


@pytest.fixture
def store() -> Iterator[Store]:
    with api.a_bucket() as store:
        yield store


def test_every_answer_is_as_documented_and_nothing_strange_is_written(
    store: Store, decoders: DecodePool, tmp_path: Path
) -> None:
    uploaded = api.stock(store)
    served = Served(store, decoders, tmp_path, max_in_flight=64)
    asked = api.ask(served, examples=EXAMPLES, seed=1)
    assert asked.violations == {}
    assert asked.statuses("POST /transcribe") >= {200, 400, 415}
    assert asked.statuses("POST /transcribe-s3") >= {200, 400}
    assert asked.statuses("POST /transcribe-session") >= {200, 400}
    assert api.strange_keys(store, uploaded) == []
    assert served.readiness.in_flight == 0
    assert served.faults == []


def test_without_the_key_nothing_is_done(store: Store, decoders: DecodePool, tmp_path: Path) -> None:
    uploaded = api.stock(store)
    served = Served(store, decoders, tmp_path)
    asked = api.ask(served, examples=5, seed=1, api_key="not the key")
    assert asked.statuses("GET /health") == {200, 405}
    for operation in ("POST /transcribe", "POST /transcribe-s3", "POST /transcribe-session", "POST /transcribe-url"):
        assert asked.statuses(operation) == {401}
    assert served.engine.calls == 0
    assert [info.key for info in store.list("")] == sorted(uploaded)


def test_a_document_that_promised_less_would_be_found_out(decoders: DecodePool, store: Store, tmp_path: Path) -> None:
    api.stock(store)
    served = Served(store, decoders, tmp_path)
    del served.app.openapi()["paths"]["/health"]["get"]["responses"]["200"]
    assert any("status_code_conformance" in found for found in api.ask(served, examples=5, seed=1).violations)
