"""The tools of the fault runs: what they inject is what they say."""

import errno
import json
import os
import subprocess
import sys
from collections import Counter
from itertools import pairwise
from pathlib import Path

import httpx
import numpy as np
import pytest

from gpu_server.engines import SAMPLE_RATE, Options, Window
from shared.jobs import Job
from shared.keys import Session
from tests.fakes import transcript_for
from tests.faults.chaos.disk import PAGE, Disk
from tests.faults.chaos.drills import Ended
from tests.faults.chaos.impostors import IMPOSTORS, Impostor
from tests.faults.chaos.levers import Levers
from tests.faults.chaos.numbers import detect, engine, spoken, text
from tests.faults.chaos.parts import part_of
from tests.faults.chaos.programs import is_busy
from tests.faults.chaos.proxy import check
from tests.faults.chaos.rules import AWS, DOOR, DOOR_LATE, LETTERS, REWRITES, S3_LATE, SWEEP, at_rate
from tests.faults.chaos.watch import Watch
from tests.faults.oracle import Upload
from tests.faults.table import AGAIN
from tests.patience import eventually

WAV_HEADER = 44  # bytes


def test_every_rule_is_one_that_microburst_understands() -> None:
    for kind, rule in (
        at_rate(AWS | S3_LATE, 0.3) | at_rate(DOOR | DOOR_LATE, 0.3) | REWRITES | SWEEP | LETTERS
    ).items():
        check(kind, rule)


@pytest.mark.parametrize("rule", [{"servce": "s3"}, {"service": "s3", "probability": 3.0}, {"probability": 0.0}])
def test_a_rule_that_microburst_would_misunderstand_is_refused(rule: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="typo"):
        check("typo", rule)


def test_each_operation_with_rules_of_its_own_fails_at_the_rate() -> None:
    """Of the rules that fit a request, the first whose draw says so is taken."""
    rules = at_rate(AWS, 0.3)
    operations = {(rule["service"], rule["operation"]) for rule in rules.values() if "operation" in rule}
    assert len(operations) >= 8
    for service, operation in operations:
        well = 1.0
        for rule in rules.values():
            if rule["service"] == service and rule.get("operation", operation) == operation:
                well *= 1 - rule["probability"]
        assert well == pytest.approx(0.7), operation


def test_what_is_only_late_is_no_part_of_the_rate() -> None:
    failing = [*AWS.values(), *DOOR.values()]
    assert not any("latency" in rule or "bandwidth_kbps" in rule.get("response", {}) for rule in failing)


def test_a_run_whose_fault_did_not_happen_is_a_violation() -> None:
    well, slept = Ended("kill", 1, 1, (), 9.0, again=2), Ended("kill", 0, 1, (), 9.0)
    (runs, violations, _) = part_of([well], wanted=1).rows
    assert (runs.reached, violations.reached) == (True, True)
    (_, violations, _) = part_of([well, slept], wanted=1).rows
    assert (violations.measured, violations.reached) == ("1: kill: did not happen", False)
    assert part_of([well], wanted=1).kinds == {"kill": 1, AGAIN: 2}


def test_a_fault_is_taken_once_for_each_time_that_it_was_asked_for(tmp_path: Path) -> None:
    mine, theirs = Levers(tmp_path), Levers(tmp_path)
    mine.pull("gpu full", 2)
    assert [theirs.take("gpu full"), mine.take("gpu full"), theirs.take("gpu full")] == [True, True, False]
    assert not mine.take("gpu full with a batch")


def test_what_is_spoken_is_heard_also_where_chunks_touch_without_a_pause() -> None:
    chunks = [(7, 1, 1), (7, 2, 1), (7, 3, 2)]
    audios = []
    for chunk in chunks:
        samples = np.frombuffer(spoken(chunk)[WAV_HEADER:], dtype="<i2").astype(np.float32) / 32768
        speech = detect(samples)
        audios.append(samples[speech[0].start : speech[-1].end])
    heard: list[str] = []
    reader = engine(before=lambda windows: None, heard=heard.append).recognizer
    window = Window(audio=np.concatenate(audios), options=Options())
    (said,) = reader.recognize([window], [reader.prepare(window)])
    assert said.text.strip() == " ".join(map(text, chunks))
    assert Counter(heard) == Counter(map(text, chunks))
    assert all(one.end <= two.start for one, two in pairwise(said.words))
    assert said.words[-1].end == pytest.approx(len(window.audio) / SAMPLE_RATE)


