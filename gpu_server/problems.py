"""Errors as RFC 9457 problem documents: a stable type, a status, and words for whoever made the request.

Nothing of a caught exception's text goes out unless it was written for a client.
"""

import errno
import uuid
from http import HTTPStatus

from aws_lambda_powertools import Logger
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel
from starlette.exceptions import HTTPException

from shared.errors import DISK_FULL, STORE_UNAVAILABLE, Contended, PermanentError, StoreUnavailable, TransientError

MEDIA_TYPE = "application/problem+json"
NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT})
NO_ROOM_SECONDS = 30  # until one asks again: the files of other jobs go when these are done
logger = Logger(service="gpu-server", child=True)


class Refused(Exception):
    """A request that gets a problem document. `retry_after` in seconds."""

    def __init__(self, status: int, type: str, detail: str, *, retry_after: int | None = None) -> None:
        super().__init__(detail)
        self.status, self.type, self.detail, self.retry_after = status, type, detail, retry_after


class Problem(BaseModel):
    """RFC 9457; `type` ends in a slug that stays as it is."""

    type: str
    title: str
    status: int
    detail: str
    correlation_id: str | None = None


def problem(
    status: int, type: str, detail: str, *, retry_after: int | None = None, correlation_id: str | None = None
) -> JSONResponse:
    headers = {"Retry-After": str(retry_after)} if retry_after is not None else {}
    document = Problem(
        type=f"/problems/{type}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=detail,
        correlation_id=correlation_id,
    )
    return JSONResponse(document.model_dump(exclude_none=True), status, headers, MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Give every error of `app` the same shape."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> JSONResponse:
        return problem(error.status, error.type, error.detail, retry_after=error.retry_after)

    @app.exception_handler(PermanentError)
    async def permanent(request: Request, error: PermanentError) -> JSONResponse:
        return problem(error.status, error.type, error.message)

    @app.exception_handler(TransientError)
    async def transient(request: Request, error: TransientError) -> JSONResponse:
        logger.warning("not done", extra={"reason": str(error)})
        if isinstance(error, StoreUnavailable | Contended):
            return problem(502, STORE_UNAVAILABLE, "The object store did not do its part; try again.")
        return problem(500, "internal", "The server could not finish the job; try again.")

    @app.exception_handler(OSError)
    async def no_room(request: Request, error: OSError) -> JSONResponse:
        """As busy as one that is full of jobs: the audio is not to blame."""
        if error.errno not in NO_ROOM:
            raise error
        logger.error("the disk is full", exc_info=error)
        detail = "The server's disk has no room for this job; try again later, or give it a larger one."
        return problem(503, DISK_FULL, detail, retry_after=NO_ROOM_SECONDS)

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> JSONResponse:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"] if part != "body") or "body"
        return problem(400, "invalid-request", f"{where}: {first['msg']}")

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> JSONResponse:
        if isinstance(error.__cause__, OSError) and error.__cause__.errno in NO_ROOM:
            return await no_room(request, error.__cause__)  # for FastAPI, an upload that nobody can store is a bad one
        answer = problem(error.status_code, "http", str(error.detail))
        answer.headers.update(error.headers or {})  # a 405 says what is allowed
        return answer

    @app.exception_handler(Exception)
    async def unexpected(request: Request, error: Exception) -> JSONResponse:
        correlation_id = uuid.uuid4().hex
        logger.exception("unexpected", extra={"correlation_id": correlation_id})
        return problem(500, "internal", "Something failed on the server.", correlation_id=correlation_id)
