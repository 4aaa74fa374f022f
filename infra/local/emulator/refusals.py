"""What AWS would refuse is raised deep inside, and answered at the door."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

Parameters = Mapping[str, Any]
Response = tuple[int, dict[str, str], bytes]
Handler = Callable[[Parameters], Response]


class Refused(Exception):
    def __init__(self, code: str, message: str, *, status: int = 400) -> None:
        super().__init__(message)
        self.code = code
        self.status = status


def answered_by(error: Callable[[str, str, int], Response]) -> Callable[[Handler], Handler]:
    """Makes a handler of an API action answer a refusal with the service's own `error`."""

    def decorate(handler: Handler) -> Handler:
        @functools.wraps(handler)
        def answer(p: Parameters) -> Response:
            try:
                return handler(p)
            except Refused as refusal:
                return error(refusal.code, str(refusal), refusal.status)

        return answer

    return decorate
