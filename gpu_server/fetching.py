"""Download a file from a URL that a stranger chose, without reaching what only we can reach.

The address is judged when the connection is made, and the judged address is the one dialled: a name
that resolves differently the second time, an odd spelling of 127.0.0.1 and a redirect gain nothing.

    FetchError
    ├── UrlNotAllowed    the URL, its port, or an address behind it is refused
    ├── UrlNotFound      the other server says no: wrong, expired or protected
    ├── UrlTooLarge      more bytes than allowed, counted while they arrive
    └── UrlUnreachable   no answer, a broken or a slow one; may work later
"""

import contextlib
import ipaddress
import socket
import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import httpcore
import httpx

MAX_REDIRECTS = 3
MAX_URL_LENGTH = 8192  # presigned URLs are long
MAX_DIALS = 4  # addresses tried per connection
CONNECT_S = 5.0
READ_S = 20.0
CHUNK_BYTES = 1 << 16
PORTS = {"http": 80, "https": 443}
REDIRECTS = frozenset({301, 302, 303, 307, 308})
REFUSED = frozenset({401, 403, 404, 410})

GLOBAL_UNICAST = ipaddress.IPv6Network("2000::/3")  # RFC 4291: the rest is local or unassigned
# What is_global calls global, though it leads back inside or nowhere.
NOT_PUBLIC = tuple(
    ipaddress.ip_network(network)
    for network in (
        "192.88.99.0/24",  # 6to4 relays, RFC 7526
        "2001::/23",  # Teredo and other protocols' addresses, RFC 2928
        "2002::/16",  # 6to4: an IPv4 address inside, RFC 3056
        "3fff::/20",  # documentation, RFC 9637
    )
)

Resolve = Callable[[str, int], list[str]]


class FetchError(Exception):
    """``str()`` is fit for a client's eyes: it shows no address and nothing of the answer."""

    type: ClassVar[str] = "url-error"
    status: ClassVar[int] = 502


class UrlNotAllowed(FetchError):
    """The URL breaks a rule; permanent."""

    type = "url-not-allowed"
    status = 403


class UrlNotFound(FetchError):
    """The other server refuses or does not have it; permanent."""

    type = "url-not-found"
    status = 404


class UrlTooLarge(FetchError):
    """More than the allowed number of bytes; permanent."""

    type = "url-too-large"
    status = 413


class UrlUnreachable(FetchError):
    """No usable answer in time; may work later."""

    type = "url-unreachable"


def fetch_url(
    url: str,
    destination: Path,
    *,
    max_bytes: int,
    timeout_s: float,
    allow_hosts: frozenset[str] = frozenset(),
    allow_http: bool = False,
    resolve: Resolve | None = None,
) -> int:
    """Download `url` to `destination`; return the number of bytes.

    timeout_s: for everything together, redirects included. allow_hosts: "host:port" that the
    operator vouches for, free of the rules on scheme, port and address. allow_http: also plain
    HTTP, on port 80. Raises :class:`FetchError`; then nothing is left at `destination`.
    """
    deadline = time.monotonic() + timeout_s
    backend = _JudgingBackend(deadline=deadline, allow_hosts=allow_hosts, resolve=resolve or resolve_by_system)
    try:
        with httpcore.ConnectionPool(
            ssl_context=httpx.create_ssl_context(trust_env=False),
            network_backend=backend,
            max_keepalive_connections=0,
        ) as pool:
            return _follow(
                pool,
                url,
                destination,
                max_bytes=max_bytes,
                deadline=deadline,
                allow_hosts=allow_hosts,
                allow_http=allow_http,
            )
    except BaseException:  # also when interrupted: nothing is left behind
        destination.unlink(missing_ok=True)
        raise


def is_public(address: str) -> bool:
    """Whether `address` is on the open internet: the only place a stranger may send us."""
    ip = ipaddress.ip_address(address)
    if isinstance(ip, ipaddress.IPv6Address):
        if ip.ipv4_mapped is not None:
            return is_public(str(ip.ipv4_mapped))
        if ip not in GLOBAL_UNICAST:
            return False
    if not ip.is_global or ip.is_multicast or ip.is_reserved or ip.is_unspecified:
        return False
    return not any(ip in network for network in NOT_PUBLIC)


def follow_location(url: httpx.URL, location: str) -> httpx.URL:
    """Where a redirect from `url` leads; never from https to http."""
    target = _parse(location, base=url)
    if url.scheme == "https" and target.scheme != "https":
        raise UrlNotAllowed("The URL redirects from https to an unprotected address.")
    return target


