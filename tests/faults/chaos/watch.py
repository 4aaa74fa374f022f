"""Judges every output that S3 took while the faults went on: wrong for an instant is wrong."""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from shared.keys import DERIVED_FORMATS
from tests.faults.oracle import Upload, regressions, wrong_manifest_record, wrong_outcome, wrong_session


@dataclass(frozen=True)
class Write:
    """`replaced`: ETag of what was there before; "" when nothing was."""

    key: str
    etag: str
    replaced: str
    body: bytes

    @property
    def is_output(self) -> bool:
        return "/transcripts/" in self.key and not self.key.endswith(tuple(DERIVED_FORMATS))

    @property
    def is_session(self) -> bool:
        return self.is_output and "-chunk-" not in self.key


class Watch:
    """The outputs written from its making on, by the journal of the proxy that all our programs write through."""

    def __init__(self, journal: Path) -> None:
        self._journal = journal
        self._before = len(self._read())

    def written(self) -> list[Write]:
        return self._outputs(self._read())

    def wrong(self, uploads: Sequence[Upload]) -> list[str]:
        """What any of them said that it must not, and what it replaced that was newer."""
        journal = self._read()
        bodies = {(write.key, write.etag): write.body for write in journal}
        written = self._outputs(journal)
        if not written:
            return ["nothing was written, or the journal missed it"]
        return [wrong for write in written for wrong in _wrong(write, bodies, uploads)]

    def _outputs(self, journal: Sequence[Write]) -> list[Write]:
        return [write for write in journal[self._before :] if write.is_output]

    def _read(self) -> list[Write]:
        lines = [json.loads(line) for line in self._journal.read_text().splitlines()]
        return [Write(line["key"], line["etag"], line["replaced"], line["body"].encode("latin-1")) for line in lines]


def _wrong(write: Write, bodies: dict[tuple[str, str], bytes], uploads: Sequence[Upload]) -> Iterator[str]:
    if not write.is_session:
        yield from wrong_outcome(write.key, write.body, uploads)
    elif write.key.endswith(".error.json"):
        yield from wrong_manifest_record(write.key, write.body, uploads)
    else:
        yield from wrong_session(write.key, write.body, uploads)
    before = bodies.get((write.key, write.replaced))
    if before is not None:
        yield from regressions(write.key, before, write.body, uploads)
