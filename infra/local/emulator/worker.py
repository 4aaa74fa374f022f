"""Runs inside a worker process, as AWS's Python runtime would: one JSON line in per invocation, one out.

MiniStack starts it with the interpreter that the runtime names. It uses the standard library only, and nothing of
the project: it is copied next to the function's code.
"""

import importlib
import json
import logging
import os
import sys
import time
import traceback
from types import SimpleNamespace


def main():
    requests, answers = _take_over_the_channels()
    _log_like_lambda()
    init = json.loads(requests.readline())
    os.environ.update(init.get("env") or {})
    # The function's zip and the standard library, nothing else that happens to be installed on this machine.
    own = os.path.dirname(os.path.abspath(__file__))
    rest = [path for path in sys.path if path != own and not path.endswith(("site-packages", "dist-packages"))]
    sys.path[:] = [init["code_dir"], *rest]
    try:
        handler = getattr(importlib.import_module(init["module"]), init["handler"])
    except Exception as error:  # the function's own code may raise anything as it is imported
        traceback.print_exc()
        _answer(answers, status="error", error=f"Unable to import module '{init['module']}': {error}")
        return
    _answer(answers, status="ready", cold=True)
    for line in requests:
        message = json.loads(line)
        try:
            result = handler(message["event"], _context(init, message.get("ctx") or {}))
            answer = json.dumps({"status": "ok", "result": result})
        except Exception as error:  # and as it is called: that is its answer
            _answer(answers, status="error", error=f"{type(error).__name__}: {error}", trace=traceback.format_exc())
        else:
            answers.write(answer + "\n")
            answers.flush()


def _take_over_the_channels():
    """Move the protocol away from fd 0 and 1, so that whatever handler or children print there is only a log line."""
    requests = os.fdopen(os.dup(0), "r", encoding="utf-8")
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    null = os.open(os.devnull, os.O_RDONLY)
    os.dup2(null, 0)
    os.close(null)
    os.dup2(2, 1)
    sys.stdout.reconfigure(line_buffering=True)
    return requests, answers


def _log_like_lambda():
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        logging.Formatter("[%(levelname)s]\t%(asctime)s.%(msecs)03dZ\t%(message)s", "%Y-%m-%dT%H:%M:%S")
    )
    logging.getLogger().addHandler(handler)


def _answer(stream, **message):
    stream.write(json.dumps(message) + "\n")
    stream.flush()


def _context(init, call):
    deadline = time.monotonic() + call.get("timeout_ms", 3000) / 1000
    return SimpleNamespace(
        function_name=init["function_name"],
        function_version=os.environ.get("AWS_LAMBDA_FUNCTION_VERSION", "$LATEST"),
        invoked_function_arn=call.get("invoked_function_arn") or init["arn"],
        memory_limit_in_mb=init["memory"],
        aws_request_id=call.get("request_id", ""),
        log_group_name=os.environ.get("AWS_LAMBDA_LOG_GROUP_NAME", "/aws/lambda/" + init["function_name"]),
        log_stream_name=os.environ.get("AWS_LAMBDA_LOG_STREAM_NAME", ""),
        identity=None,
        client_context=None,
        get_remaining_time_in_millis=lambda: max(0, int((deadline - time.monotonic()) * 1000)),
    )


main()
