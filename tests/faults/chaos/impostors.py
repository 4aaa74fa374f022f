"""Servers in the place of ours, broken in every way a server can be: on raw sockets, since HTTP libraries are kind."""

import json
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

DRIP_SECONDS = 0.5
READY = b'{"status": "ready"}'

Answer = Callable[["Impostor", socket.socket], None]


@dataclass(frozen=True)
class Bad:
    """`answer`: does to a connection what makes the server bad. `well`: it says that it is ready, to whoever asks."""

    answer: Answer
    well: bool = True


class Impostor:
    """Use as a context manager. `struck`: connections that met what is bad."""

    def __init__(self, bad: Bad) -> None:
        self._bad = bad
        self._door = socket.create_server(("127.0.0.1", 0))
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self.url = f"http://127.0.0.1:{self._door.getsockname()[1]}"
        self.struck = 0

    def __enter__(self) -> "Impostor":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._door.close()

    def wait(self, seconds: float) -> bool:
        """True once it is over."""
        return self._over.wait(seconds)

    def _serve(self) -> None:
        with suppress(OSError):
            while not self._over.is_set():
                near, _ = self._door.accept()
                threading.Thread(target=self._talk, args=(near,), daemon=True).start()

    def _talk(self, near: socket.socket) -> None:
        with near, suppress(OSError):
            request = near.recv(65536)
            if self._bad.well and request.startswith(b"GET /health"):
                near.sendall(response(200, READY, Content_Type="application/json"))
                return
            self.struck += 1
            self._bad.answer(self, near)


def response(status: int, body: bytes, **headers: str) -> bytes:
    fields = {"Content-Length": str(len(body)), "Connection": "close"}
    fields |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"HTTP/1.1 {status} .", *(f"{name}: {value}" for name, value in fields.items()), "", ""]
    return "\r\n".join(lines).encode() + body


def _says(status: int, body: bytes, **headers: str) -> Answer:
    return lambda impostor, near: near.sendall(response(status, body, **headers))


def _hang(impostor: Impostor, near: socket.socket) -> None:
    impostor.wait(60)


def _drip(impostor: Impostor, near: socket.socket) -> None:
    near.sendall(b"HTTP/1.1 200 OK\r\n")
    while not impostor.wait(DRIP_SECONDS):
        near.sendall(b"X-Drip: 1\r\n")


def _half_close(impostor: Impostor, near: socket.socket) -> None:
    near.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n{")
    near.shutdown(socket.SHUT_WR)
    impostor.wait(60)


def _reset(impostor: Impostor, near: socket.socket) -> None:
    near.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")


def _flap(impostor: Impostor, near: socket.socket) -> None:
    well = impostor.struck % 2 == 1
    near.sendall(response(200, READY) if well else response(503, b'{"reason": "loading"}'))


_RECEIPT = json.dumps({"status": "done", "s3_output_path": "s3://elsewhere/nothing.json"}).encode()
_PROBLEM = b'{"type": "about:blank", "title": "x"}'

# By kind of fault: what stands where the server should.
IMPOSTORS: dict[str, Bad] = {
    "server accepts and never answers": Bad(_hang, well=False),
    "server hangs with the job": Bad(_hang),
    "server drips headers": Bad(_drip),
    "server half-closes": Bad(_half_close),
    "server resets": Bad(_reset),
    "server says 200 and garbage": Bad(_says(200, b"<html>\xff\x00 hello")),
    "server says 200 and did nothing": Bad(_says(200, _RECEIPT, Content_Type="application/json")),
    "server says 202 and does nothing": Bad(_says(202, _RECEIPT, Content_Type="application/json")),
    "server says 500": Bad(_says(500, b"oops")),
    "server says 404, and is none of ours": Bad(_says(404, _PROBLEM)),
    "server says 401": Bad(_says(401, b"{}")),
    "server is full": Bad(_says(429, b"{}", Retry_After="1")),
    "server is loading for ever": Bad(_says(503, b'{"reason": "loading"}'), well=False),
    "server's health flaps": Bad(_flap, well=False),
}
SLOW = {"server hangs with the job", "server drips headers"}  # a try takes the router's whole 22 s
