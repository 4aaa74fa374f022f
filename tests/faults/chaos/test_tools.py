"""The tools of the fault runs: what they inject is what they say."""

from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from gpu_server.engines import SAMPLE_RATE, Options, Window
from tests.faults.chaos.levers import Levers
from tests.faults.chaos.numbers import detect, engine, spoken, text
from tests.faults.chaos.proxy import check
from tests.faults.chaos.rules import AWS, DOOR, at_rate

WAV_HEADER = 44  # bytes


def test_every_rule_is_one_that_microburst_understands() -> None:
    for kind, rule in (at_rate(AWS, 0.3) | at_rate(DOOR, 0.3)).items():
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
