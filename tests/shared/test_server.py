"""The GPU server as its callers see it: what its answers mean, and that none of them can hold or drown a caller."""

import json
import socket
import threading
from collections.abc import AsyncIterator, Callable, Iterator

import httpx
import pytest
from prometheus_client import generate_latest

from gpu_server.metrics import ServerMetrics
from shared.jobs import Job, Options
from shared.keys import Session
from shared.server import SESSION_CHUNKS, Answer, Health, Limits, Said, ServerClient, Work, read_answer, read_work

JOB = Job(bucket="audio-bucket", key="a b+ü.mp3", etag="e1", options=Options(language="de"))
LIMITS = Limits(connect=1, total=1)


def problem(status: int, type: str, **headers: str) -> httpx.Response:
    document = {"type": f"/problems/{type}", "title": "T", "status": status, "detail": "words"}
    content_type = {"Content-Type": "application/problem+json"}
    return httpx.Response(status, content=json.dumps(document), headers=content_type | headers)


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (httpx.Response(200, json={}), Answer(Said.DONE, 200)),
        (httpx.Response(202, json={}), Answer(Said.ACCEPTED, 202)),
        (problem(415, "media-not-recognised"), Answer(Said.REFUSED, 415, "media-not-recognised", "words")),
        (problem(404, "source-missing"), Answer(Said.REFUSED, 404, "source-missing", "words")),
        (problem(422, "media-header-missing"), Answer(Said.NOT_YET, 422, "media-header-missing", "words")),
        (problem(401, "unauthorized"), Answer(Said.UNAUTHORIZED, 401, "unauthorized", "words")),
        (problem(403, "bucket-not-allowed"), Answer(Said.UNAUTHORIZED, 403, "bucket-not-allowed", "words")),
        (problem(429, "saturated", **{"Retry-After": "7"}), Answer(Said.BUSY, 429, "saturated", "words", 7.0)),
        (problem(503, "draining"), Answer(Said.BUSY, 503, "draining", "words")),
        (problem(500, "internal"), Answer(Said.FAILED, 500, "internal", "words")),
        (problem(504, "timeout"), Answer(Said.FAILED, 504, "timeout", "words")),
        (problem(502, "store-unavailable"), Answer(Said.UNTRIED, 502, "store-unavailable", "words")),
    ],
)
def test_every_answer_has_a_meaning(response: httpx.Response, expected: Answer) -> None:
    assert read_answer(response) == expected


@pytest.mark.parametrize(
    "response",
    [
        httpx.Response(404, content=b""),
        httpx.Response(404, content=b"<html>not found</html>"),
        httpx.Response(404, json={"detail": "Not Found"}),  # another FastAPI application
        problem(404, "http"),  # ours, of a version without this route
        problem(400, "invalid-request"),  # of a version that does not know a field
        problem(400, "option-unsupported"),  # a wish, not the audio
    ],
)
def test_an_answer_that_is_not_about_the_audio_never_blames_it(response: httpx.Response) -> None:
    assert read_answer(response).said is Said.FAILED


def client(handle: Callable[[httpx.Request], httpx.Response]) -> ServerClient:
    return ServerClient("http://server/", api_key="key", transport=httpx.MockTransport(handle))


def test_a_job_is_posted_with_all_the_server_needs() -> None:
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={})

    assert client(handle).transcribe(JOB, LIMITS, route="queue").said is Said.DONE
    assert seen[0].url == "http://server/transcribe-s3"
    assert seen[0].headers["x-api-key"] == "key"
    assert json.loads(seen[0].content) == {
        "s3_input_path": "s3://audio-bucket/a b+ü.mp3",
        "etag": "e1",
        "route": "queue",
        "return_text": False,
        "wait": True,
        "language": "de",
    }


def test_chunks_of_a_session_are_posted_together_with_the_options_they_share() -> None:
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(200, json={})

    other = JOB.model_copy(update={"key": "c.mp3", "version_id": "v"})
    assert client(handle).transcribe_session([JOB, other], LIMITS, route="queue").said is Said.DONE
    assert seen[0].url == "http://server/transcribe-session"
    assert json.loads(seen[0].content) == {
        "chunks": [
            {"s3_input_path": "s3://audio-bucket/a b+ü.mp3", "etag": "e1"},
            {"s3_input_path": "s3://audio-bucket/c.mp3", "etag": "e1", "version_id": "v"},
        ],
        "route": "queue",
        "return_text": False,
        "wait": True,
        "language": "de",
    }


def test_a_whole_session_is_posted_by_its_path() -> None:
    seen: list[httpx.Request] = []

    def handle(request: httpx.Request) -> httpx.Response:
        seen.append(request)
        return httpx.Response(202, json={})

    path = Session("u", "s").path_in("audio-bucket")
    assert client(handle).transcribe_session(path, LIMITS, route="direct", wait=False).said is Said.ACCEPTED
    assert json.loads(seen[0].content) == {
        "s3_session_path": "s3://audio-bucket/users/u/audio/sessions/s/",
        "route": "direct",
        "return_text": False,
        "wait": False,
    }


