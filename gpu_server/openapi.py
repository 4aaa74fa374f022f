"""The OpenAPI document: what FastAPI cannot see, which is the doors and the shape of every problem."""

from functools import cache
from typing import Any

from fastapi import FastAPI

from gpu_server.doors import OPEN_PATHS
from gpu_server.problems import MEDIA_TYPE, Problem

DESCRIPTIONS = {
    400: "The request cannot be understood",
    401: "No valid API key",
    403: "Not allowed: another bucket, another output, a URL",
    404: "There is no such object",
    413: "Too large, or too long",
    415: "Not a media format we decode",
    422: "Media without audio that can be decoded, or a key that may not enter",
    429: "Full; see Retry-After",
    500: "Something failed on the server",
    502: "The object store, or the other server, did not do its part",
    503: "Loading, draining, or without room on its disk; see Retry-After",
    504: "Not done in time; the work goes on",
}
EVERYWHERE = (400, 401, 413, 429, 500, 503)
RETRY_AFTER = {"Retry-After": {"description": "seconds", "schema": {"type": "integer", "minimum": 0}}}
HAVE_RETRY_AFTER = (429, 503)

# Each of them alone will do.
KEY_SCHEMES = {
    "header": {"type": "apiKey", "in": "header", "name": "X-API-Key"},
    "bearer": {"type": "http", "scheme": "bearer"},
    "basic": {"type": "http", "scheme": "basic", "description": "The key is the password; any user name."},
}


def problems(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The responses of a route that ends with these statuses too when it cannot do its work."""
    return {status: _response(status) for status in sorted((*EVERYWHERE, *statuses))}


def complete(app: FastAPI, *, keys: bool) -> None:
    """Have the document of `app` say what a problem is and, if there are `keys`, which operations want one."""
    plain = app.openapi

    @cache
    def openapi() -> dict[str, Any]:
        document = plain()
        components = document["components"]
        components["schemas"]["Problem"] = Problem.model_json_schema()
        if keys:
            components["securitySchemes"] = KEY_SCHEMES
            for path, operations in document["paths"].items():
                for operation in operations.values():
                    operation["security"] = [] if path in OPEN_PATHS else [{name: []} for name in KEY_SCHEMES]
        return document

    app.openapi = openapi  # type: ignore[method-assign]  # as FastAPI documents it


def _response(status: int) -> dict[str, Any]:
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    headers = RETRY_AFTER if status in HAVE_RETRY_AFTER else {}
    return {"description": DESCRIPTIONS[status], "content": content, "headers": headers}
