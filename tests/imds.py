"""A stand-in for EC2's instance metadata service, as a real HTTP server on loopback."""

import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TTL = "X-aws-ec2-metadata-token-ttl-seconds"
TOKEN = "X-aws-ec2-metadata-token"


class FakeImds:
    """Version 2: it answers nobody without a token of its own. `items`: by name, such as "instance-id"."""

    def __init__(self, **items: str) -> None:
        self.items = items
        self.tokens: set[str] = set()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> "FakeImds":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        imds = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                if self.path != "/latest/api/token" or not 1 <= int(self.headers.get(TTL, "0")) <= 21_600:
                    return self._answer(400)
                token = uuid.uuid4().hex
                imds.tokens.add(token)
                return self._answer(200, token)

            def do_GET(self) -> None:
                if self.headers.get(TOKEN) not in imds.tokens:
                    return self._answer(401)
                item = imds.items.get(self.path.removeprefix("/latest/meta-data/"))
                return self._answer(404) if item is None else self._answer(200, item)

            def _answer(self, status: int, text: str = "") -> None:
                self.send_response(status)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None:
                pass

        return Handler
