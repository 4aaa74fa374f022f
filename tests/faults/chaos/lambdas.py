"""Lambda around the real handler: environments that may be killed, asynchronous retries, a failure destination.

`python -m tests.faults.chaos.lambdas` is one environment: an event a line on stdin, an answer a line on stdout. The
local AWS has real functions, too slow to start for hundreds of deliveries on two cores; `drills` uses those too.
"""

import heapq
import json
import os
import random
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from infra.local.processes import ROOT

TIMEOUT_SECONDS = 120.0  # the function's own, as deployed
# https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-error-handling.html: two more tries. AWS waits 1 and 2
# minutes; nothing hangs on how long it is.
RETRY_SECONDS = (0.5, 1.0)


@dataclass(order=True)
class _Due:
    at: float
    number: int
    event: Any = field(compare=False)
    tries: int = field(compare=False, default=0)


class Lambdas:
    """Asynchronous invocations by `size` environments. `failed`: gets the record of what failed three times."""

    def __init__(self, size: int, environment: Mapping[str, str], log: Path, failed: Callable[[str], None]) -> None:
        self._environment = dict(environment)
        self.log = log
        self._failed = failed
        self._due: list[_Due] = []
        self._taken = 0
        self._numbers = 0
        self._closed = False
        self._changed = threading.Condition()
        self._running: dict[int, subprocess.Popen[bytes]] = {}
        self.invocations = 0
        self.killed = 0
        self.failures = 0
        self._threads = [threading.Thread(target=self._serve, args=(place,), daemon=True) for place in range(size)]
        for thread in self._threads:
            thread.start()

    def invoke(self, event: Any, *, after: float = 0.0) -> None:
        """Queue an event; it is delivered in `after` seconds."""
        with self._changed:
            self._numbers += 1
            heapq.heappush(self._due, _Due(time.monotonic() + after, self._numbers, event))
            self._changed.notify()

    def kill(self, choice: random.Random) -> bool:
        """SIGKILL to an environment at work; False if none is."""
        with self._changed:
            if not self._running:
                return False
            self._running[choice.choice(sorted(self._running))].send_signal(signal.SIGKILL)
            self.killed += 1
            return True

    def signal_all(self, number: signal.Signals) -> int:
        """A signal to every environment that is at work; how many those were."""
        with self._changed:
            for process in self._running.values():
                process.send_signal(number)
            return len(self._running)

    def is_idle(self) -> bool:
        with self._changed:
            return not self._due and not self._taken

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join(TIMEOUT_SECONDS)

    def _serve(self, place: int) -> None:
        process: subprocess.Popen[bytes] | None = None
        try:
            while due := self._take():
                if process is None or process.poll() is not None:
                    process = self._environment_of_its_own()
                done = self._call(place, process, due.event)
                self._settle(due, done)
        finally:
            if process:
                process.kill()
                process.wait()

    def _take(self) -> _Due | None:
        """The next event that is due; None once closed."""
        with self._changed:
            while not self._closed:
                left = self._due[0].at - time.monotonic() if self._due else None
                if left is not None and left <= 0:
                    self._taken += 1
                    return heapq.heappop(self._due)
                self._changed.wait(left)
            return None

    def _call(self, place: int, process: subprocess.Popen[bytes], event: Any) -> bool:
        """Whether the handler returned. One that was killed, or takes too long, has not."""
        assert process.stdin
        assert process.stdout
        with self._changed:
            self._running[place] = process
            self.invocations += 1
        try:
            process.stdin.write(json.dumps(event).encode() + b"\n")
            process.stdin.flush()
            ready, _, _ = select.select([process.stdout], [], [], TIMEOUT_SECONDS)
            answered = process.stdout.readline() if ready else b""
        except BrokenPipeError:
            answered = b""
        finally:
            with self._changed:
                del self._running[place]
        if not answered:
            process.kill()
            process.wait()
        return answered == b"returned\n"

    def _settle(self, due: _Due, done: bool) -> None:
        if not done and due.tries == len(RETRY_SECONDS):
            # https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-retain-records.html
            self.failures += 1
            self._failed(json.dumps({"version": "1.0", "requestPayload": due.event}))
        with self._changed:
            self._taken -= 1
            if not done and due.tries < len(RETRY_SECONDS):
                at = time.monotonic() + RETRY_SECONDS[due.tries]
                heapq.heappush(self._due, _Due(at, due.number, due.event, due.tries + 1))
            self._changed.notify_all()

    def _environment_of_its_own(self) -> subprocess.Popen[bytes]:
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [sys.executable, "-m", __name__],
                cwd=ROOT,
                env=self._environment,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,
            )


@dataclass(frozen=True)
class Context:
    """As much of Lambda's as the handler asks for."""

    deadline: float

    def get_remaining_time_in_millis(self) -> int:
        return max(0, round((self.deadline - time.monotonic()) * 1000))


def main() -> None:
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # the handler's own log is for the log
    from router_lambda.handler import handler

    for line in sys.stdin.buffer:
        try:
            handler(json.loads(line), Context(time.monotonic() + TIMEOUT_SECONDS))
        except Exception:  # the handler has logged it; Lambda only knows that it raised
            answers.write(b"raised\n")
        else:
            answers.write(b"returned\n")


if __name__ == "__main__":
    main()
