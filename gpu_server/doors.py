"""What every request passes before it costs anything: the key, and a limit on its body."""

import base64
import binascii
import hmac
from collections.abc import Mapping
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.middleware.body_limit import RequestBodyLimitMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from gpu_server.problems import Refused, problem
from gpu_server.readiness import Readiness

OPEN_PATHS = frozenset({"/health", "/livez"})
JSON_BYTES = 64 * 1024


class KeyDoor:
    """Answers 401 unless the request brings one of `keys`, as `X-API-Key`, as a bearer token, or as Basic's password.

    Basic is for people: it is how a browser opens /docs. With no keys, everyone may enter.
    """

    def __init__(self, app: ASGIApp, *, keys: tuple[str, ...]) -> None:
        self._app = app
        self._keys = tuple(key.encode() for key in keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and self._keys and scope["path"] not in OPEN_PATHS and not self._fits(scope):
            response = problem(HTTPStatus.UNAUTHORIZED, "unauthorized", "A valid API key is required.")
            response.headers["WWW-Authenticate"] = 'Bearer, Basic realm="transcription"'
            await response(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _fits(self, scope: Scope) -> bool:
        given = _given_key(Headers(scope=scope))
        # Bytes: compare_digest raises TypeError on non-ASCII text. All keys are tried, so that time tells nothing.
        return sum(hmac.compare_digest(given, key) for key in self._keys) > 0


def _given_key(headers: Headers) -> bytes:
    if key := headers.get("x-api-key"):
        return key.encode("latin-1")
    scheme, _, value = headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip().encode("latin-1")
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).partition(b":")[2]
        except (binascii.Error, ValueError):
            return b""
    return b""


class CrowdDoor:
    """429 for a POST while `most` are inside, waiting for their answers or still on their way in.

    Here and not in the HTTP server, whose own limit would say neither when to come again nor, to /health, why.
    """

    def __init__(self, app: ASGIApp, *, most: int, readiness: Readiness) -> None:
        self._app = app
        self._most = most
        self._readiness = readiness
        self._inside = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["method"] != "POST":
            await self._app(scope, receive, send)
        elif self._readiness.crowded:
            retry_after = self._readiness.retry_after
            response = problem(
                HTTPStatus.TOO_MANY_REQUESTS, "crowded", "Too many requests at once.", retry_after=retry_after
            )
            await response(scope, receive, send)
        else:
            self._count(+1)
            try:
                await self._app(scope, receive, send)
            finally:
                self._count(-1)

    def _count(self, change: int) -> None:
        self._inside += change
        self._readiness.crowded = self._inside >= self._most


class BodyDoor:
    """413 for a body over its path's limit in `limits` (bytes); everywhere else it is a small JSON document.

    A body that announces its length is refused before it is read, one that does not when it gets too long; and any at
    `needs_room` while there is no room for its job.
    """

    def __init__(self, app: ASGIApp, *, limits: Mapping[str, int], needs_room: str, readiness: Readiness) -> None:
        self._app = app
        self._limits = limits
        self._needs_room = needs_room
        self._readiness = readiness

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        is_post = scope["method"] == "POST"
        limit = self._limits.get(scope["path"], JSON_BYTES) if is_post else JSON_BYTES
        try:
            if is_post and scope["path"] == self._needs_room:
                self._readiness.check()
        except Refused as error:
            await problem(error.status, error.type, error.detail, retry_after=error.retry_after)(scope, receive, send)
            return
        announced = Headers(scope=scope).get("content-length", "0")
        if announced.isdigit() and int(announced) > limit:
            response = problem(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "too-large", f"The limit is {limit} bytes.")
            await response(scope, receive, send)
        else:
            await RequestBodyLimitMiddleware(self._app, limit)(scope, receive, send)
