"""The server as a process, with each engine: real weights, real speech, through HTTP."""

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import jiwer
import pytest

from cli.demo import NORMALIZE
from gpu_server.__main__ import NICE
from infra.local import processes, stack
from tests.integration.conftest import DATA
from tests.patience import PATIENCE_SECONDS

pytestmark = pytest.mark.integration
START_SECONDS = 120


@dataclass
class Server:
    url: str
    process: subprocess.Popen[bytes]

    def transcribe(self, path: Path, **fields: str) -> httpx.Response:
        with path.open("rb") as file:
            return httpx.post(f"{self.url}/transcribe", files={"file": file}, data=fields, timeout=PATIENCE_SECONDS)

    def health(self) -> httpx.Response:
        return httpx.get(f"{self.url}/health", timeout=PATIENCE_SECONDS)


@pytest.fixture(scope="module", params=["faster-whisper", "whisperx"])
def server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    port = processes.free_port(0)
    environment = {**stack.without_aws(os.environ), "ENGINE": request.param, "FAST_API_PORT": str(port)}
    log = tmp_path_factory.mktemp("server") / "log"
    process = processes.start([sys.executable, "-m", "gpu_server"], environment=environment, log=log)
    server = Server(f"http://127.0.0.1:{port}", process)
    try:
        deadline = time.monotonic() + START_SECONDS
        while not _ready(server):
            assert process.poll() is None, processes.tail(log)
            assert time.monotonic() < deadline, "not ready in time"
            time.sleep(processes.POLL_SECONDS)
        yield server
    finally:
        process.terminate()
        try:
            assert process.wait(PATIENCE_SECONDS) == 0, processes.tail(log)
        finally:
            process.kill()


def _ready(server: Server) -> bool:
    try:
        return server.health().status_code == 200
    except httpx.TransportError:
        return False


@pytest.mark.parametrize("sample", ["session-a", "session-b"])
def test_real_speech_is_understood_with_a_time_for_every_word(server: Server, sample: str) -> None:
    answer = server.transcribe(DATA / sample / "whole.opus")
    assert answer.status_code == 200, answer.text
    transcript: dict[str, Any] = answer.json()
    said = " ".join((DATA / sample / "text.txt").read_text().split())
    assert jiwer.wer(said, transcript["text"], NORMALIZE, NORMALIZE) <= 0.05
    words = [word for segment in transcript["segments"] for word in segment["words"]]
    assert " ".join(word["word"] for word in words).split() == transcript["text"].split()
    times = [time for word in words for time in (word["start"], word["end"])]
    assert times == sorted(times)
    assert times[-1] <= transcript["duration"]
    assert 45 < transcript["duration"] < 48
    assert transcript["alignment"] == "attention"
    assert transcript["model"] == "tiny.en"


def words(answer: httpx.Response) -> str:
    """Without the punctuation, which a batch's padding may change."""
    return " ".join(re.findall(r"[a-z']+", answer.json()["text"].lower()))


def test_requests_in_parallel_get_their_own_words(server: Server) -> None:
    chunks = [DATA / sample / f"chunk-00{number}.webm" for number in (1, 2) for sample in ("session-a", "session-b")]
    alone = [words(server.transcribe(chunk)) for chunk in chunks]
    with ThreadPoolExecutor(len(chunks)) as pool:
        together = list(pool.map(lambda chunk: words(server.transcribe(chunk)), chunks))
    assert together == alone
    assert len(set(alone)) == len(chunks)


def test_health_answers_while_the_recognizer_works(server: Server) -> None:
    with ThreadPoolExecutor(1) as pool:
        work = pool.submit(server.transcribe, DATA / "session-a/whole.opus")
        answers = 0
        while not work.done():
            health = server.health()
            assert health.status_code == 200
            answers += health.json()["in_flight"]
    assert answers > 0
    assert work.result().status_code == 200


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere threads have no priority of their own")
def test_who_answers_comes_before_who_listens(server: Server) -> None:
    assert server.transcribe(DATA / "hello.wav").status_code == 200
    loop = server.process.pid
    threads = [int(path.name) for path in Path(f"/proc/{loop}/task").iterdir()]
    nice = {thread: os.getpriority(os.PRIO_PROCESS, thread) for thread in threads}
    assert nice[loop] == min(nice.values())
    assert sorted(set(nice.values())) == [nice[loop], nice[loop] + NICE]


def test_a_prompt_and_a_language_are_taken_and_a_wrong_language_is_explained(server: Server) -> None:
    hello = DATA / "hello.wav"
    assert server.transcribe(hello, language="en", initial_prompt="Greetings.", hotwords="hello").status_code == 200
    wrong = server.transcribe(hello, language="de")
    assert wrong.status_code == 400
    assert "English" in wrong.json()["detail"]
