"""`python -m tests.faults.chaos.proxy UPSTREAM PORT JOURNAL`: microburst, and five things that it cannot do.

- An answer that is lost after the work was done, whatever the operation: microburst's own `abort_bytes: 0` needs an
  answer with a body, and PutObject's has none. That is the ambiguous write.
- A fault that only certain answers meet, and that counts for those alone; see `rules.ONLY_WITH`.
- A batch that SQS takes but for its last entry; see `rules.IN_PART`.
- HEAD keeps its Content-Length, without which boto3's answer has none.
- Every object that S3 took, or may have taken without an answer, is in JOURNAL, a line each; see `watch`.
"""

import asyncio
import hashlib
import json
import logging
import sys
from collections import Counter
from collections.abc import AsyncIterable, Collection, Mapping
from contextvars import ContextVar
from dataclasses import fields
from http import HTTPStatus
from pathlib import Path
from typing import Any, TextIO

import aiohttp
import httpx
from aiohttp import web
from microburst.app import make_app
from microburst.core.pipeline import Microburst
from microburst.forward import HOP_BY_HOP, ResponseFault, Upstream
from microburst.rules import Decision, RequestContext, Rule, RuleEngine

from tests.faults.chaos.rules import IN_PART, ONLY_WITH

CONTROL = "/_microburst"
AWS_JSON = "application/x-amz-json-1.0"
SECONDS = 60.0  # for an answer about itself, on a machine where all else is at work too
OWN_FIELDS = {field.name for field in fields(Rule)} | {"rate"}  # of what a rule may say; see microburst.rules
UNREACHABLE = "upstream error"  # microburst's words in the log for a request that found nobody
DECIDED: ContextVar[Decision | None] = ContextVar("decided")  # about the request at hand

log = logging.getLogger(__name__)


class Engine(RuleEngine):
    """Tells `Relay` whose fault it is."""

    def decide(self, info: RequestContext) -> Decision | None:
        decision = super().decide(info)
        DECIDED.set(decision)
        return decision


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
        try:
            async with self.session.request(
                request.method,
                self.base_url + request.rel_url.raw_path_qs,
                headers=self._outbound_headers(request),
                data=sent,
                allow_redirects=False,
            ) as answer:
                said = await answer.read()
        except aiohttp.ClientError as error:
            log.error("%s: %s", UNREACHABLE, error)
            if request.method == "PUT" and not isinstance(error, aiohttp.ClientConnectorError):
                self._note(request, sent, None)
            return web.Response(status=HTTPStatus.BAD_GATEWAY)
        if request.method == "PUT" and answer.status == HTTPStatus.OK:
            self._note(request, sent, answer.headers["ETag"].strip('"'))
        if mutator is not None and not _meets(mutator, said):
            self._spare()
        elif is_lost and request.transport:
            request.transport.abort()
        kept = {name: value for name, value in answer.headers.items() if name.lower() not in HOP_BY_HOP}
        is_bare = request.method == "HEAD" and "Content-Length" in answer.headers
        length = {"Content-Length": answer.headers["Content-Length"]} if is_bare else {}
        return web.Response(status=answer.status, headers=kept | length, body=said or None)

    def _spare(self) -> None:
        """The request at hand met no fault after all."""
        decision = DECIDED.get()
        assert decision
        assert self.stats
        decision.rule.fired_count -= 1
        self.stats.by_rule[decision.rule.id]["fired"] -= 1

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

    def _note(self, request: web.Request, body: bytes, etag: str | None) -> None:
        """`etag`: None when S3 did not answer."""
        replaced = request.headers.get("If-Match", "" if "If-None-Match" in request.headers else None)
        line = {
            "key": request.path.split("/", 2)[2],
            "etag": etag or hashlib.md5(body, usedforsecurity=False).hexdigest(),
            "replaced": replaced and replaced.strip('"'),
            "body": body.decode("latin-1"),
            "answered": etag is not None,
        }
        self._journal.write(json.dumps(line) + "\n")
        self._journal.flush()


def _meets(fault: ResponseFault, said: bytes) -> bool:
    field = fault.set_headers.get(ONLY_WITH)
    return field is None or bool(json.loads(said).get(field))


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

    def share(self, delays: Collection[str]) -> float:
        """Of all requests so far, those that failed; those that were only late, by such kinds, did not."""
        total = httpx.get(f"{self.url}{CONTROL}/stats", timeout=SECONDS).json()["requests"]["total"]
        failed = sum(times for kind, times in self.fired().items() if kind not in delays)
        return failed / max(1, total)


def check(kind: str, rule: Mapping[str, Any]) -> None:
    """microburst takes a misspelt field for none, and such a rule for one that fits everything."""
    unknown = set(rule) - OWN_FIELDS
    if unknown or not 0 < rule.get("probability", 1.0) <= 1:
        raise ValueError(f"the rule of {kind!r} is wrong: {unknown or rule['probability']}")


def main() -> None:
    upstream, port, journal = sys.argv[1:]
    proxy = Microburst(upstream)
    proxy.engine = Engine()
    with Path(journal).open("a") as written:
        proxy.upstream = Relay(upstream, written, stats=proxy.stats)
        loop = asyncio.new_event_loop()
        web.run_app(make_app(proxy), host="127.0.0.1", port=int(port), print=None, access_log=None, loop=loop)


if __name__ == "__main__":
    main()
