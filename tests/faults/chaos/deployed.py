"""The system as deployed, IAM enforced: S3's own events, EventBridge, and the function, whose processes are killed."""

import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

from cli.local import BUCKET, LocalStack
from shared.keys import Session
from shared.server import Limits, ServerClient
from tests.faults.chaos.drills import CHUNKS, Ended
from tests.faults.chaos.producer import Producer
from tests.faults.chaos.programs import Program, children, signal_quietly
from tests.faults.chaos.system import BATCHES, look, verdict
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
        "FAULTS_LEVERS": str(local.home / "levers"),
        "FAULTS_HEARD": str(local.home / "heard"),
    }
    return Program(
        "tests.faults.chaos.server",
        environment=local._program_environment() | settings,
        log=local.home / "log/server.log",
    )


def _run(local: LocalStack, producer: Producer, number: int, choice: random.Random) -> Ended:
    began = time.monotonic()
    emulator, settings = local._state().emulator_pid, local.settings()
    session = Session("u", f"{number} deployed")
    for index in range(1, CHUNKS + 1):
        producer.chunk(session, (number + 1, index, 1))
    producer.manifest(session, CHUNKS)
    functions = eventually(lambda: children(emulator), "the functions at work")
    time.sleep(choice.uniform(0, 2))  # the moment itself
    killed = sum(signal_quietly(pid, signal.SIGKILL) for pid in {*functions, *children(emulator)})
    batches, wrong = 0, ["no batch run yet"]
    while wrong and batches < BATCHES:
        batches += 1
        status = _batch(local)
        found = look(local.client("s3"), BUCKET, settings["AWS_ENDPOINT_URL"])
        wrong = verdict(found, producer.uploads) + ([f"the batch run's status is {status}"] if status else [])
    return Ended(KIND, killed, batches, tuple(wrong), time.monotonic() - began)


def _batch(local: LocalStack) -> int:
    environment = local._program_environment() | {"POLL_SECONDS": "2"}
    log = local.home / "log/worker.log"
    return Program("batch_worker", "--until-empty", environment=environment, log=log).run()
