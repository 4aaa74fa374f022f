"""Backfill: exactly what has no outcome is queued, once, in bounded memory, going on where it was killed."""

import csv
import gzip
import hashlib
import io
import json
import random
import tracemalloc
from collections.abc import Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from urllib.parse import quote_plus

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batch_worker.backfill import Bookmark, Entry, Inventoried, Listing, Pace, Progress, Source, backfill
from batch_worker.inventory import BadInventory, read_inventory
from batch_worker.unfinished import pages, unfinished
from shared.combine import Combiner
from shared.errors import InputRefused
from shared.jobs import Job
from shared.keys import Session
from shared.outcomes import record_failure, standing
from shared.queues import MAX_BATCH
from tests.fakes import MemoryStore, transcript_for

SCHEMA = "Bucket, Key, VersionId, IsLatest, IsDeleteMarker, Size, LastModifiedDate, ETag"
ODD_KEYS = ("calls/a b.mp3", "calls/a+b.mp3", "calls/100%25.mp3", "calls/ü \N{GRINNING FACE}.mp3", 'calls/"q",x.mp3')


def job_of(store: MemoryStore, key: str) -> Job:
    info = store.objects[key][1]
    return Job(bucket=store.bucket, key=key, etag=info.etag)


def upload(store: MemoryStore, key: str) -> Job:
    store.upload(key, key.encode())
    return job_of(store, key)


def transcribe(store: MemoryStore, job: Job) -> None:
    store.upload(job.output_key, transcript_for(job).to_json())


def chunk_key(session: str, number: int, user: str = "u") -> str:
    return f"users/{user}/audio/sessions/{session}/chunk-{number}.webm"


def run(store: MemoryStore, source: Source, start: Progress | None = None, most: int | None = None) -> list[str]:
    """The keys that are sent."""
    sent: list[str] = []
    backfill(
        store,
        source,
        start or Progress(source=source.name),
        send=lambda jobs: sent.extend(job.key for job in jobs),
        save=lambda progress: None,
        most=most,
    )
    return sent


# What is unfinished -------------------------------------------------------------------------------------------------

REWRITTEN, SPOILT = "rewritten after its session", "its transcript spoilt after its session"
FATES = ("open", "transcribed", "failed", "outdated", REWRITTEN, SPOILT, "refused", "not audio")


def befall(store: MemoryStore, session: str, fates: Sequence[str]) -> None:
    """A session, combined if it is complete, in which each chunk has its fate."""
    jobs = []
    for number, fate in enumerate(fates, 1):
        key = chunk_key(session, number)
        match fate:
            case "refused":
                upload(store, chunk_key(session, 200_000 + number))
                continue
            case "not audio":
                store.upload(f"users/u/audio/sessions/{session}/cover-{number}.png")
                continue
        job = upload(store, key)
        jobs.append(job)
        if fate in ("transcribed", REWRITTEN, SPOILT):
            transcribe(store, job)
        elif fate == "failed":
            record_failure(store, job, InputRefused("no sound"))
        elif fate == "outdated":
            transcribe(store, job)
            store.upload(key, b"recorded once more")
    store.upload(Session("u", session).manifest_key, json.dumps({"chunkCount": max(1, len(fates))}).encode())
    Combiner(store, lambda event: None).combine(Session("u", session))
    for number, fate in enumerate(fates, 1):
        if fate == REWRITTEN:
            store.upload(chunk_key(session, number), b"once more")
        elif fate == SPOILT:
            store.upload(job_of(store, chunk_key(session, number)).output_key, b"nonsense")


@settings(max_examples=60)
@given(st.lists(st.lists(st.sampled_from(FATES), max_size=6), max_size=4), st.lists(st.booleans(), max_size=4))
def test_what_is_sent_is_what_s3_says_is_open(sessions: list[list[str]], files: list[bool]) -> None:
    store = MemoryStore()
    for number, fates in enumerate(sessions):
        befall(store, f"s{number}", fates)
    for number, done in enumerate(files):
        job = upload(store, f"calls/{number}.mp3")
        if done:
            transcribe(store, job)
    audio = [key for key in sorted(store.objects) if key.endswith((".webm", ".mp3")) and "chunk-200" not in key]
    open_keys = [key for key in audio if standing(store, job_of(store, key)).is_open]
    assert run(store, Listing(store)) == open_keys


