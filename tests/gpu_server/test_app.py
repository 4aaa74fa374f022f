"""The HTTP interface: who may enter, what is answered, and that one input is worked on once.

The decoder is the real one; the engine is one that can be held still, at the engine's own port.
"""

import asyncio
import errno
import json
import os
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Response
from hypothesis import given
from hypothesis import strategies as st
from starlette.types import Receive, Scope, Send

from gpu_server.decode_pool import DecodePool, Work
from gpu_server.decoding import Decoded, Limits
from gpu_server.doors import CrowdDoor
from gpu_server.engines import EngineFault
from gpu_server.readiness import Phase, Readiness
from gpu_server.settings import ServerSettings
from shared.errors import DISK_FULL, InputRefused, SettingsError
from shared.jobs import Job
from shared.outcomes import read_failure, read_outcome, record_failure
from shared.server import Said, read_answer
from shared.settings import load
from tests.fakes import MemoryStore
from tests.faults.chaos.disk import Disk
from tests.gpu_server import media
from tests.gpu_server.served import API_KEY, HELLO, KEY, Served


@pytest.fixture
def served(store: MemoryStore, decoders: DecodePool, tmp_path: Path) -> Iterator[Served]:
    served = Served(store, decoders, tmp_path)
    with served.client:
        yield served


def test_an_upload_is_answered_with_its_transcript(served: Served) -> None:
    answer = served.upload()
    assert answer.status_code == 200
    transcript = answer.json()
    assert transcript["text"].startswith("word word")
    assert transcript["segments"][0]["words"][0] == {"word": "word", "start": 0.0, "end": 0.5, "score": 0.9}
    assert served.store.objects == {}


def test_audio_in_s3_is_transcribed_to_s3(served: Served) -> None:
    etag = served.store.upload(KEY, HELLO.read_bytes())
    answer = served.from_s3(language="en", initial_prompt="hi", return_text=False)
    assert (answer.status_code, answer.json()["status"]) == (200, "written")
    job = Job(bucket=served.store.bucket, key=KEY, etag=etag)
    outcome = read_outcome(served.store, job)
    assert outcome.is_for(job)
    assert served.from_s3().json()["text"] == outcome.transcript.text  # type: ignore[union-attr]
    assert served.engine.calls == 1


def test_a_job_that_has_just_ended_is_not_done_again_for_a_caller_who_looked_before(served: Served) -> None:
    served.store.upload(KEY, HELLO.read_bytes())
    first, second = served.from_s3(new=True), served.from_s3(new=True)
    assert (first.status_code, second.status_code) == (200, 200)
    assert first.json()["text"] == second.json()["text"]
    assert served.engine.calls == 1


def test_the_last_chunk_completes_its_session(served: Served) -> None:
    served.store.upload(KEY, HELLO.read_bytes())
    served.store.upload(KEY.replace("chunk-1.webm", "metadata.json"), b'{"chunkCount": 1}')
    served.from_s3()
    assert [event.session for event in served.events] == ["s"]


def test_a_second_request_for_the_same_input_joins_the_first(served: Served) -> None:
    served.store.upload(KEY, HELLO.read_bytes())
    served.engine.released.clear()
    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(served.from_s3) for _ in range(4)]
        assert served.engine.started.acquire(timeout=20)
        assert served.readiness.in_flight == 1
        served.engine.released.set()
        assert {answer.result().status_code for answer in answers} == {200}
    assert served.engine.calls == 1


def test_a_job_that_nobody_waits_for_still_ends_in_s3(served: Served) -> None:
    etag = served.store.upload(KEY, HELLO.read_bytes())
    served.engine.released.clear()
    answer = served.from_s3(wait=False)
    assert (answer.status_code, answer.json()["status"]) == (202, "accepted")
    served.engine.released.set()
    job = Job(bucket=served.store.bucket, key=KEY, etag=etag)
    assert served.from_s3().status_code == 200  # joins, or finds it done
    assert read_outcome(served.store, job).is_for(job)
    assert served.engine.calls == 1


def test_a_full_server_says_so_at_once_and_stays_healthy_in_the_callers_eyes(served: Served) -> None:
    served.engine.released.clear()
    with ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(served.upload) for _ in range(2)]
        for _ in busy[:1]:
            assert served.engine.started.acquire(timeout=20)
        while served.readiness.in_flight < 2:
            assert not any(future.done() for future in busy)
        refused = served.upload()
        health = served.client.get("/health")
        served.engine.released.set()
        assert {future.result().status_code for future in busy} == {200}
    assert (refused.status_code, refused.headers["content-type"]) == (429, "application/problem+json")
    assert int(refused.headers["retry-after"]) >= 1
    assert (health.status_code, health.json()["reason"]) == (503, "saturated")
    assert read_answer(refused).said is Said.BUSY
    assert served.client.get("/health").status_code == 200


