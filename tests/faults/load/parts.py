"""The long version of the load tests, with their rows of the table."""

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.faults.load.clients import REFUSED, TAKEN, foretold
from tests.faults.load.rush import OVERLOAD, Rush, Shape, percentile, real_speech, slow_numbers
from tests.faults.table import Part, Row, Say

BURST = Shape(sessions=40, chunks=25)
SPEECH = Shape(sessions=12, capacity=8)
HEALTH_S = 0.2
REFUSAL_S = 1.0
FORETOLD = 0.9  # a job may end, or begin, between the two
GROWTH_BYTES = 1 << 30  # as for three hours of audio (bench); stitched sessions in full batches take the most


def run(*, say: Say = lambda line: None) -> Part:
    """A burst at an engine of known slowness, and the same at a real one."""
    rows: list[Row] = []
    kinds = Counter[str]()
    for name, start, shape in (("slow engine", slow_numbers, BURST), ("tiny.en", real_speech, SPEECH)):
        with TemporaryDirectory(prefix="faults-") as home:
            done = start(Path(home), shape)
        for wrong in done.wrong:
            say(f"{name}: {wrong}")
        say(f"{name}: {dict(done.decisions)} in {done.seconds:.0f} s")
        rows += _rows(name, done)
        kinds.update(_kinds(done))
    return Part(rows, kinds)


def _rows(name: str, done: Rush) -> list[Row]:
    late = percentile(done.refusals, 0.99)
    health = percentile(done.health, 0.99)
    silent = sum(one.retry_after is None for one in done.refusals)
    strange = sum(one.status not in (200, 202, 429, 503) for one in done.posts)
    odd = sum((one.status, one.reason) not in ((200, ""), (503, "saturated")) for one in done.health)
    taken, refused = (foretold(done.looks, status) for status in (TAKEN, REFUSED))
    what = (
        f"{done.uploads:,} uploads at once, each with a router of its own, "
        f"beside {OVERLOAD} times the capacity for {done.overload:.0f} s, {name}"
    )
    queued = done.decisions["queued"]
    return [
        Row(f"uploads that the router sent to the queue, {name}", "> 0", f"{queued:,}", queued > 0),
        Row(f"{what}: lost or wrong", "0", str(len(done.wrong)), not done.wrong and done.drained == 0),
        Row(
            f"refusals in it without Retry-After, or other answers, {name}",
            "0",
            f"{silent + strange} of {len(done.posts):,}",
            not silent and not strange and bool(done.refusals),
        ),
        Row(f"p99 of a refusal, {name}", f"< {REFUSAL_S:g} s", f"{late * 1000:.0f} ms", late < REFUSAL_S),
        Row(
            f"p99 of /health under full load, {name}", f"< {HEALTH_S:g} s", f"{health * 1000:.0f} ms", health < HEALTH_S
        ),
        Row(f"answers of /health but ready and saturated, {name}", "0", f"{odd} of {len(done.health):,}", not odd),
        Row(
            f"jobs posted beside it that were taken, and refused, as it said, {name}",
            f"> {FORETOLD:.0%} of each",
            f"{taken:.0%}, {refused:.0%}",
            min(taken, refused) > FORETOLD,
        ),
        Row(
            f"memory that the server grew by in it, {name}",
            f"< {GROWTH_BYTES >> 20} MB",
            f"{done.grown >> 20} MB",
            done.grown < GROWTH_BYTES,
        ),
    ]


def _kinds(done: Rush) -> Counter[str]:
    return Counter(
        {"overload: refused with 429": len(done.refusals), "overload: sent to the queue": done.decisions["queued"]}
    )