def test_an_archive_that_was_never_transcribed_costs_a_request_a_session(store: MemoryStore) -> None:
    infos = [store.objects[upload(store, chunk_key("s", number)).key][1] for number in range(1, 501)]
    store.trace.clear()
    assert len(unfinished(store, infos)) == 500
    assert store.trace == [("list", Session("u", "s").transcript_prefix)]


def test_a_session_that_is_done_costs_two(store: MemoryStore) -> None:
    befall(store, "s", ["transcribed"] * 100)
    infos = [store.objects[chunk_key("s", number)][1] for number in range(1, 101)]
    store.trace.clear()
    assert unfinished(store, infos) == []
    assert len(store.trace) == 2


# Pages --------------------------------------------------------------------------------------------------------------


@given(st.lists(st.tuples(st.sampled_from("ab"), st.integers(1, 9)), max_size=40), st.integers(1, 5))
def test_pages_keep_the_order_and_part_no_session(chunks: list[tuple[str, int]], size: int) -> None:
    keys = sorted(chunk_key(session, number) for session, number in chunks) + ["calls/a.mp3"] * size * 2
    cut = list(pages(keys, str, size=size))
    assert [key for page in cut for key in page] == keys
    for page, following in pairwise(cut):
        assert len(page) >= size
        assert page[-1].rpartition("/")[0] != following[0].rpartition("/")[0] or following[0] == "calls/a.mp3"
    assert all(len(page) == size for page in cut if page[0] == "calls/a.mp3" and page is not cut[-1])


class Endless:
    """A million keys, made as they are asked for."""

    name = "a million"

    def __init__(self, store: MemoryStore, count: int) -> None:
        self._store = store
        self._count = count

    def entries(self, after: str) -> Iterator[Entry]:
        etag = next(iter(self._store.objects.values()))[1]
        for number in range(self._count):
            key = chunk_key(f"{number // 500:06}", number % 500 + 1)
            yield Entry(key, key, type(etag)(key, "etag", 1000, etag.last_modified))


def peak_of(count: int) -> int:
    store = MemoryStore()
    upload(store, "calls/a.mp3")
    store.trace = _Forgetful()
    tracemalloc.start()
    sent = 0

    def send(jobs: Sequence[Job]) -> None:
        nonlocal sent
        sent += len(jobs)

    ended = backfill(store, Endless(store, count), Progress(source="x"), send=send, save=lambda progress: None)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert ended
    assert sent == count
    return peak


class _Forgetful(list[tuple[str, str]]):
    def append(self, call: tuple[str, str]) -> None:
        """What is counted here is the backfill's memory."""


def test_memory_does_not_grow_with_the_archive() -> None:
    """Ten times as much takes the same: so do a million."""
    assert peak_of(30_000) < 1.2 * peak_of(3_000) + 1_000_000


# Going on -----------------------------------------------------------------------------------------------------------


class Killed(Exception):
    """The process ends here."""


@settings(max_examples=60)
@given(st.integers(1, 60), st.lists(st.tuples(st.booleans(), st.integers(0, 40)), max_size=6))
def test_killed_and_run_again_it_sends_everything_and_next_to_nothing_twice(
    count: int, kills: list[tuple[bool, int]]
) -> None:
    """`kills`: after so many calls of `send` or `save`; a kill between the two is the worst there is."""
    store = MemoryStore()
    keys = sorted(upload(store, chunk_key(f"s{number // 7}", number % 7 + 1)).key for number in range(count))
    source = Listing(store)
    bookmark = Progress(source=source.name)
    sent: list[str] = []
    for in_save, after in [*kills, (False, 10_000)]:
        left = [after]

        def count_down(left: list[int] = left) -> None:
            left[0] -= 1
            if left[0] < 0:
                raise Killed

        def send(jobs: Sequence[Job], in_save: bool = in_save) -> None:
            if not in_save:
                count_down()
            sent.extend(job.key for job in jobs)

        def save(progress: Progress, in_save: bool = in_save) -> None:
            nonlocal bookmark
            if in_save:
                count_down()
            bookmark = progress

        try:
            assert backfill(store, source, bookmark, send=send, save=save)
        except Killed:
            continue
        break
    assert set(sent) == set(keys)
    assert len(sent) <= len(keys) + MAX_BATCH * len(kills)
    assert bookmark.queued == len(keys)
    assert bookmark.looked_at == len(keys)