def test_a_job_that_wants_the_server_alone_waits_for_the_others_and_keeps_new_ones_out(served: Served) -> None:
    served.store.upload(KEY, HELLO.read_bytes())
    served.engine.released.clear()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(served.from_s3)
        assert served.engine.started.acquire(timeout=20)
        refused = served.from_s3(alone=True)  # the very same job, and yet not alone
        newcomer = served.upload()
        served.engine.released.set()
        assert first.result().status_code == 200
        served.engine.released.clear()
        served.store.upload(KEY, HELLO.read_bytes() + b" again")
        alone = pool.submit(served.from_s3, alone=True)
        assert served.engine.started.acquire(timeout=20)
        others = [served.upload(), served.from_s3(alone=True)]
        served.engine.released.set()
        assert alone.result().json()["text"]
    assert {answer.status_code for answer in (refused, newcomer, *others)} == {429}
    assert served.upload().status_code == 200


def test_a_crowd_is_told_when_to_come_again_and_others_may_look() -> None:
    async def crowd() -> None:
        leave = asyncio.Event()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            if scope["method"] == "POST":
                await leave.wait()
            await Response("done")(scope, receive, send)

        readiness = Readiness(1)
        readiness.phase = Phase.READY
        door = CrowdDoor(app, most=2, readiness=readiness)
        async with httpx.AsyncClient(transport=httpx.ASGITransport(door), base_url="http://server") as client:
            inside = [asyncio.create_task(client.post("/transcribe-s3")) for _ in range(2)]
            while (answer := await asyncio.wait_for(client.post("/transcribe-s3"), 20)).status_code != 429:
                pass
            assert answer.json()["type"] == "/problems/crowded"
            assert int(answer.headers["retry-after"]) >= 1
            assert read_answer(answer).said is Said.BUSY
            assert (await client.get("/health")).text == "done"
            assert (readiness.outside, readiness.reason) == ("saturated", None)  # who is inside may still have the slot
            leave.set()
            assert {(await one).status_code for one in inside} == {200}
            assert readiness.outside is None
            assert (await client.post("/transcribe-s3")).status_code == 200

    asyncio.run(crowd())


def test_health_does_not_promise_a_place_behind_a_crowd(served: Served) -> None:
    served.readiness.crowded = True
    health = served.client.get("/health")
    assert (health.status_code, health.json()["reason"]) == (503, "saturated")
    assert int(health.headers["retry-after"]) >= 1


@pytest.mark.parametrize("phase", [Phase.LOADING, Phase.DRAINING, Phase.BROKEN])
def test_a_server_that_would_take_no_job_is_not_healthy_but_lives(served: Served, phase: Phase) -> None:
    served.readiness.phase = phase
    assert served.client.get("/health").json()["reason"] == phase
    assert served.upload().status_code == 503
    assert served.client.get("/livez").status_code == 200


@pytest.mark.parametrize(
    ("body", "status", "type"),
    [
        (b"", 422, "media-empty"),
        (b"this is plain text, not audio " * 20, 415, "media-not-recognised"),
        (b"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1:1/a.ts\n", 415, "media-not-recognised"),
    ],
)
def test_bad_media_is_a_problem_with_words(served: Served, body: bytes, status: int, type: str) -> None:
    answer = served.post("/transcribe", files={"file": ("a.wav", body)})
    problem = answer.json()
    assert (answer.status_code, problem["type"]) == (status, f"/problems/{type}")
    assert problem["detail"]
    assert problem["status"] == status


def test_bad_media_in_s3_is_recorded_and_not_tried_again(served: Served) -> None:
    etag = served.store.upload(KEY, b"this is not audio at all " * 10)
    answers = [served.from_s3() for _ in range(2)]
    assert all(read_answer(answer).said is Said.REFUSED for answer in answers)
    failure = read_failure(served.store, Job(bucket=served.store.bucket, key=KEY, etag=etag))
    assert failure is not None
    assert failure.type == "media-not-recognised"


