"""The GPU server as its callers see it: is it ready, and what did it say to a job."""

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import httpx

from shared.errors import STORE_UNAVAILABLE
from shared.jobs import Job, Options
from shared.outcomes import HEADER_MISSING

HEALTH_BYTES = 16 * 1024
METRICS_BYTES = 1024 * 1024
ANSWER_BYTES = 64 * 1024
SESSION_CHUNKS = 2000  # the most that one request may name
SESSION_ANSWER_BYTES = SESSION_CHUNKS * 2048  # a key of 1,024 bytes, a status, and the words for a failure


@dataclass(frozen=True)
class Health:
    """`ready`: a job would be taken now. `alive`: something answered; busy is not dead. `reason` says why not."""

    ready: bool
    alive: bool
    reason: str = ""


@dataclass(frozen=True)
class Work:
    """What a server has done since its start, and does now, in jobs; and how long its recognizer was busy with it."""

    ended: int
    in_flight: int
    busy_seconds: float = 0.0


class Said(StrEnum):
    """What a server's answer to a job means."""

    DONE = "done"  # claimed; S3 is asked before it is believed
    ACCEPTED = "accepted"  # 202: it goes on by itself
    BUSY = "busy"  # alive, with no room now
    REFUSED = "refused"  # the input is at fault
    NOT_YET = "not_yet"  # the input waits for another object (a WebM header)
    UNAUTHORIZED = "unauthorized"  # our configuration is at fault
    UNTRIED = "untried"  # nobody has looked at the input: no connection, or the server cannot reach S3
    FAILED = "failed"  # a connection that broke, a timeout, 5xx


@dataclass(frozen=True)
class Answer:
    said: Said
    status: int | None = None
    type: str = ""
    message: str = ""
    retry_after: float | None = None


@dataclass(frozen=True)
class Limits:
    """Seconds. `total` ends a call even when the server drips a byte now and then."""

    connect: float
    total: float


PROBLEM = "application/problem+json"
_INPUT_STATUSES = frozenset({404, 413, 415, 422})
_NOT_THE_INPUTS = frozenset({"http", "about:blank"})  # a route that does not exist, say: another server than we think


class ServerClient:
    """One GPU server. Every call opens its own connection and is bounded in time and in bytes."""

    def __init__(self, url: str, *, api_key: str | None = None, transport: httpx.AsyncBaseTransport | None = None):
        self.url = url.rstrip("/")
        self._headers = {"X-API-Key": api_key} if api_key else {}
        self._transport = transport
        self._verify = self.url.startswith("https")  # a TLS context costs 20 ms; plain http needs none

    def health(self, limits: Limits) -> Health:
        try:
            response = asyncio.run(self._call("GET", "/health", limits, HEALTH_BYTES))
        except (httpx.HTTPError, TimeoutError, ConnectionError) as error:
            return Health(ready=False, alive=False, reason=f"no answer: {_name(error)}")
        if response.status_code == httpx.codes.OK:
            return Health(ready=True, alive=True)
        reason = str(_json(response).get("reason") or f"HTTP {response.status_code}")
        return Health(ready=False, alive=reason == "saturated", reason=reason)

    def work(self, limits: Limits) -> Work | None:
        """What it has to do, whoever asked for it; None if it does not say."""
        try:
            response = asyncio.run(self._call("GET", "/metrics", limits, METRICS_BYTES))
        except (httpx.HTTPError, TimeoutError, ConnectionError):
            return None
        return read_work(response.text) if response.status_code == httpx.codes.OK else None

    def transcribe(
        self, job: Job, limits: Limits, *, route: str, wait: bool = True, new: bool = False, alone: bool = False
    ) -> Answer:
        """Post a job and say what came back. Never raises for anything a server can do.

        Args:
            new: nothing lies at the job's output keys, as the caller has just seen: the server need not look again.
            alone: only while nothing else is at work there: BUSY, until it is so.
        """
        body = _input(job) | {"return_text": False, "wait": wait, "route": route} | _wishes(job.options)
        if new:
            body |= {"new": True}
        if alone:
            body |= {"alone": True}
        return self._ask("/transcribe-s3", body, limits, ANSWER_BYTES)

    def transcribe_session(self, what: Sequence[Job] | str, limits: Limits, *, route: str, wait: bool = True) -> Answer:
        """Have chunks of one session heard together, and say what came back. Never raises, as `transcribe`.

        Args:
            what: jobs of the session's chunks, at most SESSION_CHUNKS of them, all with the same options; or the
                session's S3 path (`Session.path_in`), for every chunk that is there.
        """
        body: dict[str, Any] = {"return_text": False, "wait": wait, "route": route}
        if isinstance(what, str):
            body |= {"s3_session_path": what}
        else:
            body |= {"chunks": [_input(job) for job in what]} | _wishes(what[0].options)
        return self._ask("/transcribe-session", body, limits, SESSION_ANSWER_BYTES)

    def _ask(self, path: str, body: dict[str, Any], limits: Limits, max_bytes: int) -> Answer:
        try:
            response = asyncio.run(self._call("POST", path, limits, max_bytes, json=body))
        except (httpx.ConnectError, httpx.ConnectTimeout) as error:
            return Answer(Said.UNTRIED, message=f"no connection: {_name(error)}")
        except (httpx.HTTPError, TimeoutError, ConnectionError) as error:
            return Answer(Said.FAILED, message=f"no answer: {_name(error)}")
        return read_answer(response)

    async def _call(self, method: str, path: str, limits: Limits, max_bytes: int, **arguments: Any) -> httpx.Response:
        async with (
            asyncio.timeout(limits.total),
            httpx.AsyncClient(
                timeout=httpx.Timeout(limits.total, connect=limits.connect),
                transport=self._transport,
                verify=self._verify,
                trust_env=False,
            ) as client,
            client.stream(method, self.url + path, headers=self._headers, **arguments) as response,
        ):
            body = b""
            async for piece in response.aiter_bytes():
                body += piece
                if len(body) > max_bytes:
                    break
            return httpx.Response(response.status_code, headers=_without_encoding(response.headers), content=body)