def resolve_by_system(host: str, port: int) -> list[str]:
    """The addresses of `host`, in the system's order."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


def _follow(
    pool: httpcore.ConnectionPool,
    url: str,
    destination: Path,
    *,
    max_bytes: int,
    deadline: float,
    allow_hosts: frozenset[str],
    allow_http: bool,
) -> int:
    target = _parse(url)
    for _ in range(MAX_REDIRECTS + 1):
        _check(target, allow_hosts=allow_hosts, allow_http=allow_http)
        with _translated(), _get(pool, target, deadline=deadline) as response:
            if response.status == 200:
                return _save(response, destination, max_bytes=max_bytes)
            location = _header(response, b"location")
            if response.status not in REDIRECTS or not location:
                raise _refusal(response.status)
        target = follow_location(target, location)
    raise UrlNotAllowed(f"The URL redirects more than {MAX_REDIRECTS} times.")


def _parse(url: str, *, base: httpx.URL | None = None) -> httpx.URL:
    if len(url) > MAX_URL_LENGTH:
        raise UrlNotAllowed("The URL is too long.")
    try:
        return httpx.URL(url) if base is None else base.join(url)
    except (httpx.InvalidURL, ValueError) as error:
        raise UrlNotAllowed("This is not a valid URL.") from error


def _check(url: httpx.URL, *, allow_hosts: frozenset[str], allow_http: bool) -> None:
    """The rules that need no connection."""
    if url.scheme not in PORTS:
        raise UrlNotAllowed("Only https URLs are allowed.")
    if not url.host:
        raise UrlNotAllowed("The URL names no host.")
    if url.userinfo:
        raise UrlNotAllowed("The URL must not hold a user name or password.")
    port = url.port or PORTS[url.scheme]
    if f"{url.host}:{port}" in allow_hosts:
        return
    if url.scheme == "http" and not allow_http:
        raise UrlNotAllowed("Only https URLs are allowed.")
    if port != PORTS[url.scheme]:
        raise UrlNotAllowed("The URL's port is not allowed.")


@contextlib.contextmanager
def _get(pool: httpcore.ConnectionPool, url: httpx.URL, *, deadline: float) -> Iterator[httpcore.Response]:
    left = max(0.001, deadline - time.monotonic())
    timeout = {"connect": min(CONNECT_S, left), "read": READ_S, "write": READ_S, "pool": left}
    headers = [
        ("Host", url.netloc.decode("ascii")),
        ("Accept", "*/*"),
        ("Accept-Encoding", "identity"),  # what is counted is what arrives
        ("User-Agent", "smart-transcription-router"),
    ]
    target = httpcore.URL(scheme=url.raw_scheme, host=url.raw_host, port=url.port, target=url.raw_path)
    with pool.stream("GET", target, headers=headers, extensions={"timeout": timeout}) as response:
        yield response


def _save(response: httpcore.Response, destination: Path, *, max_bytes: int) -> int:
    if _header(response, b"content-encoding") not in ("", "identity"):
        raise UrlUnreachable("The other server compresses its answer, which was not asked for.")
    too_large = UrlTooLarge(f"The file is larger than {max_bytes} bytes.")
    announced = _header(response, b"content-length")
    if announced.isdecimal() and int(announced) > max_bytes:
        raise too_large
    size = 0
    with destination.open("wb") as file:
        for chunk in response.iter_stream():
            size += len(chunk)
            if size > max_bytes:
                raise too_large
            file.write(chunk)
    return size


def _header(response: httpcore.Response, name: bytes) -> str:
    for key, value in response.headers:
        if key.lower() == name:
            return value.decode("latin-1").strip()
    return ""


def _refusal(status: int) -> FetchError:
    if status in REFUSED:
        return UrlNotFound(f"The other server does not give the file (status {status}).")
    return UrlUnreachable(f"The other server answers with status {status}.")


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (httpcore.TimeoutException, TimeoutError) as error:
        raise UrlUnreachable("The other server is too slow.") from error
    except (
        httpcore.NetworkError,
        httpcore.ProtocolError,
        httpcore.UnsupportedProtocol,
        ConnectionError,
    ) as error:
        raise UrlUnreachable("The other server cannot be reached.") from error


class _JudgingBackend(httpcore.NetworkBackend):
    """Resolves, judges every address, and dials a judged one."""

    def __init__(self, *, deadline: float, allow_hosts: frozenset[str], resolve: Resolve) -> None:
        self._deadline = deadline
        self._allow_hosts = allow_hosts
        self._resolve = resolve
        self._inner = httpcore.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore.NetworkStream:
        try:
            addresses = self._resolve(host, port)
        except (OSError, UnicodeError) as error:
            raise UrlUnreachable("The URL's host name is not known.") from error
        if not addresses:
            raise UrlUnreachable("The URL's host name is not known.")
        vouched = f"{host}:{port}" in self._allow_hosts
        if not vouched and not all(is_public(address) for address in addresses):
            raise UrlNotAllowed("The URL's address is not allowed.")
        for address in addresses[:MAX_DIALS]:
            try:
                stream = self._inner.connect_tcp(
                    address,
                    port,
                    timeout=_left(self._deadline, timeout),
                    local_address=local_address,
                    socket_options=socket_options,
                )
            except (httpcore.ConnectError, httpcore.ConnectTimeout) as error:
                failure = error
            else:
                return _DeadlineStream(stream, deadline=self._deadline)
        raise failure

    def connect_unix_socket(self, *args: Any, **kwargs: Any) -> httpcore.NetworkStream:
        raise UrlNotAllowed("The URL's address is not allowed.")


class _DeadlineStream(httpcore.NetworkStream):
    """Ends a server that drips a byte at a time, in its headers too."""

    def __init__(self, stream: httpcore.NetworkStream, *, deadline: float) -> None:
        self._stream = stream
        self._deadline = deadline

    def read(self, max_bytes: int, timeout: float | None = None) -> bytes:
        return self._stream.read(max_bytes, timeout=_left(self._deadline, timeout))

    def write(self, buffer: bytes, timeout: float | None = None) -> None:
        self._stream.write(buffer, timeout=_left(self._deadline, timeout))

    def close(self) -> None:
        self._stream.close()

    def start_tls(
        self,
        ssl_context: Any,
        server_hostname: str | None = None,
        timeout: float | None = None,
    ) -> httpcore.NetworkStream:
        stream = self._stream.start_tls(ssl_context, server_hostname, timeout=_left(self._deadline, timeout))
        return _DeadlineStream(stream, deadline=self._deadline)

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)


def _left(deadline: float, timeout: float | None) -> float:
    left = deadline - time.monotonic()
    if left <= 0:
        raise httpcore.ReadTimeout("over the total deadline")
    return left if timeout is None else min(left, timeout)
