"""The stitched pass over HTTP: chunks are heard together, and every one gets its own words.

Each chunk's samples all stand for its number, which is the word that the recognizer reads there.
"""

import errno
import io
import json
import threading
import time
import wave
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpu_server.decode_pool import DecodePool
from gpu_server.engines import SAMPLE_RATE
from shared.errors import DISK_FULL, StoreUnavailable
from shared.jobs import Job
from shared.keys import Session
from shared.outcomes import read_failure, read_outcome
from shared.server import Said, read_answer
from shared.transcript import Transcript
from tests.fakes import MemoryStore
from tests.gpu_server.ears import Reader, tagged
from tests.gpu_server.served import Served

SESSION = Session("u", "s")
PATH = f"s3://audio-bucket/{SESSION.audio_prefix}"


def wav(number: int, seconds: float = 5.0) -> bytes:
    body = io.BytesIO()
    with wave.open(body, "wb") as audio:
        audio.setparams((1, 2, SAMPLE_RATE, 0, "NONE", ""))
        audio.writeframes((tagged(number, seconds) * 32768).astype("<i2").tobytes())
    return body.getvalue()


def key(index: int) -> str:
    return f"{SESSION.audio_prefix}chunk-{index}.wav"


class Recorded(Served):
    """A server whose bucket holds a session of numbered chunks."""

    def __init__(self, store: MemoryStore, decoders: DecodePool, folder: Path, **settings: Any) -> None:
        super().__init__(store, decoders, folder, recognizer=Reader(), **({"session_finish": "combine"} | settings))

    def record(self, *indices: int, seconds: float = 5.0) -> dict[int, str]:
        return {index: self.store.upload(key(index), wav(100 + index, seconds)) for index in indices}

    def hear_in_two_groups(self) -> None:
        """Chunk 1 by itself, since it was wished for in German, and 2 to 4."""
        self.record(1, 2, 3, 4)
        self.end(4)
        self.from_s3(key(1), language="de")
        for index in (2, 3, 4):
            self.from_s3(key(index))

    def end(self, count: int) -> None:
        self.store.upload(SESSION.manifest_key, json.dumps({"chunkCount": count}).encode())

    def stitch(self, **body: Any) -> Any:
        return self.post("/transcribe-session", json=body or {"s3_session_path": PATH})

    def transcript(self, index: int) -> Transcript | None:
        info = self.store.head(key(index))
        assert info
        return read_outcome(self.store, Job(bucket=self.store.bucket, key=key(index), etag=info.etag)).transcript

    def passes(self, *indices: int) -> dict[int, str | None]:
        found = {index: self.transcript(index) for index in indices}
        return {index: transcript.pass_ for index, transcript in found.items() if transcript}

    def session(self) -> Transcript:
        return Transcript.model_validate_json(self.store.objects[SESSION.output_key][0])


@pytest.fixture
def recorded(store: MemoryStore, decoders: DecodePool, tmp_path: Path) -> Iterator[Recorded]:
    recorded = Recorded(store, decoders, tmp_path)
    with recorded.client:
        yield recorded


def test_every_chunk_of_a_session_gets_its_own_words_from_one_pass(recorded: Recorded) -> None:
    recorded.record(*range(1, 8))
    recorded.end(7)
    answer = recorded.stitch()
    assert answer.status_code == 200
    receipt = answer.json()
    assert [chunk["status"] for chunk in receipt["chunks"]] == ["written"] * 7
    assert receipt["transcript"]["text"].split() == [str(100 + n) for n in range(1, 8)]
    assert [recorded.transcript(n).text for n in range(1, 8)] == [str(100 + n) for n in range(1, 8)]  # type: ignore[union-attr]
    assert recorded.passes(*range(1, 8)) == dict.fromkeys(range(1, 8), "stitched")
    assert recorded.session().text == receipt["transcript"]["text"]
    windows = [len(window.audio) / SAMPLE_RATE for batch in recorded.engine.batches for window in batch]
    assert sum(windows) == pytest.approx(35, abs=0.01)
    assert len(windows) <= 3  # not seven


