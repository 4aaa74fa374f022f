"""Callers of a server, each kind in a process of its own: what they measure is the server's time, not each other's."""

import asyncio
import itertools
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx

HEALTH_EVERY_S = 0.05
PATIENCE_S = 120.0
# A connection for each question: one that is kept may be closed by the server just when a slow caller uses it again.
UNKEPT = httpx.Limits(max_keepalive_connections=0)
NO_ANSWER = 0


class Asked(NamedTuple):
    """One answer: its status (NO_ANSWER: none came), seconds until it was there, and what it said."""

    status: int
    seconds: float
    retry_after: str | None
    reason: str


def ask_health(url: str, started: Path, stop: Path) -> list[Asked]:
    """Ask as a load balancer does, one question at a time, until `stop` exists; `started` does once it was answered."""
    asked = []
    with httpx.Client(base_url=url, timeout=PATIENCE_S, limits=UNKEPT, trust_env=False) as client:
        while not stop.exists():
            began = time.monotonic()
            try:
                response = client.get("/health")
            except httpx.HTTPError as error:
                asked.append(Asked(NO_ANSWER, time.monotonic() - began, None, type(error).__name__))
                continue
            asked.append(_asked(response, began))
            started.touch()
            time.sleep(HEALTH_EVERY_S)
    return asked


def post_jobs(url: str, bodies: Sequence[dict[str, Any]], at_once: int, started: Path, stop: Path) -> list[Asked]:
    """`at_once` callers that never look at /health, each with its next job as soon as it has an answer."""
    return asyncio.run(_post_jobs(url, itertools.cycle(bodies), at_once, started, stop))


async def _post_jobs(
    url: str, bodies: Iterator[dict[str, Any]], at_once: int, started: Path, stop: Path
) -> list[Asked]:
    asked: list[Asked] = []
    async with httpx.AsyncClient(base_url=url, timeout=PATIENCE_S, limits=UNKEPT, trust_env=False) as client:

        async def caller() -> None:
            while not stop.exists():
                began = time.monotonic()
                try:
                    response = await client.post("/transcribe-s3", json=next(bodies))
                except httpx.HTTPError as error:
                    asked.append(Asked(NO_ANSWER, time.monotonic() - began, None, type(error).__name__))
                else:
                    asked.append(_asked(response, began))
                    started.touch()

        await asyncio.gather(*(caller() for _ in range(at_once)))
    return asked


def _asked(response: httpx.Response, began: float) -> Asked:
    seconds = time.monotonic() - began
    body = response.json()
    reason = str(body.get("reason") or body.get("type") or "")
    return Asked(response.status_code, seconds, response.headers.get("Retry-After"), reason)
