"""Broken media end in a transcript or a typed refusal, soon and in little memory; they reach nothing."""

import socket
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from gpu_server import decoding
from gpu_server.decode_pool import DecodePool
from tests.faults.fuzz import broken
from tests.faults.fuzz.judge import LIMITS, MEMORY_BYTES, TIMEOUT_S, judge, trap

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="the decoders' limits and inotify are Linux's")


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    pool = DecodePool(workers=1, limits=LIMITS, timeout_s=TIMEOUT_S, memory_bytes=MEMORY_BYTES)
    pool.warm_up()
    yield pool
    pool.close()


def test_files_cut_at_every_boundary(pool: DecodePool, tmp_path: Path) -> None:
    verdicts = judge(pool.decode, broken.cut(near=(0,), stride=3001), tmp_path)
    assert verdicts.violations == []
    assert verdicts.cases > 1000
    assert {"audio", "truncated", "header-only", "media-header-missing", "media-undecodable"} <= set(verdicts.outcomes)


def test_files_with_flipped_bits(pool: DecodePool, tmp_path: Path) -> None:
    verdicts = judge(pool.decode, broken.flipped(count=300, seed=6), tmp_path)
    assert verdicts.violations == []
    assert {"audio", "media-undecodable"} <= set(verdicts.outcomes)


def test_headers_that_no_recorder_writes(pool: DecodePool, tmp_path: Path) -> None:
    verdicts = judge(pool.decode, broken.impossible(), tmp_path)
    assert verdicts.violations == []
    assert "media-crashes-decoder" not in verdicts.outcomes
    assert {"media-undecodable", "media-too-many-channels", "media-rate-too-high"} <= set(verdicts.outcomes)


def test_bombs_are_given_up_in_little_memory(pool: DecodePool, tmp_path: Path) -> None:
    verdicts = judge(pool.decode, broken.bombs(hours=24), tmp_path)
    assert verdicts.violations == []
    # Too long, or still at it when its time was up.
    assert verdicts.outcomes["media-too-long"] + verdicts.outcomes["media-decode-timeout"] == 2
    assert verdicts.outcomes["media-rate-too-low"] == 1
    assert verdicts.peak_bytes < MEMORY_BYTES  # with the fork server; 160 MB usually


@pytest.mark.parametrize("confined", [True, False])
def test_what_points_elsewhere_reaches_nothing(confined: bool, pool: DecodePool, tmp_path: Path) -> None:
    """In a child, which may have no network at all, and here, where the decoder alone says no."""
    decode = pool.decode if confined else partial(decoding.decode, limits=LIMITS)
    with trap(tmp_path) as there:
        verdicts = judge(decode, broken.pointers(there.url, there.file), tmp_path)
        twofold = judge(decode, broken.polyglots(there.url, there.file), tmp_path)
    assert verdicts.violations == twofold.violations == []
    assert there.sprung == []
    assert set(verdicts.outcomes) == {"media-not-recognised", "audio"}  # QuickTime's own bytes, not those it names
    assert {"audio", "media-not-recognised"} <= set(twofold.outcomes)


def test_the_trap_would_notice(tmp_path: Path) -> None:
    with trap(tmp_path) as there:
        with socket.create_connection(("127.0.0.1", urlsplit(there.url).port or 0)):
            pass
        there.file.read_bytes()
    assert sorted(there.sprung) == ["connection", "file opened"]