def test_only_those_who_meet_what_is_bad_count() -> None:
    with Impostor(IMPOSTORS["server says 500"]) as bad:
        assert httpx.get(f"{bad.url}/health").is_success
        assert bad.struck == 0
        assert httpx.post(f"{bad.url}/transcribe-s3", json={}).status_code == 500
        assert bad.struck == 1
    with Impostor(IMPOSTORS["server's health flaps"]) as bad:
        assert [httpx.get(f"{bad.url}/health").status_code for _ in range(4)] == [200, 503, 200, 503]
        assert bad.struck == 4


def test_a_process_is_busy_unless_it_waits_for_its_next_line() -> None:
    script = "import sys, time\nfor line in sys.stdin: time.sleep(1000)"
    with subprocess.Popen([sys.executable, "-c", script], stdin=subprocess.PIPE) as process:
        assert process.stdin
        eventually(lambda: not is_busy(process.pid), "a process that waits")
        process.stdin.write(b"work\n")
        process.stdin.flush()
        eventually(lambda: is_busy(process.pid), "a process at work")
        process.kill()
        process.wait()
        assert not is_busy(process.pid)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting is root's")
def test_a_full_disk_has_the_room_that_was_left_and_no_more(tmp_path: Path) -> None:
    with Disk(tmp_path / "disk") as disk:
        for room in (0, 1, PAGE, PAGE + 1):
            disk.fill(room=room)
            left = -(-room // PAGE) * PAGE
            (disk.folder / "room").write_bytes(bytes(left))
            with pytest.raises(OSError, match=os.strerror(errno.ENOSPC)):
                (disk.folder / "more").write_bytes(b"x")
            disk.heal()
            (disk.folder / "more").write_bytes(bytes(10 * PAGE))
            (disk.folder / "more").unlink()
            (disk.folder / "room").unlink()
    assert not list((tmp_path / "disk").iterdir())


def test_what_was_wrong_for_an_instant_is_seen(tmp_path: Path) -> None:
    key = f"{Session('u', 's').audio_prefix}chunk-001.wav"
    uploads = [Upload(key, etag, b"", says) for etag, says in (("a", "one"), ("b", "two"))]
    old, new, foreign = (
        transcript_for(Job(bucket="audio", key=key, etag=etag), says).to_json().decode()
        for etag, says in (("a", "one"), ("b", "two"), ("b", "three"))
    )
    output = Job(bucket="audio", key=key, etag="a").output_key

    def watched(*bodies: str, replaced: str | None = "", answered: bool = True) -> list[str]:
        """The last one is of the second kind."""
        journal = tmp_path / "journal"
        before = {"key": output, "etag": "0", "replaced": "", "body": "of a run before", "answered": True}
        journal.write_text(json.dumps(before) + "\n")
        watch = Watch(journal)
        with journal.open("a") as file:
            for number, body in enumerate(bodies, 1):
                line = before | {"etag": str(number), "replaced": str(number - 1), "body": body}
                if number == len(bodies):
                    line |= {"replaced": replaced if replaced != "" else line["replaced"], "answered": answered}
                file.write(json.dumps(line) + "\n")
        return watch.wrong(uploads)

    assert watched(old, new) == []
    assert ["says 'three'" in wrong for wrong in watched(old, foreign, new)] == [True]
    assert ["went back" in wrong for wrong in watched(new, old, new)] == [True]
    assert watched(old, new, replaced=None) == [f"{output}: written whatever was there"]
    assert watched(old, new, replaced="9") == [f"{output}: replaced 9, which nobody wrote"]
    assert watched(new, old, answered=False) == []  # perhaps S3 did not take it
    assert watched() == ["nothing was written, or the journal missed it"]