def test_the_bookmark_outlives_the_process_and_is_of_one_source(store: MemoryStore, tmp_path: Path) -> None:
    here, there = (Bookmark(tmp_path / "new", Listing(store, prefix)) for prefix in ("users/", "calls/"))
    assert here.load() == Progress(source=f"s3://{store.bucket}/users/")
    here.save(Progress(source="x", after="users/k", looked_at=3, queued=2))
    assert Bookmark(tmp_path / "new", Listing(store, "users/")).load().after == "users/k"
    assert there.load().after == ""
    here.remove()
    assert here.load().after == ""


def test_a_night_may_take_a_part_and_the_next_night_goes_on(store: MemoryStore) -> None:
    keys = sorted(upload(store, f"calls/{number:03}.mp3").key for number in range(35))
    source, bookmark, sent = Listing(store), Progress(source="x"), []
    for expected in (False, False, True):

        def save(progress: Progress) -> None:
            nonlocal bookmark
            bookmark = progress

        def send(jobs: Sequence[Job]) -> None:
            sent.append([job.key for job in jobs])

        assert backfill(store, source, bookmark, send=send, save=save, most=15) is expected
    assert [len(batch) for batch in sent] == [10, 5, 10, 5, 5]
    assert [key for batch in sent for key in batch] == keys


