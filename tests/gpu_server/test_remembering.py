"""What a server remembers of its own writes, and that it never speaks for what lies in the bucket now."""

import pytest

from gpu_server.remembering import RememberingStore
from shared.store import ABSENT, Changed, Store
from tests.fakes import MemoryStore


def put(store: Store, key: str, body: bytes, if_match: str = ABSENT) -> str:
    return store.put(key, body, content_type="text/plain", if_match=if_match)


@pytest.fixture
def inner() -> MemoryStore:
    return MemoryStore()


def reads(inner: MemoryStore) -> list[str]:
    return [key for call, key in inner.trace if call == "get"]


def test_a_version_of_our_own_is_not_read_back(inner: MemoryStore) -> None:
    store = RememberingStore(inner)
    etag = put(store, "a", b"1")
    assert store.get_version("a", etag) == b"1"
    assert reads(inner) == []


def test_anybody_elses_version_is_read(inner: MemoryStore) -> None:
    store = RememberingStore(inner)
    ours = put(store, "a", b"1")
    theirs = put(inner, "a", b"2", ours)
    assert store.get_version("a", theirs) == b"2"
    assert reads(inner) == ["a"]
    with pytest.raises(Changed):
        store.get_version("a", "f" * 32)
    with pytest.raises(Changed):
        store.get_version("b", ours)


def test_what_lies_there_now_is_always_asked(inner: MemoryStore) -> None:
    store = RememberingStore(inner)
    put(inner, "a", b"2", put(store, "a", b"1"))
    stored = store.get("a")
    assert stored is not None
    assert stored.body == b"2"


def test_the_oldest_is_forgotten_when_memory_is_full(inner: MemoryStore) -> None:
    store = RememberingStore(inner, memory_bytes=10)
    first, second = put(store, "a", b"12345"), put(store, "b", b"1234")
    put(store, "b", b"1234", second)  # once more: it takes its place once
    third = put(store, "c", b"12")
    assert [store.get_version(key, etag) for key, etag in (("a", first), ("b", second), ("c", third))] == [
        b"12345",
        b"1234",
        b"12",
    ]
    assert reads(inner) == ["a"]
    put(store, "d", b"more than all")
    store.get_version("c", third)
    assert reads(inner) == ["a", "c"]