def no_room(source: Path, pcm: Path, limits: Limits, seconds: float) -> Decoded:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def odd_disk(source: Path, pcm: Path, limits: Limits, seconds: float) -> Decoded:
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.mark.parametrize(
    ("work", "said", "type"), [(no_room, Said.BUSY, DISK_FULL), (odd_disk, Said.FAILED, "internal")]
)
def test_a_full_disk_is_not_the_audios_fault_and_no_try(
    store: MemoryStore, tmp_path: Path, work: Work, said: Said, type: str
) -> None:
    pool = DecodePool(workers=1, limits=Limits(max_seconds=600), work=work)
    served = Served(store, pool, tmp_path)
    job = Job(bucket=store.bucket, key=KEY, etag=store.upload(KEY, HELLO.read_bytes()))
    with closing(pool), served.client:
        for answer in (served.from_s3(), served.upload()):
            read = read_answer(answer)
            assert (read.said, read.type, bool(read.retry_after)) == (said, type, said is Said.BUSY)
        assert list(store.objects) == [job.key]
        assert not list(tmp_path.iterdir())


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may mount")
@pytest.mark.parametrize("size", [100_000, 5_000_000])  # bytes; from a megabyte on the upload itself goes to the disk
def test_an_upload_for_which_there_is_no_room_may_come_again(
    served: Served, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    with Disk(tmp_path / "disk") as disk:
        monkeypatch.setattr("tempfile.tempdir", str(disk.folder))
        disk.fill()
        answer = served.upload(bytes(size))
        disk.heal()
        assert served.upload().status_code == 200
    read = read_answer(answer)
    assert (answer.status_code, read.said, read.type) == (503, Said.BUSY, DISK_FULL)


def test_a_recordings_later_chunk_waits_for_its_first_and_is_not_recorded_as_failed(served: Served) -> None:
    first, second = media.timeslices(media.recording(4.0), 2)
    later = KEY.replace("chunk-1", "chunk-2")
    etag = served.store.upload(later, second)
    assert read_answer(served.from_s3(later)).said is Said.NOT_YET
    assert read_failure(served.store, Job(bucket=served.store.bucket, key=later, etag=etag)) is None
    served.store.upload(KEY, first)
    durations = [served.from_s3(key).json()["duration"] for key in (later, KEY)]
    assert sum(durations) == pytest.approx(4.0, abs=0.01)


def test_silence_is_an_empty_transcript_with_a_reason(served: Served) -> None:
    silence = HELLO.read_bytes()[:44] + bytes(8_000)
    transcript = served.upload(silence).json()
    assert (transcript["text"], transcript["reason"]) == ("", "no-speech")


@pytest.mark.parametrize(
    ("path", "status", "type"),
    [
        ("s3://audio-bucket/users/u/audio/sessions/s/chunk-9.webm", 404, "source-missing"),
        ("s3://other-bucket/a.mp3", 403, "bucket-not-allowed"),
        ("s3://audio-bucket/photo.jpg", 422, "refused-key"),
        ("s3://audio-bucket/users/u/audio/sessions/s/metadata.json", 422, "refused-key"),
        ("/etc/passwd", 400, "invalid-s3-path"),
        ("s3://audio-bucket/", 400, "invalid-s3-path"),
    ],
)
def test_a_wrong_s3_path_is_explained(served: Served, path: str, status: int, type: str) -> None:
    answer = served.post("/transcribe-s3", json={"s3_input_path": path})
    assert (answer.status_code, answer.json()["type"]) == (status, f"/problems/{type}")


@pytest.mark.parametrize(
    "path",
    [
        "s3://audio-bucket/worker-code/x.json",
        "s3://other/transcripts/x.json",
        "s3://audio-bucket/transcripts/x.py",
        "s3://audio-bucket/transcripts/calls/old.wav.json",
        "s3://audio-bucket/transcripts/calls/old.wav.error.json",
    ],
)
def test_a_copy_goes_nowhere_but_to_transcripts(served: Served, path: str) -> None:
    served.store.upload(KEY, HELLO.read_bytes())
    assert served.from_s3(s3_output_path=path).status_code in (400, 403)
    assert list(served.store.objects) == [KEY]


def test_a_copy_of_the_transcript_can_be_asked_for(served: Served) -> None:
    served.store.upload(KEY, HELLO.read_bytes())
    for _ in range(2):
        assert served.from_s3(s3_output_path="s3://audio-bucket/transcripts/mine.json").status_code == 200
    assert json.loads(served.store.objects["transcripts/mine.json"][0])["text"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"s3_input_path": 3},
        {"s3_input_path": "s3://audio-bucket/a.mp3", "typo": 1},
        {"s3_input_path": "s3://audio-bucket/a.mp3", "wait": "no"},
        {"s3_input_path": "s3://audio-bucket/a.mp3", "word_timestamps": 0},
    ],
)
def test_a_request_that_cannot_be_understood_is_400(served: Served, body: object) -> None:
    answer = served.post("/transcribe-s3", json=body)
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/invalid-request")


