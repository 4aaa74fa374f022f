"""A stranger's URL: what is dialled, what is refused, and that nothing is left behind."""

import http.server
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from gpu_server import fetching
from gpu_server.fetching import FetchError, UrlNotAllowed, UrlNotFound, UrlTooLarge, UrlUnreachable, fetch_url

PUBLIC = "93.184.215.14"

INSIDE = [
    "127.0.0.1",
    "127.8.8.8",
    "0.0.0.0",
    "10.1.2.3",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.1.1",
    "169.254.169.254",
    "169.254.170.2",
    "169.254.170.23",
    "100.64.0.1",
    "192.0.0.170",
    "192.0.2.1",
    "192.88.99.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::127.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:10.0.0.1",
    "64:ff9b::a9fe:a9fe",
    "64:ff9b:1::a9fe:a9fe",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:a9fe:a9fe::1",
    "2002:7f00:1::",
    "3fff::1",
    "fc00::1",
    "fd00:ec2::254",
    "fd00:ec2::23",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
]
OUTSIDE = [PUBLIC, "8.8.8.8", "1.1.1.1", "::ffff:8.8.8.8", "2001:4860:4860::8888", "2a00:1450:4001::1"]


class Server(http.server.ThreadingHTTPServer):
    """Answers each path with a script; `asked` is what came."""

    def __init__(self, scripts: dict[str, Callable[[http.server.BaseHTTPRequestHandler], None]]) -> None:
        self.asked: list[tuple[str, dict[str, str]]] = []
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked.append((self.path, dict(self.headers)))
                scripts[self.path](self)

            def log_message(self, *args: object) -> None: ...

        super().__init__(("127.0.0.1", 0), Handler)

    @property
    def host(self) -> str:
        return f"127.0.0.1:{self.server_port}"

    def handle_error(self, *args: object) -> None:
        """Clients that hang up are part of the tests."""


