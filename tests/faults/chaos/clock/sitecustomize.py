"""On PYTHONPATH: this process's clock jumps when it gets SIGUSR2, by CLOCK_JUMP_SECONDS; monotonic time goes on.

As when an instance resumes, or its time server corrects it. SIGUSR2 once more, and it is right again.
"""

import datetime
import os
import signal
import time

_JUMP = float(os.environ.get("CLOCK_JUMP_SECONDS", "0"))
_time, _datetime = time.time, datetime.datetime
_jumped = False


def _shift() -> float:
    return _JUMP if _jumped else 0.0


class _Shifted(_datetime):
    @classmethod
    def now(cls, tz=None):  # type: ignore[no-untyped-def]
        return _datetime.now(tz) + datetime.timedelta(seconds=_shift())

    @classmethod
    def utcnow(cls):  # type: ignore[no-untyped-def]
        return cls.now(datetime.UTC).replace(tzinfo=None)


def _jump(*_: object) -> None:
    global _jumped
    _jumped = not _jumped
    os.write(2, b"the clock jumped\n")


if _JUMP:
    time.time = lambda: _time() + _shift()
    datetime.datetime = _Shifted  # type: ignore[misc]
    signal.signal(signal.SIGUSR2, _jump)