@given(order=st.permutations([1, 2, 3, 4, 5]), twice=st.lists(st.integers(1, 5), max_size=3))
@settings(max_examples=8, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_order_and_duplicates_in_the_request_do_not_matter(
    order: list[int], twice: list[int], decoders: DecodePool, tmp_path: Path
) -> None:
    recorded = Recorded(MemoryStore(), decoders, tmp_path)
    with recorded.client:
        recorded.record(1, 2, 3, 4, 5)
        chunks = [{"s3_input_path": f"s3://audio-bucket/{key(index)}"} for index in [*order, *twice]]
        receipt = recorded.stitch(chunks=chunks).json()
    assert [chunk["s3_input_path"] for chunk in receipt["chunks"]] == [
        f"s3://audio-bucket/{key(n)}" for n in range(1, 6)
    ]
    assert receipt["transcript"]["text"] == "101 102 103 104 105"


def test_a_missing_chunk_is_a_gap_that_no_window_crosses(recorded: Recorded) -> None:
    recorded.record(1, 2, 4, 5)
    receipt = recorded.stitch().json()
    transcript = Transcript.model_validate(receipt["transcript"])
    assert transcript.text == "101 102 104 105"
    assert [(gap.start, gap.end, gap.reason.partition(":")[0]) for gap in transcript.gaps] == [
        (10.0, 15.0, "chunk-missing")
    ]
    for batch in recorded.engine.batches:
        for window in batch:
            numbers = sorted(set(np.rint(window.audio * 1000).astype(int).tolist()))
            assert all(b == a + 1 for a, b in pairwise(numbers))


def test_a_chunk_counts_as_stitched_only_when_both_sides_were_heard(recorded: Recorded) -> None:
    recorded.record(1, 2, 3)
    recorded.stitch()
    assert recorded.passes(1, 2, 3) == {1: "stitched", 2: "stitched", 3: "live"}  # more may come
    recorded.record(4)
    recorded.end(4)
    recorded.stitch()
    assert recorded.passes(1, 2, 3, 4) == dict.fromkeys(range(1, 5), "stitched")


def test_nothing_is_looked_for_beyond_the_last_chunk(recorded: Recorded) -> None:
    recorded.record(1, 2, 3)
    recorded.stitch()
    assert ("head", key(4)) in recorded.store.trace
    recorded.store.trace.clear()
    recorded.end(3)
    recorded.stitch()
    assert recorded.passes(1, 2, 3) == dict.fromkeys((1, 2, 3), "stitched")
    assert not [name for _, name in recorded.store.trace if "4" in name.rpartition("/")[2]]


def test_a_chunk_beyond_the_last_is_heard_once(recorded: Recorded) -> None:
    recorded.record(1, 2, 3)
    recorded.end(2)
    assert [chunk["status"] for chunk in recorded.stitch().json()["chunks"]] == ["written"] * 3
    assert recorded.passes(1, 2, 3) == {1: "stitched", 2: "stitched", 3: "live"}
    recorded.engine.batches.clear()
    assert [chunk["status"] for chunk in recorded.stitch().json()["chunks"]] == ["already_done"] * 3
    assert recorded.engine.batches == []
    recorded.end(3)
    recorded.stitch()
    assert recorded.passes(1, 2, 3) == dict.fromkeys((1, 2, 3), "stitched")


def test_chunks_beside_those_that_were_asked_for_are_heard_but_not_written(recorded: Recorded) -> None:
    recorded.record(1, 2, 3, 4, 5)
    recorded.stitch(chunks=[{"s3_input_path": f"s3://audio-bucket/{key(3)}"}])
    assert recorded.passes(1, 2, 3, 4, 5) == {3: "stitched"}
    assert recorded.transcript(3).text == "103"  # type: ignore[union-attr]


def test_what_came_chunk_by_chunk_is_bettered_and_never_the_other_way_round(recorded: Recorded) -> None:
    recorded.record(1, 2, 3)
    recorded.end(3)
    for index in (1, 2, 3):
        assert recorded.from_s3(key(index), language="en").status_code == 200
    assert recorded.passes(1, 2, 3) == dict.fromkeys((1, 2, 3), "live")
    live = recorded.session()
    recorded.stitch()
    assert recorded.passes(1, 2, 3) == dict.fromkeys((1, 2, 3), "stitched")
    better = recorded.session()
    assert better.text == live.text
    assert better.source != live.source  # made from the new transcripts
    assert recorded.transcript(1).options.language == "en"  # type: ignore[union-attr]
    batches = len(recorded.engine.batches)
    assert recorded.from_s3(key(2)).json()["pass"] == "stitched"
    assert [chunk["status"] for chunk in recorded.stitch().json()["chunks"]] == ["already_done"] * 3
    assert len(recorded.engine.batches) == batches


def test_a_complete_session_is_bettered_by_the_server_itself(
    store: MemoryStore, decoders: DecodePool, tmp_path: Path
) -> None:
    recorded = Recorded(store, decoders, tmp_path, session_finish="restitch")
    with recorded.client:
        recorded.record(1, 2, 3)
        recorded.end(3)
        for index in (1, 2, 3):
            assert recorded.from_s3(key(index)).status_code == 200
        recorded.stitch()  # joins the pass that runs, or finds it done
        assert recorded.passes(1, 2, 3) == dict.fromkeys((1, 2, 3), "stitched")
        assert len(recorded.events) == 2  # the live version first, then the better one


def test_a_chunk_that_cannot_be_decoded_fails_alone_and_its_session_is_complete(recorded: Recorded) -> None:
    recorded.record(1, 3)
    etag = recorded.store.upload(key(2), b"this is not audio at all " * 10)
    recorded.end(3)
    receipt = recorded.stitch().json()
    assert [(chunk["status"], chunk.get("type")) for chunk in receipt["chunks"]] == [
        ("written", None),
        ("failed", "media-not-recognised"),
        ("written", None),
    ]
    failure = read_failure(recorded.store, Job(bucket=recorded.store.bucket, key=key(2), etag=etag))
    assert failure is not None
    assert recorded.session().text == "101 103"
    assert recorded.passes(1, 3) == {1: "stitched", 3: "stitched"}
    assert [chunk["status"] for chunk in recorded.stitch().json()["chunks"]][1] == "already_failed"


def test_audio_that_was_overwritten_meanwhile_is_left_to_its_own_event(recorded: Recorded) -> None:
    old = recorded.record(1, 2)
    recorded.store.upload(key(2), wav(500))
    chunks = [{"s3_input_path": f"s3://audio-bucket/{key(n)}", "etag": old[n]} for n in (1, 2)]
    assert [chunk["status"] for chunk in recorded.stitch(chunks=chunks).json()["chunks"]] == ["written", "superseded"]
    assert recorded.transcript(2) is None


def test_a_stub_between_chunks_is_an_empty_transcript_and_no_gap_in_the_pass(recorded: Recorded) -> None:
    recorded.record(1, 3)
    recorded.store.upload(key(2), bytes(range(1, 60)))
    recorded.end(3)
    recorded.stitch()
    assert (recorded.transcript(2).text, recorded.transcript(2).reason) == ("", "header-only")  # type: ignore[union-attr]
    assert recorded.session().text == "101 103"


def test_a_pass_that_nobody_waits_for_still_ends_in_s3(recorded: Recorded) -> None:
    recorded.record(1, 2)
    answer = recorded.stitch(s3_session_path=PATH, wait=False)
    assert (answer.status_code, answer.json()["status"]) == (202, "accepted")
    recorded.stitch()
    assert [recorded.transcript(n).text for n in (1, 2)] == ["101", "102"]  # type: ignore[union-attr]


def test_context_is_heard_and_its_words_are_left_out(store: MemoryStore, decoders: DecodePool, tmp_path: Path) -> None:
    recorded = Recorded(store, decoders, tmp_path, live_context=7)
    with recorded.client:
        recorded.record(1, 2, 3)
        assert recorded.from_s3(key(3)).json()["text"] == "103"
        assert recorded.from_s3(key(2)).json()["text"] == "102"
    heard = [len(window.audio) / SAMPLE_RATE for batch in recorded.engine.batches for window in batch]
    assert heard == pytest.approx([12, 10], abs=0.01)


@pytest.mark.parametrize(
    ("body", "status"),
    [
        ({"chunks": []}, 400),
        ({"s3_session_path": PATH, "chunks": [{"s3_input_path": PATH + "chunk-1.wav"}]}, 400),
        ({"s3_session_path": "s3://audio-bucket/users/u/audio/"}, 400),
        ({"s3_session_path": "s3://other-bucket/users/u/audio/sessions/s/"}, 400),
        ({"s3_session_path": "s3://audio-bucket/users/u/audio/sessions/nobody/"}, 404),
        ({"chunks": [{"s3_input_path": "s3://audio-bucket/a.wav"}]}, 400),
        ({"chunks": [{"s3_input_path": PATH + "chunk-9.wav"}]}, 404),
        (
            {
                "chunks": [
                    {"s3_input_path": PATH + "chunk-1.wav", "etag": "a"},
                    {"s3_input_path": PATH.replace("/s/", "/t/") + "chunk-2.wav", "etag": "a"},
                ]
            },
            400,
        ),
    ],
)
def test_a_request_for_no_session_is_explained(recorded: Recorded, body: dict[str, Any], status: int) -> None:
    answer = recorded.post("/transcribe-session", json=body)
    assert (answer.status_code, answer.headers["content-type"]) == (status, "application/problem+json")


def test_wishes_the_model_cannot_fulfil_leave_no_record(recorded: Recorded) -> None:
    etags = recorded.record(1, 2)
    answer = recorded.stitch(s3_session_path=PATH, language="xx")
    assert (answer.status_code, answer.json()["type"]) == (400, "/problems/language-unknown")
    assert read_answer(answer).said is not Said.REFUSED
    for index, etag in etags.items():
        assert read_failure(recorded.store, Job(bucket=recorded.store.bucket, key=key(index), etag=etag)) is None


def test_the_neighbour_of_a_chunk_whose_audio_expired_is_stitched_all_the_same(recorded: Recorded) -> None:
    """Nobody can hear more than is there: else every batch run would hear the session again."""
    recorded.record(1, 2, 3)
    recorded.end(3)
    for index in (1, 2, 3):
        recorded.from_s3(key(index))
    recorded.store.delete(key(2))
    recorded.stitch()
    assert recorded.passes(1, 3) == {1: "stitched", 3: "stitched"}


def test_trouble_with_one_group_leaves_the_others_their_transcripts(recorded: Recorded) -> None:
    """Chunk 1 was heard in German; the model of today knows English and German, and nothing of Welsh."""
    recorded.hear_in_two_groups()
    recorded.engine.languages = frozenset({"en"})
    assert recorded.stitch().status_code == 400
    assert recorded.passes(1, 2, 3, 4) == {1: "live", 2: "stitched", 3: "stitched", 4: "stitched"}


def test_a_disk_without_room_for_one_group_leaves_the_others_their_transcripts(recorded: Recorded) -> None:
    recorded.hear_in_two_groups()
    errors = iter([OSError(errno.ENOSPC, "no room")])

    def hook(call: str, at: str, moment: str) -> None:
        if (call, at, moment) == ("download", key(1), "before") and (error := next(errors, None)):
            raise error

    recorded.store.hook = hook
    assert recorded.stitch().json()["type"] == f"/problems/{DISK_FULL}"
    assert recorded.passes(1, 2, 3, 4) == {1: "live", 2: "stitched", 3: "stitched", 4: "stitched"}


def test_a_pass_that_fails_keeps_its_folder_while_anything_of_it_runs(recorded: Recorded, tmp_path: Path) -> None:
    """Who still writes there would make another error of this one, and leave files behind."""
    recorded.record(1, 2, 3)
    pulled_away = []
    another = threading.Event()

    def hook(call: str, at: str, moment: str) -> None:
        if (call, moment) == ("download", "before"):
            if at == key(1):
                assert another.wait(20)
                raise StoreUnavailable("S3 is away")
            another.set()
            deadline = time.monotonic() + 0.3
            while any(tmp_path.iterdir()) and time.monotonic() < deadline:
                time.sleep(0.01)
            pulled_away.append(not any(tmp_path.iterdir()))

    recorded.store.hook = hook
    assert recorded.stitch().json()["type"] == "/problems/store-unavailable"
    assert pulled_away
    assert not any(pulled_away)
    assert not any(tmp_path.iterdir())
