"""The system as deployed, IAM enforced: S3's own events, EventBridge, and the function, whose processes are killed."""

import json
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from cli.local import BUCKET, LocalStack
from shared.keys import Session
from shared.server import Limits, ServerClient
from tests.faults.chaos.drills import CHUNKS, MEET_SECONDS, MOMENTS, Ended
from tests.faults.chaos.levers import Levers
from tests.faults.chaos.producer import Producer
from tests.faults.chaos.programs import Program, children, is_busy, signal_quietly
from tests.faults.chaos.system import look, rest, verdict
from tests.patience import eventually

KIND = "kill -9 of a deployed function"


def killed_functions(runs: int, *, seed: int) -> Iterator[Ended]:
    """A deployment, and `runs` sessions in it, in each of which the functions at work are killed."""
    choice = random.Random(f"{seed} deployed")
    with TemporaryDirectory(prefix="faults-") as folder:
        local = LocalStack(Path(folder))
        local.up(server=False, on_step=lambda step, seconds: None)
        server = _server(local)
        try:
            server.start()
            client = ServerClient(local.settings()["FAST_API_SERVER_URL"])
            eventually(lambda: client.health(Limits(2, 5)).ready, "a server")
            producer = Producer(local.client("s3"), BUCKET)
            for number in range(runs):
                yield _run(local, producer, number, choice)
        finally:
            server.close()
            local.down()


def _server(local: LocalStack) -> Program:
    """With the engine that hears numbers, in the place of the stack's own."""
    state = local._state()
    settings = {
        "FAST_API_HOST": "127.0.0.1",
        "FAST_API_PORT": str(state.server_port),
        "FAULTS_LEVERS": str(_levers(local).folder),
        "FAULTS_HEARD": str(local.home / "heard"),
    }
    return Program(
        "tests.faults.chaos.server",
        environment=local._program_environment() | settings,
        log=local.home / "log/server.log",
    )


def _levers(local: LocalStack) -> Levers:
    return Levers(local.home / "levers")


def _run(local: LocalStack, producer: Producer, number: int, choice: random.Random) -> Ended:
    began, emulator = time.monotonic(), local._state().emulator_pid
    session = Session("u", f"{number} deployed")
    _levers(local).pull("gpu slow", CHUNKS)
    keys = {producer.chunk(session, (number + 1, index, 1)).key for index in range(1, CHUNKS + 1)}
    keys.add(producer.manifest(session, CHUNKS).key)
    killed, batches, stuck = 0, 0, []
    try:
        eventually(lambda: children(emulator), "the functions", seconds=MEET_SECONDS)
        time.sleep(choice.uniform(0, MOMENTS))  # the moment itself
        killed = eventually(lambda: _kill_busy(emulator), "a function at work", seconds=MEET_SECONDS)
        eventually(lambda: keys <= _decided(local), "all events are handled")
        batches = rest(lambda: _batch(local), local.home / "log/worker.log")
    except AssertionError as error:
        stuck.append(str(error))
    found = look(local.client("s3"), BUCKET, local.settings()["AWS_ENDPOINT_URL"])
    return Ended(KIND, killed, batches, (*stuck, *verdict(found, producer.uploads)), time.monotonic() - began)


def _decided(local: LocalStack) -> set[str]:
    """What the router handled, as its log says."""
    lines = (local.home / "log/emulator.log").read_text().splitlines()
    return {json.loads(line)["key"] for line in lines if line.startswith("{") and '"message":"decided"' in line}


def _kill_busy(emulator: int) -> int:
    """SIGKILL to the environments that have an event in their hands; how many those were."""
    return sum(signal_quietly(pid, signal.SIGKILL) for pid in children(emulator) if is_busy(pid))


def _batch(local: LocalStack) -> int:
    environment = local._program_environment() | {"POLL_SECONDS": "2"}
    log = local.home / "log/worker.log"
    return Program("batch_worker", "--until-empty", environment=environment, log=log).run()