def test_options_the_model_cannot_do_are_the_callers_to_change(served: Served) -> None:
    answer = served.post("/transcribe", files={"file": ("a.wav", HELLO.read_bytes())}, data={"language": "de"})
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/option-unsupported")
    assert "English only" in answer.json()["detail"]


def test_what_a_caller_wishes_in_vain_leaves_no_record_on_the_audio(served: Served) -> None:
    etag = served.store.upload(KEY, HELLO.read_bytes())
    assert served.from_s3(language="de").status_code == 400
    assert read_failure(served.store, Job(bucket=served.store.bucket, key=KEY, etag=etag)) is None
    assert served.from_s3().status_code == 200


def test_a_recorded_failure_is_tried_again_when_a_person_asks(served: Served) -> None:
    etag = served.store.upload(KEY, HELLO.read_bytes())
    job = Job(bucket=served.store.bucket, key=KEY, etag=etag)
    record_failure(served.store, job, InputRefused("an old decoder", type="media-undecodable"))
    assert served.from_s3().json()["type"] == "/problems/media-undecodable"
    assert served.from_s3(retry_failed=True).status_code == 200
    assert served.from_s3().status_code == 200


@pytest.mark.parametrize("quote", ["{}", '"{}"'])
def test_an_etag_may_be_quoted_and_an_empty_one_is_none(served: Served, quote: str) -> None:
    etag = served.store.upload(KEY, HELLO.read_bytes())
    assert served.from_s3(etag="").json()["source"]["etag"] == etag
    assert served.from_s3(etag=quote.format(etag)).json()["source"]["etag"] == etag
    assert served.from_s3(etag=quote.format("other"), return_text=False).json()["status"] == "superseded"


@pytest.mark.parametrize("etag", ["a\r\nX-Evil: 1", "a\n", "ü", "a b", 'a"b', "\x00"])
def test_an_etag_that_no_object_can_have_is_the_callers_mistake(served: Served, etag: str) -> None:
    served.store.upload(KEY, HELLO.read_bytes())
    assert served.from_s3(etag=etag).json()["type"] == "/problems/invalid-request"
    chunk = {"s3_input_path": f"s3://{served.store.bucket}/{KEY}", "etag": etag}
    assert served.post("/transcribe-session", json={"chunks": [chunk]}).json()["type"] == "/problems/invalid-request"


def test_the_version_of_the_audio_is_kept_in_its_transcript(served: Served) -> None:
    served.store.upload(KEY, HELLO.read_bytes())
    assert served.from_s3(version_id="v7").json()["source"]["version_id"] == "v7"


def test_a_broken_engine_is_nobodys_fault_but_ours(served: Served) -> None:
    served.engine.error = EngineFault("CUDA error: device lost")
    etag = served.store.upload(KEY, HELLO.read_bytes())
    answer = served.from_s3()
    assert read_answer(answer).said is Said.FAILED
    assert "CUDA" not in answer.text
    assert served.faults == [True]
    assert read_failure(served.store, Job(bucket=served.store.bucket, key=KEY, etag=etag)) is None


def test_an_unexpected_error_tells_a_correlation_id_and_nothing_else(served: Served) -> None:
    served.engine.error = RuntimeError("secret path /srv/x")
    answer = served.upload()
    assert (answer.status_code, answer.json()["type"]) == (500, "/problems/internal")
    assert "secret" not in answer.text
    assert served.readiness.in_flight == 0


def test_fetching_urls_is_off_by_default(served: Served) -> None:
    answer = served.post("/transcribe-url", json={"audio_url": "https://example.com/a.mp3"})
    assert (answer.status_code, answer.json()["type"]) == (403, "/problems/url-fetch-off")


def test_a_private_address_is_not_fetched_even_when_fetching_is_on(
    store: MemoryStore, decoders: DecodePool, tmp_path: Path
) -> None:
    served = Served(store, decoders, tmp_path, allow_url_fetch=True)
    with served.client:
        answer = served.post("/transcribe-url", json={"audio_url": "https://127.0.0.1/a.mp3"})
    assert answer.status_code == 403
    assert "127.0.0.1" not in answer.text


def test_an_upload_over_the_limit_is_413(store: MemoryStore, decoders: DecodePool, tmp_path: Path) -> None:
    served = Served(store, decoders, tmp_path, max_upload_bytes=1000)
    with served.client:
        answer = served.upload()
        assert (answer.status_code, answer.headers["content-type"]) == (413, "application/problem+json")
        assert served.post("/transcribe-s3", content=b"{" + b" " * 70_000).status_code == 413


