from collections.abc import Iterator

import pytest

from gpu_server.decode_pool import DecodePool
from gpu_server.decoding import Limits


@pytest.fixture(scope="module")
def decoders() -> Iterator[DecodePool]:
    pool = DecodePool(workers=2, limits=Limits(max_seconds=600))
    yield pool
    pool.close()
