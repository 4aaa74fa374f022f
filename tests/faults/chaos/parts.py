"""The parts of `make faults` that run on real processes, with their rows of the table."""

from collections import Counter
from collections.abc import Iterable

from tests.faults.chaos import faults, storm
from tests.faults.chaos.deployed import killed_functions
from tests.faults.chaos.drills import Ended, Group, groups, run_all
from tests.faults.chaos.faults_of_events import EVENTS
from tests.faults.chaos.faults_of_services import OF_AWS, SERVERS, WORKERS
from tests.faults.chaos.impostors import SLOW
from tests.faults.chaos.storm import Shape, Storm
from tests.faults.chaos.system import a_system
from tests.faults.table import AGAIN, Part, Row, Say

RUNS = 200
LAMBDAS = 4  # environments of the router in the great runs
CLOCK_JUMPS = (3 * 3600.0, -3 * 3600.0)  # seconds
CLOCK_PATH = "tests/faults/chaos/clock"
AWS_SHAPE = Shape(sessions=10, chunks=10, deliveries=2, seconds=60.0, overwritten=5, late=2)


def processes(*, rounds: int = 3, seed: int, say: Say = lambda line: None) -> Part:
    """Every fault of a process, the GPU, a server, an event, AWS: one small run each, in every round.

    The few that take two minutes are in the first round only.
    """
    kinds = faults.PROCESSES | SERVERS | WORKERS | EVENTS | OF_AWS
    work: list[Group] = []
    for number in range(rounds):
        jump = str(CLOCK_JUMPS[number % len(CLOCK_JUMPS)])
        work += groups(faults.CLOCKS, seed=seed + number, PYTHONPATH=CLOCK_PATH, CLOCK_JUMP_SECONDS=jump)
        work += groups(faults.DISKS, seed=seed + number, small_disk=True)
        work += groups(kinds, seed=seed + number)
        kinds = {kind: fault for kind, fault in kinds.items() if kind not in SLOW}
    ended: list[Ended] = []

    def tell(one: Ended) -> None:
        ended.append(one)
        say(f"{one.seconds:5.1f} s  {one.kind}: {one.fired:d} times{''.join(f', WRONG: {w}' for w in one.wrong)}")

    run_all(work, tell)
    for one in killed_functions(rounds, seed=seed):
        tell(one)
    return part_of(ended, wanted=RUNS)


def part_of(ended: Iterable[Ended], *, wanted: int) -> Part:
    """A run whose fault did not happen is a violation as well."""
    ended = list(ended)
    wrong = [line for one in ended for line in one.wrong]
    wrong += [f"{one.kind}: did not happen" for one in ended if not one.fired]
    kinds = Counter[str]()
    for one in ended:
        kinds[one.kind] += one.fired
        kinds[AGAIN] += one.again
    return Part(
        [
            Row("fault runs on real processes", f">= {wanted}", f"{len(ended)}", len(ended) >= wanted),
            Row("violations in or after them, faults that did not happen among them", "0", _count(wrong), not wrong),
            Row("batch runs until all was done, at most", "-", str(max(one.batches for one in ended)), None),
        ],
        kinds,
    )


def chaos(shape: Shape, *, seed: int) -> Part:
    """The great run, and the same uploads with nothing but duplicates."""
    with a_system(lambdas=LAMBDAS) as system:
        great = storm.chaos(system, shape, seed=seed)
    with a_system(lambdas=LAMBDAS, **storm.ALONE) as system:
        calm = storm.duplicates(system, shape, seed=seed)
    what = (
        f"chaos: {shape.sessions} sessions, {great.chunks} chunks, {great.deliveries} deliveries, "
        f"{great.kinds['kill -9 of the worker']} worker, {great.kinds['kill -9 of the server']} server and "
        f"{great.kinds['kill -9 of a function']} function kill -9, "
        f"{shape.slow_down:.0%} SlowDown, {shape.overwritten} overwritten, {shape.late} late manifests"
    )
    lost = great.chunks - great.done
    kills = {kind: times for kind, times in great.kinds.items() if kind.startswith("kill -9")}
    wanted = shape.worker_kills + shape.server_kills + shape.function_kills
    slept = sorted(kind for kind, times in great.kinds.items() if not times)
    return Part(
        [
            Row(f"{what}: chunks without a transcript", "0", str(lost), lost == 0),
            Row("kill -9 in it", f"{wanted}", f"{sum(kills.values())}", sum(kills.values()) == wanted),
            Row(
                "seconds of it in which S3 answered nothing but 503",
                f">= {shape.outage_seconds:.0f}",
                f"{great.outage_seconds:.1f}",
                great.outage_seconds >= shape.outage_seconds,
            ),
            Row("kinds of fault in it that fired", "all", _share(great.kinds, slept), not slept),
            Row("wrong at any instant, or at the end", "0", _seen(great), not great.wrong),
            Row(
                "times that a chunk version was heard in it, alone or in its session",
                "-",
                f"{great.heard.total() / great.uploaded_audio:.2f}",
                None,
            ),
            Row(
                f"transcriptions of a chunk version, {calm.deliveries} deliveries of {calm.uploads} uploads, "
                f"{shape.overwritten} of them overwritten, some by the queue, no faults, no stitched pass",
                "1.00",
                f"{calm.heard.total() / len(calm.heard):.2f} (of {len(calm.heard)} versions)",
                set(calm.heard.values()) == {1},
            ),
            Row("wrong at any instant, or at the end, without faults", "0", _seen(calm), not calm.wrong),
        ],
        Counter({**great.kinds, AGAIN: great.again + calm.again}),
    )


def aws(shape: Shape = AWS_SHAPE, *, seed: int, rate: float = 0.3) -> Part:
    """AWS, and the way to the server, fail at `rate`."""
    with a_system(lambdas=LAMBDAS) as system:
        run = storm.aws(system, shape, seed=seed, rate=rate)
    slept = sorted(kind for kind, times in run.kinds.items() if not times)
    return Part(
        [
            Row(
                f"chunks transcribed in the end, {run.share:.0%} of all requests to AWS failing",
                "100 %",
                f"{run.done / run.chunks:.0%} of {run.chunks}",
                run.done == run.chunks,
            ),
            Row("of them while it still failed", "-", f"{run.done_under_fire / run.chunks:.0%}", None),
            Row("wrong at any instant, or at the end", "0", _seen(run), not run.wrong),
            Row("kinds of AWS fault that fired", "all", _share(run.kinds, slept), not slept),
        ],
        Counter({**run.kinds, AGAIN: run.again}),
    )


def _seen(run: Storm) -> str:
    return f"{_count(run.wrong)} (of {run.written} outputs written)"


def _count(wrong: list[str]) -> str:
    return "0" if not wrong else f"{len(wrong)}: {wrong[0]}"


def _share(kinds: Counter[str], slept: list[str]) -> str:
    return f"{len(kinds) - len(slept)} of {len(kinds)}" + (f", not {', '.join(slept)}" if slept else "")