def routes(app: FastAPI) -> list[tuple[str, str]]:
    return [(method, route.path) for route in app.routes for method in sorted(route.methods)]  # type: ignore[attr-defined]


WRONG_KEYS: list[dict[str, Any]] = [
    {},
    {"X-API-Key": "wrong"},
    {"X-API-Key": ""},
    {"X-API-Key": "schl\xfcssel".encode("latin-1")},
    {"X-API-Key": "x" * 8000},
    {"Authorization": "Bearer wrong"},
    {"Authorization": "Basic !!!"},
    {"Authorization": f"Token {API_KEY}"},
]


def test_every_route_but_health_needs_the_key(served: Served) -> None:
    bodies = set()
    for method, path in routes(served.app):
        if path in ("/health", "/livez"):
            continue
        for headers in WRONG_KEYS:
            answer = served.client.request(method, path, headers=headers)
            assert answer.status_code == 401, (method, path, headers)
            bodies.add(answer.text)
    assert len([body for body in bodies if body]) == 1  # absent and wrong look the same


@pytest.mark.parametrize(
    "headers",
    [
        {"X-API-Key": API_KEY},
        {"Authorization": f"Bearer {API_KEY}"},
        {"Authorization": "Basic bWU6Y29ycmVjdCBob3JzZQ=="},
    ],
)
def test_the_key_may_come_in_three_ways(served: Served, headers: dict[str, str]) -> None:
    for path in ("/metrics", "/docs", "/openapi.json"):
        assert served.client.get(path, headers=headers).status_code == 200


def test_two_keys_are_accepted_while_one_is_rotated(store: MemoryStore, decoders: DecodePool, tmp_path: Path) -> None:
    served = Served(store, decoders, tmp_path, api_key="old, new")
    for key in ("old", "new"):
        assert served.client.get("/metrics", headers={"X-API-Key": key}).status_code == 200


@given(st.binary(max_size=64))
def test_no_header_value_breaks_the_door(value: bytes) -> None:
    from starlette.datastructures import Headers

    from gpu_server.doors import _given_key

    for name in (b"x-api-key", b"authorization"):
        assert isinstance(_given_key(Headers(raw=[(name, value)])), bytes)


def test_an_open_door_is_refused_at_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FAST_API_HOST", "0.0.0.0")
    monkeypatch.delenv("API_KEY", raising=False)
    with pytest.raises(SettingsError, match="API_KEY"):
        load(ServerSettings)


def test_a_key_file_that_is_not_there_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY_FILE", "/nowhere/key")
    with pytest.raises(SettingsError, match=r"API_KEY_FILE .*cannot be read"):
        load(ServerSettings)


def test_a_wrong_method_is_told_the_right_one(served: Served) -> None:
    answer = served.client.get("/transcribe-s3", headers={"X-API-Key": API_KEY})
    assert (answer.status_code, answer.headers["allow"]) == (405, "POST")


def test_metrics_count_jobs_and_the_recognizers_time(served: Served) -> None:
    served.upload()
    text = served.client.get("/metrics", headers={"X-API-Key": API_KEY}).text
    assert 'transcription_jobs_total{result="written",source="upload"} 1.0' in text
    assert "recognizer_busy_seconds_total" in text


def test_the_api_describes_itself_with_examples(served: Served) -> None:
    document = served.client.get("/openapi.json", headers={"X-API-Key": API_KEY}).json()
    assert {"/transcribe", "/transcribe-s3", "/transcribe-url", "/health"} <= set(document["paths"])
    assert "s3://" in json.dumps(document["components"]["schemas"]["TranscribeS3"])


def test_the_api_says_which_operations_want_a_key_and_what_a_problem_looks_like(served: Served) -> None:
    document = served.client.get("/openapi.json", headers={"X-API-Key": API_KEY}).json()
    wants = {
        path: bool(operation["security"]) for path, ways in document["paths"].items() for operation in ways.values()
    }
    assert {path for path, wanted in wants.items() if not wanted} == {"/health"}
    full = document["paths"]["/transcribe-s3"]["post"]["responses"]["429"]
    assert full["content"]["application/problem+json"]["schema"] == {"$ref": "#/components/schemas/Problem"}
    assert "Retry-After" in full["headers"]
    assert set(document["components"]["schemas"]["Problem"]["required"]) == {"type", "title", "status", "detail"}


def test_a_server_without_keys_does_not_claim_to_want_one(store: MemoryStore, tmp_path: Path) -> None:
    served = Served(store, DecodePool(workers=1, limits=Limits()), tmp_path, auth="off")
    assert "securitySchemes" not in served.app.openapi()["components"]
