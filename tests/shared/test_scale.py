"""A session of 10,000 chunks, a day of somebody's life: how many requests and how much memory its end takes."""

import json
import re
import subprocess
import sys
from pathlib import Path

from shared.combine import Combiner, Status
from shared.jobs import Job
from shared.keys import Session
from tests.fakes import MemoryStore, transcript_for

CHUNKS = 10_000
WORDS = " ".join(f"word{number}" for number in range(15))  # three a second, of fast speech
SESSION = Session("u", "s")
MEGABYTE = 1 << 20


def combine_all() -> None:
    """In a process of its own, since memory is measured by its peak: the bucket, then what combining adds to it."""
    store = MemoryStore()
    for number in range(1, CHUNKS + 1):
        key = f"{SESSION.audio_prefix}chunk-{number}.webm"
        job = Job(bucket=store.bucket, key=key, etag=store.upload(key, b"%d" % number))
        store.upload(job.output_key, transcript_for(job, WORDS, stitched=True).to_json())
    store.upload(SESSION.manifest_key, json.dumps({"chunkCount": CHUNKS}).encode())
    store.trace.clear()
    combined = Combiner(store, lambda event: None).combine(SESSION)
    requests = sum(-(-CHUNKS // 1000) if name == "list" else 1 for name, _ in store.trace)  # S3 lists 1,000 at a time
    sys.stdout.write(json.dumps({"status": combined.status, "requests": requests, "bytes": peak_bytes()}))


def peak_bytes() -> int:
    """Of this process alone; `getrusage` has that of the process that started it, too. 0 where nothing tells."""
    status = Path("/proc/self/status")
    found = re.search(r"^VmHWM:\s+(\d+) kB", status.read_text(), re.MULTILINE) if status.exists() else None
    return int(found[1]) * 1024 if found else 0


def test_a_long_session_is_combined_with_two_requests_a_chunk_at_most_and_in_half_a_gigabyte() -> None:
    program = "from tests.shared.test_scale import combine_all; combine_all()"
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parents[2], capture_output=True, text=True, check=True,
    )  # fmt: skip
    told = json.loads(done.stdout)
    assert told["status"] == Status.COMPLETE
    assert told["requests"] <= 2 * CHUNKS
    assert told["bytes"] < 500 * MEGABYTE, told
