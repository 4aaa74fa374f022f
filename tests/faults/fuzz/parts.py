"""The long version of fuzzing, with its rows of the table."""

from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from gpu_server import decoding
from gpu_server.decode_pool import DecodePool
from tests.faults.fuzz import api, broken, guided
from tests.faults.fuzz.broken import Case
from tests.faults.fuzz.judge import LIMITS, MEMORY_BYTES, TIMEOUT_S, Decode, Verdicts, judge, trap
from tests.faults.fuzz.seeds import seeds
from tests.faults.fuzz.targets import TARGETS
from tests.faults.table import Part, Row, Say
from tests.gpu_server.served import Served

EXAMPLES = 500  # requests to each operation
FLIPPED = 5000  # files
BOMB_HOURS = 24


def run(*, seconds: int = 30, seed: int, say: Say = lambda line: None) -> Part:
    """`seconds`: of coverage-guided fuzzing, for each parser."""
    rows: list[Row] = []
    kinds = Counter[str]()
    with TemporaryDirectory(prefix="faults-") as home:
        for part in (
            partial(_requests, Path(home), seed),
            partial(_media, Path(home), seed),
            partial(_parsers, Path(home), seconds, seed),
        ):
            done = part(say)
            rows += done.rows
            kinds.update(done.kinds)
    return Part(rows, kinds)


def _requests(home: Path, seed: int, say: Say) -> Part:
    pool = DecodePool(workers=1, limits=LIMITS)
    try:
        with api.a_bucket() as store:
            uploaded = api.stock(store)
            served = Served(store, pool, home, max_in_flight=64)
            asked = api.ask(served, examples=EXAMPLES, seed=seed)
            strange = api.strange_keys(store, uploaded)
    finally:
        pool.close()
    for violation in (*asked.violations, *strange):
        say(violation)
    what = "requests made from the OpenAPI document: answers unlike it, keys nobody may write"
    return Part(
        [_none(what, len(asked.violations) + len(strange), asked.requests)],
        Counter({f"request answered {status:d}": times for (_, status), times in asked.answers.items()}),
    )


def _media(home: Path, seed: int, say: Say) -> Part:
    pool = DecodePool(workers=1, limits=LIMITS, timeout_s=TIMEOUT_S, memory_bytes=MEMORY_BYTES)
    kinds = Counter[str]()
    verdicts: list[Verdicts] = []

    def put(kind: str, cases: Iterable[Case], decode: Decode = pool.decode) -> None:
        verdicts.append(judge(decode, cases, home))
        kinds[f"media: {kind}"] += verdicts[-1].cases

    try:
        put("cut at a boundary", broken.cut(near=(-1, 0, 1), stride=197))
        put("flipped bits", broken.flipped(count=FLIPPED, seed=seed))
        put("an impossible header", broken.impossible())
        put("a bomb", broken.bombs(BOMB_HOURS))
        with trap(home) as there:
            for decode in (pool.decode, partial(decoding.decode, limits=LIMITS)):
                put("a pointer elsewhere", broken.pointers(there.url, there.file), decode)
                put("two files in one", broken.polyglots(there.url, there.file), decode)
    finally:
        pool.close()
    wrong = [violation for verdict in verdicts for violation in verdict.violations]
    for violation in (*wrong, *there.sprung):
        say(violation)
    pointing = kinds["media: a pointer elsewhere"] + kinds["media: two files in one"]
    slowest = max(verdict.slowest for verdict in verdicts)
    peak = max(verdict.peak_bytes for verdict in verdicts)
    return Part(
        [
            _none("broken media: neither audio nor a typed refusal", len(wrong), sum(v.cases for v in verdicts)),
            _none("addresses called, or files opened, because media said so", len(there.sprung), pointing),
            Row(
                "longest decoding of one of them", f"< {TIMEOUT_S:.0f} s", f"{slowest[0]:.1f} s", slowest[0] < TIMEOUT_S
            ),
            Row(
                "most memory of the decoders",
                f"< {MEMORY_BYTES >> 20} MB",
                f"{peak >> 20} MB",
                peak < MEMORY_BYTES,
            ),
        ],
        kinds,
    )


def _parsers(home: Path, seconds: int, seed: int, say: Say) -> Part:
    if not guided.AVAILABLE:
        return Part([Row("inputs to the parsers that broke a rule", "0", guided.WHY_NOT, False)])
    broke, kinds = 0, Counter[str]()
    for target in TARGETS:
        ended = guided.fuzz(target, seeds(target), home / target, seconds=seconds, seed=seed)
        kinds[f"input made for the code: {target}"] = ended.inputs
        if ended.breaker is not None:
            broke += 1
            say(f"{target}: {ended.breaker!r}\n{ended.words}")
    what = f"inputs to the parsers, led by coverage for {seconds} s each, that broke a rule"
    return Part([_none(what, broke, kinds.total())], kinds)


def _none(what: str, wrong: int, of: int) -> Row:
    return Row(what, "0", f"{wrong} of {of:,}", not wrong and of > 0)
