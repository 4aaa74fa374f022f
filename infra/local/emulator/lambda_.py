"""Lambda: a queue of asynchronous events that loses none, and workers on the interpreter that the runtime names."""

import contextvars
import heapq
import itertools
import logging
import shutil
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any

from ministack.core import lambda_runtime
from ministack.core.responses import set_request_account_id, set_request_region
from ministack.services import lambda_svc

from infra.local.emulator.delivery import deliver
from infra.local.emulator.patching import patch

# What AWS does with an asynchronous event unless told otherwise.
# https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-configuring.html
DEFAULT_RETRIES = 2
DEFAULT_MAX_AGE_SECONDS = 6 * 3600

# AWS waits 1 s to 5 min for a throttled event, 1 and 2 min after an error; here a demo is waiting.
THROTTLE_WAIT_SECONDS = 0.1
THROTTLE_WAIT_LIMIT_SECONDS = 1.0

WORKER = Path(__file__).with_name("worker.py")

log = logging.getLogger(__name__)


def install() -> None:
    events = AsyncEvents(threads=lambda_svc._ACCOUNT_CONCURRENCY_CAP or 32)
    patch(
        lambda_svc,
        "invoke_async_with_retry",
        events.submit,
        because="a throttled event used up its attempts, and was lost after the third",
    )
    detect = lambda_runtime._detect_runtime_binary
    patch(
        lambda_runtime,
        "_detect_runtime_binary",
        lambda runtime: (interpreter(runtime), WORKER.read_text()) if runtime.startswith("python") else detect(runtime),
        because="functions ran on MiniStack's interpreter and packages, so a dependency missing in the zip was hidden; "
        "and what a handler's child printed replaced the handler's result",
    )


# The interpreter ------------------------------------------------------------------------------------------------


@cache
def interpreter(runtime: str) -> str:
    """The Python of a Lambda runtime, outside of any virtual environment."""
    version = runtime.removeprefix("python")
    for candidate in (sys._base_executable, shutil.which(f"python{version}")):
        if candidate and _version(candidate) == version:
            return candidate
    ours = ".".join(map(str, sys.version_info[:2]))
    raise RuntimeError(f"no python{version} on PATH for a {runtime} function; deploy with LAMBDA_RUNTIME=python{ours}")


def _version(python: str) -> str:
    script = "import sys; print('%d.%d' % sys.version_info[:2])"
    return subprocess.run([python, "-c", script], capture_output=True, text=True, check=False).stdout.strip()


# Asynchronous events --------------------------------------------------------------------------------------------


@dataclass
class Event:
    """One asynchronous invocation, from its acceptance to success, exhaustion or old age."""

    function_arn: str
    payload: Any
    context: contextvars.Context
    accepted: float = field(default_factory=time.monotonic)
    attempts: int = 0
    throttles: int = 0


class AsyncEvents:
    """Events wait here, not in threads: a burst of any size needs no more workers than may run at once."""

    def __init__(self, *, threads: int) -> None:
        self._waiting: list[tuple[float, int, Event]] = []
        self._order = itertools.count()
        self._changed = threading.Condition()
        for number in range(threads):
            threading.Thread(target=self._work, name=f"lambda-async-{number}", daemon=True).start()

    def submit(self, function: dict[str, Any], payload: Any) -> None:
        config = function.get("config") or function
        self._put(Event(config["FunctionArn"], payload, contextvars.copy_context()), delay=0)

    def _put(self, event: Event, *, delay: float) -> None:
        with self._changed:
            heapq.heappush(self._waiting, (time.monotonic() + delay, next(self._order), event))
            self._changed.notify()

    def _take(self) -> Event:
        with self._changed:
            while True:
                wait = self._waiting[0][0] - time.monotonic() if self._waiting else None
                if wait is not None and wait <= 0:
                    self._changed.notify()  # someone must watch the clock of the next one
                    return heapq.heappop(self._waiting)[2]
                self._changed.wait(wait)

    def _work(self) -> None:
        while True:
            event = self._take()
            try:
                event.context.run(self._attempt, event)
            except Exception:  # the thread must outlive any event
                log.exception("event for %s dropped", event.function_arn)

    def _attempt(self, event: Event) -> None:
        # Looked up at each attempt: code or settings may have been deployed meanwhile.
        account, region = lambda_runtime._lambda_function_account_region_from_arn(event.function_arn)
        set_request_account_id(account)
        set_request_region(region)
        function, config, _ = lambda_svc._get_func_record_for_ref(event.function_arn)
        if not function or not config:
            log.error("function is gone, event dropped: %s", event.function_arn)
            return
        result = lambda_svc._execute_function(lambda_svc._execution_record_for_config(function, config), event.payload)
        if result.get("log"):
            log.info("%s\n%s", config["FunctionName"], result["log"])
        settings = function.get("event_invoke_config") or (function.get("event_invoke_configs") or {}).get("$LATEST")
        self._settle(event, result, config, settings or {})

    def _settle(self, event: Event, result: dict[str, Any], config: dict[str, Any], settings: dict[str, Any]) -> None:
        destinations = settings.get("DestinationConfig") or {}
        if result.get("throttle"):
            event.throttles += 1
            delay = min(THROTTLE_WAIT_SECONDS * 2**event.throttles, THROTTLE_WAIT_LIMIT_SECONDS)
            exhausted = False
        else:
            event.attempts += 1
            if not result.get("error"):
                self._report(event, result, "Success", (destinations.get("OnSuccess") or {}).get("Destination"))
                return
            retries = settings.get("MaximumRetryAttempts")
            exhausted = event.attempts > (DEFAULT_RETRIES if retries is None else int(retries))
            delay = min(
                lambda_svc._LAMBDA_ASYNC_RETRY_BASE_SECONDS * 2 ** (event.attempts - 1),
                lambda_svc._LAMBDA_ASYNC_RETRY_MAX_SECONDS,
            )
        age = time.monotonic() - event.accepted + delay
        if not exhausted and age <= int(settings.get("MaximumEventAgeInSeconds") or DEFAULT_MAX_AGE_SECONDS):
            self._put(event, delay=delay)
            return
        condition = "RetriesExhausted" if exhausted else "EventAgeExceeded"
        self._report(event, result, condition, (destinations.get("OnFailure") or {}).get("Destination"))
        if dead_letters := (config.get("DeadLetterConfig") or {}).get("TargetArn"):
            deliver(dead_letters, event.payload, attributes={"ErrorCode": "200", "ErrorMessage": condition})

    @staticmethod
    def _report(event: Event, result: dict[str, Any], condition: str, destination: str | None) -> None:
        """Send the invocation record to its destination.

        https://docs.aws.amazon.com/lambda/latest/dg/invocation-async-retain-records.html
        """
        if not destination:
            return
        response = {"statusCode": 200, "executedVersion": "$LATEST"}
        if condition != "Success":
            response["functionError"] = "Unhandled"
        record = {
            "version": "1.0",
            "timestamp": datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z"),
            "requestContext": {
                "functionArn": f"{event.function_arn}:$LATEST",
                "condition": condition,
                "approximateInvokeCount": event.attempts,
            },
            "requestPayload": event.payload,
            "responseContext": response,
            "responsePayload": result.get("body"),
        }
        deliver(destination, record)