def test_a_pace_is_kept_on_average_and_nobody_waits_without_need() -> None:
    now, slept = [0.0], [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds
        slept[0] += seconds

    pace = Pace(20.0, clock=lambda: now[0], sleep=sleep)
    for _ in range(10):
        pace.wait_for(10)
    assert slept[0] == pytest.approx(4.5)  # the first ten need not wait
    now[0] += 60
    pace.wait_for(10)
    assert slept[0] == pytest.approx(4.5)


# Inventories --------------------------------------------------------------------------------------------------------


def deliver(
    store: MemoryStore,
    rows: list[list[list[str]]],
    *,
    of: str = "audio-bucket",
    **changes: object,
) -> str:
    """An inventory with these rows in each of its files, as S3 writes them; its manifest's key."""
    files = []
    for number, part in enumerate(rows):
        text = io.StringIO()
        csv.writer(text, quoting=csv.QUOTE_ALL, lineterminator="\n").writerows(part)
        body = gzip.compress(text.getvalue().encode())
        key = f"inventory/{of}/all/data/{number}.csv.gz"
        store.upload(key, body)
        files.append({"key": key, "size": len(body), "MD5checksum": hashlib.md5(body).hexdigest()})
    manifest = {
        "sourceBucket": of,
        "destinationBucket": f"arn:aws:s3:::{store.bucket}",
        "version": "2016-11-30",
        "creationTimestamp": "1514944800000",
        "fileFormat": "CSV",
        "fileSchema": SCHEMA,
        "files": files,
    }
    key = f"inventory/{of}/all/2026-01-31T00-00Z/manifest.json"
    store.upload(key, json.dumps(manifest | changes).encode())
    return key


def row(key: str, *, latest: str = "true", deleted: str = "false") -> list[str]:
    return ["audio-bucket", quote_plus(key, safe="/"), "v1", latest, deleted, "5", "2026-01-30T00:00:00.000Z", "old"]


def inventory_of(store: MemoryStore, *files: list[list[str]]) -> Inventoried:
    elsewhere = MemoryStore("inventories")
    return Inventoried(read_inventory(elsewhere, deliver(elsewhere, list(files)), of=store.bucket))


def test_the_keys_of_an_inventory_are_url_encoded(store: MemoryStore) -> None:
    for key in ODD_KEYS:
        upload(store, key)
    assert run(store, inventory_of(store, [row(key) for key in ODD_KEYS])) == list(ODD_KEYS)


def test_an_inventory_is_a_day_old(store: MemoryStore) -> None:
    """What is gone, replaced or done since counts as it is now; so do other versions and deletions."""
    for name in ("here", "done", "chunked"):
        upload(store, f"calls/{name}.mp3")
    transcribe(store, job_of(store, "calls/done.mp3"))
    chunk = upload(store, chunk_key("s", 1))
    upload(store, chunk_key("s", 2))  # came after the inventory: its own event tells
    rows = [row(f"calls/{name}.mp3") for name in ("here", "gone", "done")]
    rows += [row("calls/chunked.mp3", latest="false"), row("calls/chunked.mp3", latest="false", deleted="true")]
    sent: list[Job] = []
    source = inventory_of(store, rows, [row(chunk.key), row("users/u/transcripts/s-chunk-9.json")])
    backfill(store, source, Progress(source="x"), send=sent.extend, save=lambda progress: None)
    assert [(job.key, job.etag) for job in sent] == [
        (key, store.objects[key][1].etag) for key in ("calls/here.mp3", chunk.key)
    ]


@settings(max_examples=30)
@given(st.integers(0, 40), st.integers(0, 40), st.integers(1, 30))
def test_an_inventory_goes_on_in_the_middle_of_a_file(first: int, second: int, most: int) -> None:
    store = MemoryStore()
    keys = [upload(store, f"calls/{number:03}.mp3").key for number in range(first + second)]
    random.Random(1).shuffle(keys)
    source = inventory_of(store, [row(key) for key in keys[:first]], [row(key) for key in keys[first:]])
    sent: list[str] = []
    bookmark = Progress(source=source.name)

    def save(progress: Progress) -> None:
        nonlocal bookmark
        bookmark = progress

    while not backfill(
        store, source, bookmark, send=lambda jobs: sent.extend(job.key for job in jobs), save=save, most=most
    ):
        pass
    assert sent == keys


def test_an_inventory_of_a_prefix_is_read_for_a_prefix(store: MemoryStore) -> None:
    for key in ("calls/a.mp3", "memos/a.mp3"):
        upload(store, key)
    source = inventory_of(store, [row("calls/a.mp3"), row("memos/a.mp3")])
    assert run(store, Inventoried(source.inventory, "memos/")) == ["memos/a.mp3"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"fileFormat": "Parquet"}, "CSV"),
        ({"sourceBucket": "another"}, "another"),
        ({"fileSchema": "Bucket, Size"}, "Key"),
        ({"files": "none"}, "files"),
    ],
)
def test_an_inventory_that_cannot_be_read_is_refused_in_words(changes: dict[str, object], words: str) -> None:
    store = MemoryStore("inventories")
    with pytest.raises(BadInventory, match=words):
        read_inventory(store, deliver(store, [], **changes), of="audio-bucket")


def test_an_inventory_file_that_is_not_the_delivered_one_is_refused(store: MemoryStore) -> None:
    elsewhere = MemoryStore("inventories")
    inventory = read_inventory(elsewhere, deliver(elsewhere, [[row("calls/a.mp3")]]), of=store.bucket)
    elsewhere.upload(inventory.files[0].key, gzip.compress(b'"x"\n'))
    with pytest.raises(BadInventory, match="MD5"):
        run(store, Inventoried(inventory))
    elsewhere.delete(inventory.files[0].key)
    with pytest.raises(BadInventory, match="not in inventories"):
        run(store, Inventoried(inventory))


def test_there_may_be_no_inventory(store: MemoryStore) -> None:
    with pytest.raises(BadInventory, match="there is no"):
        read_inventory(store, "nowhere/manifest.json", of="audio-bucket")
