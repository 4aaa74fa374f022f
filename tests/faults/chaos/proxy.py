"""`python -m tests.faults.chaos.proxy UPSTREAM PORT JOURNAL`: microburst, and four things that it cannot do.

- An answer that is lost after the work was done, whatever the operation: microburst's own `abort_bytes: 0` needs an
  answer with a body, and PutObject's has none. That is the ambiguous write.
- A batch that SQS takes but for its last entry; see `rules.IN_PART`.
- HEAD keeps its Content-Length, without which boto3's answer has none.
- Every object that S3 took is in JOURNAL, a line each; see `watch`.
"""

import asyncio
import json
import sys
from collections import Counter
from collections.abc import AsyncIterable, Mapping
from dataclasses import fields
from http import HTTPStatus
from pathlib import Path
from typing import Any, TextIO

import httpx
from aiohttp import web
from microburst.app import make_app
from microburst.core.pipeline import Microburst
from microburst.forward import HOP_BY_HOP, ResponseFault, Upstream
from microburst.rules import Rule
from multidict import CIMultiDictProxy

from tests.faults.chaos.rules import IN_PART

CONTROL = "/_microburst"
AWS_JSON = "application/x-amz-json-1.0"
SECONDS = 60.0  # for an answer about itself, on a machine where all else is at work too
OWN_FIELDS = {field.name for field in fields(Rule)} | {"rate"}  # of what a rule may say; see microburst.rules


class Relay(Upstream):
    def __init__(self, base_url: str, journal: TextIO, **kwargs: Any) -> None:
        super().__init__(base_url, **kwargs)
        self._journal = journal

    async def relay(
        self,
        request: web.Request,
        body: bytes | None,
        mutator: ResponseFault | None = None,
        data: bytes | AsyncIterable[bytes] | None = None,
    ) -> web.StreamResponse:
        if mutator is not None and IN_PART in mutator.set_headers:
            return await self._in_part(request)
        is_lost = mutator is not None and mutator.abort_bytes == 0
        if not is_lost and (request.method not in ("HEAD", "PUT") or mutator):
            return await super().relay(request, body, mutator, data)
        assert self.session
        sent = await request.read() if body is None else body
        async with self.session.request(
            request.method,
            self.base_url + request.rel_url.raw_path_qs,
            headers=self._outbound_headers(request),
            data=sent,
            allow_redirects=False,
        ) as answer:
            said = await answer.read()
            if request.method == "PUT" and answer.status == HTTPStatus.OK:
                self._note(request, sent, answer.headers)
            if is_lost and request.transport:
                request.transport.abort()
            kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP}
            is_bare = request.method == "HEAD" and "Content-Length" in answer.headers
            length = {"Content-Length": answer.headers["Content-Length"]} if is_bare else {}
            return web.Response(status=answer.status, headers=kept | length, body=said or None)

    async def _in_part(self, request: web.Request) -> web.Response:
        assert self.session
        asked = await request.json()
        *some, last = asked["Entries"]
        said: dict[str, Any] = {}
        if some:
            sent, headers = json.dumps(asked | {"Entries": some}), self._outbound_headers(request)
            async with self.session.post(self.base_url + request.path, headers=headers, data=sent) as answer:
                said = await answer.json(content_type=None)
                if answer.status != HTTPStatus.OK:
                    return web.json_response(said, status=answer.status, content_type=AWS_JSON)
        refused = {"Id": last["Id"], "SenderFault": False, "Code": "InternalError", "Message": "in part"}
        said["Failed"] = [*said.get("Failed", ()), refused]
        return web.json_response({"Successful": []} | said, content_type=AWS_JSON)

    def _note(self, request: web.Request, body: bytes, answer: CIMultiDictProxy[str]) -> None:
        """`replaced`: the ETag that a conditional write rested on."""
        key = request.path.split("/", 2)[2]
        replaced = request.headers.get("If-Match", "").strip('"')
        line = {"key": key, "etag": answer["ETag"].strip('"'), "replaced": replaced, "body": body.decode("latin-1")}
        self._journal.write(json.dumps(line) + "\n")
        self._journal.flush()


class FaultProxy:
    """The proxy's control, from outside. A fault's kind is the name of its rule."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"
        self._kinds: dict[int, str] = {}

    def set(self, rules: Mapping[str, Mapping[str, Any]]) -> None:
        """These faults from now on, and no others."""
        for kind, rule in rules.items():
            check(kind, rule)
        answer = httpx.post(f"{self.url}{CONTROL}/rules", json=[dict(rule) for rule in rules.values()], timeout=SECONDS)
        answer.raise_for_status()
        self._kinds |= {made["id"]: kind for made, kind in zip(answer.json(), rules, strict=True)}

    def clear(self) -> None:
        self.set({})

    def is_up(self) -> bool:
        try:
            return httpx.get(f"{self.url}{CONTROL}/health", timeout=2).status_code == httpx.codes.OK
        except httpx.TransportError:
            return False

    def fired(self) -> Counter[str]:
        """How often each fault that was ever set has happened; those that never did are in it with 0."""
        found = Counter(dict.fromkeys(self._kinds.values(), 0))
        for rule in httpx.get(f"{self.url}{CONTROL}/stats", timeout=SECONDS).json()["by_rule"]:
            found[self._kinds[rule["id"]]] += rule["fired"]
        return found

    def share(self) -> float:
        """Of all requests so far, those that met a fault."""
        requests = httpx.get(f"{self.url}{CONTROL}/stats", timeout=SECONDS).json()["requests"]
        return float(requests["faulted"]) / max(1, requests["total"])


def check(kind: str, rule: Mapping[str, Any]) -> None:
    """microburst takes a misspelt field for none, and such a rule for one that fits everything."""
    unknown = set(rule) - OWN_FIELDS
    if unknown or not 0 < rule.get("probability", 1.0) <= 1:
        raise ValueError(f"the rule of {kind!r} is wrong: {unknown or rule['probability']}")


def main() -> None:
    upstream, port, journal = sys.argv[1:]
    proxy = Microburst(upstream)
    with Path(journal).open("a") as written:
        proxy.upstream = Relay(upstream, written, stats=proxy.stats)
        loop = asyncio.new_event_loop()
        web.run_app(make_app(proxy), host="127.0.0.1", port=int(port), print=None, access_log=None, loop=loop)


if __name__ == "__main__":
    main()