def test_the_longest_receipt_of_a_session_is_read_to_its_end() -> None:
    chunk = {"s3_input_path": "s3://audio-bucket/" + "k" * 1024, "status": "failed", "type": "t", "message": "m" * 500}
    ended: list[bool] = []

    async def drip() -> AsyncIterator[bytes]:
        yield json.dumps({"chunks": [chunk] * SESSION_CHUNKS}).encode()
        ended.append(True)

    answer = client(lambda request: httpx.Response(200, content=drip())).transcribe_session(
        [JOB], LIMITS, route="queue"
    )
    assert answer.said is Said.DONE
    assert ended == [True]


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        (httpx.Response(200, json={"status": "ready"}), Health(ready=True, alive=True)),
        (httpx.Response(503, json={"reason": "saturated"}), Health(ready=False, alive=True, reason="saturated")),
        (httpx.Response(503, json={"reason": "loading"}), Health(ready=False, alive=False, reason="loading")),
        (httpx.Response(502, text="bad gateway"), Health(ready=False, alive=False, reason="HTTP 502")),
    ],
)
def test_health_tells_ready_busy_and_dead_apart(response: httpx.Response, expected: Health) -> None:
    assert client(lambda request: response).health(LIMITS) == expected


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (httpx.ConnectError("refused"), Said.UNTRIED),
        (httpx.ConnectTimeout("nobody there"), Said.UNTRIED),
        (httpx.ReadError("reset"), Said.FAILED),
        (httpx.ReadTimeout("silent"), Said.FAILED),
        (httpx.RemoteProtocolError("closed"), Said.FAILED),
    ],
)
def test_no_transport_error_escapes_and_whether_the_job_was_taken_is_told(error: httpx.HTTPError, said: Said) -> None:
    def fail(request: httpx.Request) -> httpx.Response:
        raise error

    assert client(fail).transcribe(JOB, LIMITS, route="direct").said is said
    assert not client(fail).health(LIMITS).alive


@pytest.fixture
def misbehaving() -> Iterator[Callable[[bytes, bytes], str]]:
    """A real server that sends `head`, then `drip` again and again, for as long as anyone listens."""
    listener = socket.create_server(("127.0.0.1", 0))
    done = threading.Event()

    def serve(head: bytes, drip: bytes) -> None:
        connection, _ = listener.accept()
        with connection:
            connection.recv(65536)
            try:
                connection.sendall(head)
                while drip and not done.wait(0.001):
                    connection.sendall(drip)
                done.wait(20)
            except OSError:
                return

    threads: list[threading.Thread] = []

    def start(head: bytes, drip: bytes) -> str:
        threads.append(threading.Thread(target=serve, args=(head, drip), daemon=True))
        threads[-1].start()
        return f"http://127.0.0.1:{listener.getsockname()[1]}"

    yield start
    done.set()
    listener.close()
    for thread in threads:
        thread.join(timeout=20)


@pytest.mark.parametrize(
    ("head", "drip"),
    [
        (b"", b""),  # accepts, never answers
        (b"HTTP/1.1 200 OK\r\n", b"x-a: b\r\n"),  # headers without end
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\nx\r\n"),  # a body drop by drop
    ],
)
def test_a_server_that_never_ends_its_answer_is_left(
    misbehaving: Callable[[bytes, bytes], str], head: bytes, drip: bytes
) -> None:
    answer = ServerClient(misbehaving(head, drip)).transcribe(JOB, Limits(connect=1, total=0.5), route="direct")
    assert answer.said is Said.FAILED
    assert "Timeout" in answer.message  # and neither the server nor a limit in bytes was first


def test_a_body_without_end_is_cut_off(misbehaving: Callable[[bytes, bytes], str]) -> None:
    head = b"HTTP/1.1 503 Busy\r\nTransfer-Encoding: chunked\r\n\r\n"
    url = misbehaving(head, b"4000\r\n" + b"x" * 0x4000 + b"\r\n")
    assert ServerClient(url).transcribe(JOB, Limits(connect=1, total=10), route="direct").said is Said.BUSY


def test_a_server_says_what_it_has_done_and_does() -> None:
    metrics = ServerMetrics()
    assert read_work(generate_latest(metrics.registry).decode()) == Work(ended=0, in_flight=0)
    metrics.jobs.labels("s3", "written").inc(3)
    metrics.jobs.labels("upload", "error").inc()
    metrics.in_flight.inc(2)
    page = generate_latest(metrics.registry)
    transport = httpx.MockTransport(lambda request: httpx.Response(200, content=page))
    assert ServerClient("http://server", transport=transport).work(LIMITS) == Work(ended=4, in_flight=2)


@pytest.mark.parametrize("response", [httpx.Response(401), httpx.Response(200, content=b"another's page")])
def test_a_server_that_does_not_say_what_it_does_is_no_error(response: httpx.Response) -> None:
    transport = httpx.MockTransport(lambda request: response)
    assert ServerClient("http://server", transport=transport).work(LIMITS) is None