def answer(
    status: int = 200, body: bytes = b"", **headers: str
) -> Callable[[http.server.BaseHTTPRequestHandler], None]:
    def script(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(status)
        for name, value in headers.items():
            request.send_header(name.replace("_", "-"), value)
        request.end_headers()
        request.wfile.write(body)

    return script


def drip(request: http.server.BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.end_headers()
    for _ in range(1200):  # a minute
        request.wfile.write(b"x")
        time.sleep(0.05)


def drip_headers(request: http.server.BaseHTTPRequestHandler) -> None:
    request.wfile.write(b"HTTP/1.1 200 OK\r\nX: ")
    for _ in range(1200):  # a minute
        request.wfile.write(b"x")
        time.sleep(0.05)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    scripts = {
        "/audio": answer(body=b"a" * 1000, Content_Length="1000"),
        "/endless": answer(body=b"a" * 1_000_000),
        "/lies": answer(body=b"a" * 100, Content_Length="5000"),
        "/announced": answer(body=b"", Content_Length="999999999999"),
        "/gzip": answer(body=b"\x1f\x8b", Content_Encoding="gzip"),
        "/drip": drip,
        "/drip-headers": drip_headers,
        "/nonsense": lambda request: request.wfile.write(b"SSH-2.0-hello\r\n\r\n") and None,
        "/once": answer(302, Location="/audio"),
        "/loop": answer(302, Location="/loop"),
        "/to-inside": answer(302, Location="http://169.254.169.254/latest/meta-data/"),
        "/to-port": answer(302, Location="http://127.0.0.1:1/"),
        "/to-file": answer(302, Location="file:///etc/passwd"),
        "/to-nowhere": answer(302),
        "/to-userinfo": answer(302, Location="http://user:pass@127.0.0.1/"),
        **{f"/{status}": answer(status, b"secret") for status in (204, 401, 403, 404, 410, 429, 500, 503)},
    }
    with Server(scripts) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        yield server
        server.shutdown()


def fetch(url: str, folder: Path, **options: object) -> int:
    settings: dict[str, object] = {"max_bytes": 10_000, "timeout_s": 5.0, **options}
    return fetch_url(url, folder / "file", **settings)  # type: ignore[arg-type]


def refusal(url: str, folder: Path, **options: object) -> FetchError:
    with pytest.raises(FetchError) as caught:
        fetch(url, folder, **options)
    assert not (folder / "file").exists()
    return caught.value


def resolving(*addresses: str) -> Callable[[str, int], list[str]]:
    return lambda host, port: list(addresses)


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The addresses that a connection was tried to; none succeeds."""
    addresses: list[str] = []

    def create_connection(address: tuple[str, int], *args: object, **kwargs: object) -> socket.socket:
        addresses.append(address[0])
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", create_connection)
    return addresses


@pytest.mark.parametrize("address", INSIDE)
def test_an_address_inside_is_never_dialled(address: str, dialled: list[str], tmp_path: Path) -> None:
    error = refusal("https://innocent.example/a", tmp_path, resolve=resolving(address))
    assert isinstance(error, UrlNotAllowed)
    assert dialled == []
    assert address not in str(error)


@pytest.mark.parametrize("address", OUTSIDE)
def test_a_public_address_is_dialled_as_judged(address: str, dialled: list[str], tmp_path: Path) -> None:
    error = refusal("https://innocent.example/a", tmp_path, resolve=resolving(address))
    assert isinstance(error, UrlUnreachable)
    assert dialled == [address]
    assert address not in str(error)


def test_one_address_inside_spoils_the_name(dialled: list[str], tmp_path: Path) -> None:
    error = refusal("https://mixed.example/", tmp_path, resolve=resolving(PUBLIC, "10.0.0.1"))
    assert isinstance(error, UrlNotAllowed)
    assert dialled == []


def test_the_name_is_resolved_once_so_it_cannot_change_its_mind(dialled: list[str], tmp_path: Path) -> None:
    answers = iter([[PUBLIC], ["127.0.0.1"]])
    refusal("https://rebinding.example/", tmp_path, resolve=lambda host, port: next(answers))
    assert dialled == [PUBLIC]
    assert next(answers) == ["127.0.0.1"]


def test_all_addresses_of_a_name_are_tried(dialled: list[str], tmp_path: Path) -> None:
    refusal("https://two.example/", tmp_path, resolve=resolving(PUBLIC, "8.8.8.8"))
    assert dialled == [PUBLIC, "8.8.8.8"]


@pytest.mark.parametrize(
    "url",
    [
        "http://2130706433/",
        "http://127.1/",
        "http://0x7f000001/",
        "http://0x7f.1/",
        "http://0177.0.0.1/",
        "http://2852039166/",
        "http://[::1]/",
        "http://[::ffff:127.0.0.1]/",
        "http://[::ffff:7f00:1]/",
        "http://[fd00:ec2::254]/",
        "http://localhost/",
        "http://LOCALHOST/",
        "http://127.0.0.1./",
        "http://127。0。0。1/",
        "http://①②⑦.⓪.⓪.①/",
        "http://169.254.169.254/latest/meta-data/",
        "http://user@127.0.0.1/",
        "http://8.8.8.8:80@127.0.0.1/",
        "http://127.0.0.1:22/",
        "https://example.com:22/",
        "https://user:password@example.com/",
        "http://8.8.8.8\\@127.0.0.1/",
        "http://127.0.0.1#@example.com/",
        "file:///etc/passwd",
        "ftp://example.com/a",
        "gopher://127.0.0.1:6379/_INFO",
        "data:audio/wav;base64,AAAA",
        "s3://bucket/key",
        "//example.com/a",
        "example.com/a",
        "https://",
        "https:///etc/passwd",
        "",
        "http://exa mple.com/",
        "http://example.com:99999/",
        "http://example.com\r\nX: y/",
        "http://[::1/",
        "https://example.com/" + "a" * 10_000,
    ],
)
def test_odd_urls_reach_nothing(url: str, dialled: list[str], tmp_path: Path) -> None:
    error = refusal(url, tmp_path, allow_http=True)
    assert isinstance(error, UrlNotAllowed | UrlUnreachable)
    assert dialled == []


@pytest.mark.parametrize("url", ["https://user:password@a.example/", "https://a.example:22/", "ftp://a.example/"])
def test_rules_on_the_url_hold_for_public_hosts_too(url: str, dialled: list[str], tmp_path: Path) -> None:
    assert isinstance(refusal(url, tmp_path, resolve=resolving(PUBLIC)), UrlNotAllowed)
    assert dialled == []


def test_http_needs_leave(dialled: list[str], tmp_path: Path) -> None:
    assert isinstance(refusal("http://a.example/", tmp_path, resolve=resolving(PUBLIC)), UrlNotAllowed)
    assert dialled == []
    refusal("http://a.example/", tmp_path, resolve=resolving(PUBLIC), allow_http=True)
    assert dialled == [PUBLIC]


def test_the_environments_proxy_is_not_used(
    dialled: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:3128")
    refusal("https://a.example/", tmp_path, resolve=resolving(PUBLIC))
    assert dialled == [PUBLIC]


def test_an_unknown_name_is_not_permanent(tmp_path: Path) -> None:
    def nobody(host: str, port: int) -> list[str]:
        raise socket.gaierror

    assert isinstance(refusal("https://nobody.example/", tmp_path, resolve=nobody), UrlUnreachable)


def test_a_vouched_host_is_fetched(server: Server, tmp_path: Path) -> None:
    allowed = frozenset({server.host})
    assert fetch(f"http://{server.host}/audio", tmp_path, allow_hosts=allowed) == 1000
    assert (tmp_path / "file").read_bytes() == b"a" * 1000
    path, headers = server.asked[-1]
    assert path == "/audio"
    assert headers["Accept-Encoding"] == "identity"
    assert headers["Host"] == server.host
    assert not {"Cookie", "Authorization"} & set(headers)


@pytest.mark.parametrize("vouched", ["127.0.0.1:1", "127.0.0.1", "localhost:80", ""])
def test_vouching_is_exact(vouched: str, server: Server, tmp_path: Path) -> None:
    url = f"http://{server.host}/audio"
    assert isinstance(refusal(url, tmp_path, allow_hosts=frozenset({vouched})), UrlNotAllowed)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/endless", UrlTooLarge),
        ("/announced", UrlTooLarge),
        ("/lies", UrlUnreachable),
        ("/gzip", UrlUnreachable),
        ("/nonsense", UrlUnreachable),
        ("/loop", UrlNotAllowed),
        ("/to-inside", UrlNotAllowed),
        ("/to-port", UrlNotAllowed),
        ("/to-file", UrlNotAllowed),
        ("/to-userinfo", UrlNotAllowed),
        ("/to-nowhere", UrlUnreachable),
        ("/204", UrlUnreachable),
        ("/401", UrlNotFound),
        ("/403", UrlNotFound),
        ("/404", UrlNotFound),
        ("/410", UrlNotFound),
        ("/429", UrlUnreachable),
        ("/500", UrlUnreachable),
        ("/503", UrlUnreachable),
    ],
)
def test_what_comes_of_an_answer(path: str, expected: type, server: Server, tmp_path: Path) -> None:
    error = refusal(f"http://{server.host}{path}", tmp_path, allow_hosts=frozenset({server.host}), allow_http=True)
    assert type(error) is expected
    assert "secret" not in str(error)
    assert "169.254" not in str(error)


def test_few_redirects_are_followed(server: Server, tmp_path: Path) -> None:
    assert fetch(f"http://{server.host}/once", tmp_path, allow_hosts=frozenset({server.host})) == 1000
    before = len(server.asked)
    refusal(f"http://{server.host}/loop", tmp_path, allow_hosts=frozenset({server.host}))
    assert len(server.asked) - before == fetching.MAX_REDIRECTS + 1


@pytest.mark.parametrize("path", ["/drip", "/drip-headers"])
def test_a_slow_drip_ends_at_the_deadline(path: str, server: Server, tmp_path: Path) -> None:
    url = f"http://{server.host}{path}"
    error = refusal(url, tmp_path, allow_hosts=frozenset({server.host}), timeout_s=0.4)
    assert isinstance(error, UrlUnreachable)
    assert "too slow" in str(error)  # the drip had not ended


def test_https_never_becomes_http(tmp_path: Path) -> None:
    secure, plain = fetching.httpx.URL("https://a.example/"), "http://a.example/"
    with pytest.raises(UrlNotAllowed, match="unprotected"):
        fetching.follow_location(secure, plain)


@pytest.mark.parametrize("error", FetchError.__subclasses__())
def test_errors_have_a_stable_type(error: type[FetchError]) -> None:
    assert error.type.startswith("url-")
    assert error.status in {403, 404, 413, 502}
