"""Parsers of what others write: whatever comes, they return or raise their documented errors, and lose nothing."""

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from tests.faults.fuzz.seeds import damaged_bytes, damaged_documents, documents, seeds
from tests.faults.fuzz.targets import TARGETS

EXAMPLES = settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
EVERY = pytest.mark.parametrize("target", TARGETS)


@EVERY
def test_genuine_inputs_keep_the_rules(target: str) -> None:
    assert seeds(target)
    for seed in seeds(target):
        TARGETS[target](seed)


@EVERY
@EXAMPLES
@given(data=st.data())
def test_damaged_inputs_keep_the_rules(target: str, data: st.DataObject) -> None:
    TARGETS[target](data.draw(damaged_bytes(target)))


@pytest.mark.parametrize("target", [name for name in TARGETS if documents(name)])
@EXAMPLES
@given(data=st.data())
def test_documents_with_wrong_values_keep_the_rules(target: str, data: st.DataObject) -> None:
    TARGETS[target](data.draw(damaged_documents(target)))


@EVERY
@EXAMPLES
@given(data=st.binary(max_size=300))
@example(data=b"")
@example(data=b"[" * 100_000)
@example(data=b'{"a":' * 100_000)
@example(data=b"9" * 100_000)
def test_any_bytes_keep_the_rules(target: str, data: bytes) -> None:
    TARGETS[target](data)
