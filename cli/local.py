"""The whole system on this machine: the local AWS, deployed to by the real scripts, and the real server and worker."""

import json
import os
import secrets
import shlex
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import boto3
from dotenv import dotenv_values

from infra.local import processes, stack
from infra.local.stack import StackError
from shared.server import Limits, ServerClient

REGION = "us-east-2"
QUEUE_PREFIX = "local"
BUCKET = "local-audio"
SERVER = "gpu_server"
PREFERRED_SERVER_PORT = 8000
SERVER_SECONDS = 120  # to load the model on a busy laptop
SERVER_GRACE_SECONDS = 30
EXPORTED = ("AUDIO_BUCKET", "SQS_QUEUE_URL", "SQS_DLQ_URL", "SQS_FAILURES_QUEUE_URL", "FAST_API_SERVER_URL", "API_KEY")

OnStep = Callable[[str, float | None], None]


@dataclass
class State:
    """What must be remembered between commands; lies in `state.json`."""

    emulator_pid: int
    endpoint: str
    server_port: int
    server_pid: int = 0


class LocalStack:
    """One local AWS with its server. `home`: the folder that holds everything of it. `server_port`: if it is free."""

    def __init__(self, home: Path, *, server_port: int = PREFERRED_SERVER_PORT) -> None:
        self.home = home
        self._server_port = server_port
        self._state_file = home / "state.json"
        self._env_file = home / "deploy.env"

    def is_up(self) -> bool:
        state = self._load()
        return state is not None and stack.is_emulator(state.emulator_pid)

    def up(self, *, server: bool, on_step: OnStep) -> None:
        """Start what does not run, deploy, and wait until it works. Safe to repeat.

        Raises:
            StackError: in words for a person.
        """
        state = self._load()
        if state is None or not stack.is_emulator(state.emulator_pid):
            emulator = stack.start_emulator(self.home)
            state = State(emulator.pid, emulator.endpoint, processes.free_port(self._server_port))
            self._save(state)
        self._write_settings(state)
        if server:
            self.start_server()  # the model loads while the scripts run
        stack.deploy(self._env_file, stack.root_environment(state.endpoint, REGION), on_step)
        self._write_exports()
        if server:
            self.await_server()

    def down(self) -> None:
        """Stop server and emulator; their data stays in `home` for the next `up`."""
        state = self._load()
        if state:
            self.stop_server()
            stack.stop(state.emulator_pid)
            self._state_file.unlink()

    def start_server(self) -> None:
        """Start the GPU server if it does not run; it is not ready yet when this returns."""
        state = self._state()
        if state.server_pid and processes.runs(state.server_pid, SERVER):
            return
        host = state.endpoint.removeprefix("http://")
        process = processes.start(
            [sys.executable, "-m", SERVER],
            environment={
                **self._program_environment(),
                "FAST_API_HOST": "127.0.0.1",
                "FAST_API_PORT": str(state.server_port),
                "ENGINE": os.environ.get("ENGINE", "faster-whisper"),
                "ALLOW_URL_FETCH": "true",
                "URL_FETCH_HOSTS": host,
            },
            log=self._log("server"),
        )
        state.server_pid = process.pid
        self._save(state)

    def await_server(self) -> None:
        """Raises StackError when the server ends, or is not ready in time; with its last words."""
        state = self._state()
        deadline = time.monotonic() + SERVER_SECONDS
        health = self._server_client().health(Limits(1, 2))
        while not health.ready:
            if not processes.runs(state.server_pid, SERVER):
                raise StackError(f"the GPU server ended:\n{processes.tail(self._log('server'))}")
            if time.monotonic() > deadline:
                raise StackError(f"the GPU server is not ready after {SERVER_SECONDS} s: {health.reason}")
            time.sleep(processes.POLL_SECONDS)
            health = self._server_client().health(Limits(1, 2))

    def stop_server(self) -> bool:
        """False if it did not run."""
        state = self._state()
        stopped = processes.stop(state.server_pid, SERVER, grace_seconds=SERVER_GRACE_SECONDS)
        state.server_pid = 0
        self._save(state)
        return stopped

    def work(self) -> int:
        """Run the batch worker until the queue is empty; its exit status. Starts a server if none runs."""
        self.start_server()
        self.await_server()
        command = [sys.executable, "-m", "batch_worker", "--until-empty"]
        environment = {**self._program_environment(), "POLL_SECONDS": "2"}
        with self._log("worker").open("ab") as log:
            return subprocess.run(command, cwd=stack.ROOT, env=environment, stderr=log, check=False).returncode

    def settings(self) -> dict[str, str]:
        """What the programs and a person's shell need: the file `env`."""
        values = {name: value for name, value in dotenv_values(self._env_file).items() if value}
        return stack.root_environment(self._state().endpoint, REGION) | {
            name: values[name] for name in EXPORTED if name in values
        }

    def client(self, service: str) -> Any:
        """A boto3 client as the account's owner."""
        settings = self.settings()
        return boto3.client(  # type: ignore[call-overload]  # the stubs want a literal name
            service,
            region_name=REGION,
            endpoint_url=settings["AWS_ENDPOINT_URL"],
            aws_access_key_id=settings["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=settings["AWS_SECRET_ACCESS_KEY"],
        )

    def _program_environment(self) -> dict[str, str]:
        """Server's and worker's: the instance role's credentials, as on an instance, never the owner's."""
        state = self._state()
        role = stack.instance_role_profile(self.home, endpoint=state.endpoint, region=REGION, queue_prefix=QUEUE_PREFIX)
        values = {name: value for name, value in dotenv_values(self._env_file).items() if value}
        return {**stack.without_aws(os.environ), **values, **role, "PYTHONUNBUFFERED": "1"}

    def _write_settings(self, state: State) -> None:
        known = dotenv_values(self._env_file) if self._env_file.exists() else {}
        settings = known | {
            "AWS_REGION": REGION,
            "QUEUE_PREFIX": QUEUE_PREFIX,
            "AUDIO_BUCKET": BUCKET,
            "FAST_API_SERVER_URL": f"http://127.0.0.1:{state.server_port}",
            "API_KEY": known.get("API_KEY") or secrets.token_urlsafe(24),
        }
        _write_private(self._env_file, "".join(f"{name}={value}\n" for name, value in settings.items()))

    def _write_exports(self) -> None:
        lines = [f"export {name}={shlex.quote(value)}\n" for name, value in self.settings().items()]
        _write_private(self.home / "env", "".join(lines))

    def _server_client(self) -> ServerClient:
        return ServerClient(f"http://127.0.0.1:{self._state().server_port}")

    def _log(self, name: str) -> Path:
        path = self.home / "log" / f"{name}.log"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def _state(self) -> State:
        state = self._load()
        if state is None:
            raise StackError("the local stack is not up: run `make up`")
        return state

    def _load(self) -> State | None:
        return State(**json.loads(self._state_file.read_text())) if self._state_file.exists() else None

    def _save(self, state: State) -> None:
        _write_private(self._state_file, json.dumps(asdict(state)))


def _write_private(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(path.suffix + ".new")
    new.touch(mode=0o600)
    new.write_text(text)
    new.replace(path)
