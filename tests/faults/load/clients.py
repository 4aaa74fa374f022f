"""Callers of a server, each kind in a process of its own: what they measure is the server's time, not each other's."""

import asyncio
import itertools
import time
from collections.abc import Awaitable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import httpx

LOOK_EVERY_S = 0.05
PATIENCE_S = 120.0
# A connection for each question: one that is kept may be closed by the server just when a slow caller uses it again.
UNKEPT = httpx.Limits(max_keepalive_connections=0)
NO_ANSWER = 0
TAKEN, REFUSED = 202, 429
HEALTH = {TAKEN: 200, REFUSED: 503}  # what /health says to it


class Asked(NamedTuple):
    """One answer: its status (NO_ANSWER: none came), seconds until it was there, and what it said."""

    status: int
    seconds: float
    retry_after: str | None = None
    reason: str = ""


class Look(NamedTuple):
    """What /health said, and what a job got that was posted at the same moment by somebody who does not wait for it."""

    health: Asked
    post: Asked


def foretold(looks: Sequence[Look], status: int) -> float:
    """Of the posts that got `status`, the share for which /health had it right; none of none.

    Of those taken and of those refused by themselves: so one that always says the same is right about none of one kind,
    however seldom it is, and one that guesses about half. All of them no server can have: a job ends between the two.
    """
    said = [look.health.status for look in looks if look.post.status == status]
    return said.count(HEALTH[status]) / len(said) if said else 0.0


def look(url: str, bodies: Sequence[dict[str, Any]], started: Path, stop: Path) -> list[Look]:
    """Look as a load balancer does, one time after the other, until `stop` exists; `started` does once it could.

    bodies: of jobs that nobody else asks for now: for one that is under way there is always room.
    """
    return asyncio.run(_look(url, itertools.cycle(bodies), started, stop))


def post_jobs(url: str, bodies: Sequence[dict[str, Any]], at_once: int, started: Path, stop: Path) -> list[Asked]:
    """`at_once` callers that never look at /health, each with its next job as soon as it has an answer."""
    return asyncio.run(_post_jobs(url, itertools.cycle(bodies), at_once, started, stop))


async def _look(url: str, bodies: Iterator[dict[str, Any]], started: Path, stop: Path) -> list[Look]:
    looks = []
    async with _client(url) as client:
        while not stop.exists():
            job = next(bodies) | {"wait": False}
            both = await asyncio.gather(_ask(client.get("/health")), _ask(client.post("/transcribe-s3", json=job)))
            looks.append(Look(*both))
            started.touch()
            await asyncio.sleep(LOOK_EVERY_S)
    return looks


async def _post_jobs(
    url: str, bodies: Iterator[dict[str, Any]], at_once: int, started: Path, stop: Path
) -> list[Asked]:
    asked: list[Asked] = []
    async with _client(url) as client:

        async def caller() -> None:
            while not stop.exists():
                asked.append(await _ask(client.post("/transcribe-s3", json=next(bodies))))
                started.touch()

        await asyncio.gather(*(caller() for _ in range(at_once)))
    return asked


def _client(url: str) -> httpx.AsyncClient:
    return httpx.AsyncClient(base_url=url, timeout=PATIENCE_S, limits=UNKEPT, trust_env=False)


async def _ask(question: Awaitable[httpx.Response]) -> Asked:
    began = time.monotonic()
    try:
        response = await question
    except httpx.HTTPError as error:
        return Asked(NO_ANSWER, time.monotonic() - began, reason=type(error).__name__)
    seconds = time.monotonic() - began
    body = response.json()
    reason = str(body.get("reason") or body.get("type") or "")
    return Asked(response.status_code, seconds, response.headers.get("Retry-After"), reason)
