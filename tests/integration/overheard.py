"""What the worker says to a server, overheard on the way there."""

import contextlib
import socket
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit


@dataclass
class Overheard:
    """A way to a server on which what is said is overheard, before the server hears it."""

    url: str

    def __post_init__(self) -> None:
        self._upstream = (urlsplit(self.url).hostname, urlsplit(self.url).port)
        self._door = socket.create_server(("127.0.0.1", 0))
        self._waiting: list[tuple[tuple[bytes, ...], Callable[[], None]]] = []
        self._said: list[bytearray] = []
        self.url = f"http://127.0.0.1:{self._door.getsockname()[1]}"
        threading.Thread(target=self._serve, daemon=True).start()

    def __enter__(self) -> "Overheard":
        return self

    def __exit__(self, *_: object) -> None:
        self._door.close()

    def on(self, *words: bytes, call: Callable[[], None]) -> None:
        """Has `call` done the first time that one connection has said all of them."""
        self._waiting.append((words, call))

    def times(self, words: bytes) -> int:
        """How often that was said."""
        return sum(said.count(words) for said in self._said)

    def _serve(self) -> None:
        with contextlib.suppress(OSError):  # the door was closed, or nobody is upstream
            while True:
                near, _ = self._door.accept()
                far = socket.create_connection(self._upstream)
                self._said.append(bytearray())
                there, back = (near, far, self._said[-1], self._waiting), (far, near, bytearray(), [])
                for way in (there, back):
                    threading.Thread(target=self._pass_on, args=way, daemon=True).start()

    def _pass_on(self, source: socket.socket, target: socket.socket, said: bytearray, waiting: list[Any]) -> None:
        for piece in _pieces(source):
            said += piece
            for one in [one for one in waiting if all(word in said for word in one[0])]:
                waiting.remove(one)
                one[1]()
            with contextlib.suppress(OSError):  # it has hung up, as the other way notices
                target.sendall(piece)
        with contextlib.suppress(OSError):
            target.shutdown(socket.SHUT_WR)


def _pieces(source: socket.socket) -> Iterator[bytes]:
    with contextlib.suppress(OSError):  # it has hung up
        while piece := source.recv(65536):
            yield piece
