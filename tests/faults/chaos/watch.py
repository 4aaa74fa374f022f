"""Judges everything that S3 took while the faults went on: wrong for an instant is wrong."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.faults.oracle import Upload, Version, regressions, wrong_write


@dataclass(frozen=True)
class Write:
    """`replaced`: ETag of what was there before; "" when nothing was; None when it did not matter to the writer.

    `answered`: S3 said that it took it; else it may have.
    """

    key: str
    etag: str
    replaced: str | None
    body: bytes
    answered: bool


class Watch:
    """What was written from its making on, by the journal of the proxy that all our programs write through."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._before = len(self._read())

    def written(self) -> int:
        """How many objects S3 took."""
        return sum(write.answered for write in self._read()[self._before :])

    def wrong(self, uploads: Sequence[Upload]) -> list[str]:
        """What any of them said that it must not, and what it replaced that was newer."""
        journal = self._read()
        if len(journal) == self._before:
            return ["nothing was written, or the journal missed it"]
        before: dict[Version, bytes] = {}
        wrong: list[str] = []
        for place, write in enumerate(journal):
            if write.answered and place >= self._before:
                wrong += _wrong(write, before, uploads)
            before.setdefault((write.key, write.etag), write.body)
        return wrong

    def _read(self) -> list[Write]:
        lines = [json.loads(line) for line in self._journal.read_text().splitlines()]
        return [Write(**line | {"body": line["body"].encode("latin-1")}) for line in lines]


def _wrong(write: Write, before: dict[Version, bytes], uploads: Sequence[Upload]) -> list[str]:
    if write.replaced is None:
        return [f"{write.key}: written whatever was there"]
    old = before.get((write.key, write.replaced))
    wrong = [*wrong_write(write.key, write.body, uploads, before, replaced=write.replaced)]
    if write.replaced and old is None:
        wrong.append(f"{write.key}: replaced {write.replaced}, which nobody wrote")
    return wrong + ([*regressions(write.key, old, write.body, uploads)] if old is not None else [])