def _input(job: Job) -> dict[str, Any]:
    version = {"version_id": job.version_id} if job.version_id else {}
    return {"s3_input_path": f"s3://{job.bucket}/{job.key}", "etag": job.etag} | version


def _wishes(options: Options) -> dict[str, Any]:
    return options.model_dump(exclude_defaults=True)


def read_answer(response: httpx.Response) -> Answer:
    """Classify a response to a POST (RFC 9457 problem documents for errors)."""
    status = response.status_code
    if status == httpx.codes.OK:
        return Answer(Said.DONE, status)
    if status == httpx.codes.ACCEPTED:
        return Answer(Said.ACCEPTED, status)
    problem = _json(response)
    type = str(problem.get("type") or "about:blank").rpartition("/")[2]
    message = str(problem.get("detail") or problem.get("title") or f"HTTP {status}")
    said = Said.FAILED
    if type == HEADER_MISSING:
        said = Said.NOT_YET
    elif status in (429, 503):
        said = Said.BUSY
    elif type == STORE_UNAVAILABLE:
        said = Said.UNTRIED
    elif status in (401, 403):
        said = Said.UNAUTHORIZED
    elif status in _INPUT_STATUSES and _is_ours(response) and type not in _NOT_THE_INPUTS:
        said = Said.REFUSED
    return Answer(said, status, type, message, _retry_after(response))


def read_work(metrics: str) -> Work | None:
    """The server's jobs in what it tells Prometheus; None if that tells of none."""
    ended, in_flight, busy = (
        [float(line.rpartition(" ")[2]) for line in metrics.splitlines() if line.startswith(name)]
        for name in ("transcription_jobs_total{", "transcription_jobs_in_flight ", "recognizer_busy_seconds_total ")
    )
    return Work(int(sum(ended)), int(in_flight[0]), sum(busy)) if in_flight else None


def _is_ours(response: httpx.Response) -> bool:
    """Only a server of ours sends such a document: a proxy's 404 says nothing about the audio."""
    return str(response.headers.get("Content-Type", "")).startswith(PROBLEM)


def _retry_after(response: httpx.Response) -> float | None:
    value = response.headers.get("Retry-After", "")
    return float(value) if value.isdigit() else None


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        document = response.json()
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}


def _without_encoding(headers: httpx.Headers) -> dict[str, str]:
    return {name: value for name, value in headers.items() if name not in ("content-encoding", "content-length")}


def _name(error: Exception) -> str:
    return type(error).__name__
