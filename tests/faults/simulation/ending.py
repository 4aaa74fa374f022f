"""What must hold when the last batch run is over and nothing is on its way any more."""

import json
from typing import Any

from shared.combine import VIEW
from shared.keys import Session
from shared.outcomes import HEADER_MISSING
from shared.sessions import ChunkOutcome, combine_chunks
from shared.subtitles import render
from shared.transcript import ErrorRecord, Transcript
from tests.faults.simulation.oracle import (
    DERIVED,
    JSON_KEY,
    OUTPUTS,
    Oracle,
    Version,
    source_of,
)
from tests.faults.simulation.plan import MANIFEST, PREFIX, SESSION, USER, index_of, name_of
from tests.faults.simulation.ports import BUCKET
from tests.faults.simulation.server import BAD, DEADLY, HEADLESS


class Ending(Oracle):
    """The oracle that also knows how it must end."""

    def check_end(self, faults: int) -> None:
        """`faults`: how many there were, deaths of the server included."""
        for queue in self._queues:
            for letter in queue.letters.values():
                self.violate(f"O5: left in the queue {queue.url}: {letter.about}")
            if queue.buried and not faults and not self._is_hard():
                self.violate(f"O6: {queue.buried} letters were tried to the end, and nothing was wrong with them")
        manifests = sum(upload.key == MANIFEST for upload in self._plan.uploads)
        for version, made in self._made.items():
            if version[0] == MANIFEST:
                continue
            if not self._is_accounted(version):
                self.violate(f"O1: lost: {version}")
            stem = f"{OUTPUTS}-{name_of(version[0])}"
            record = self._document(f"{stem}.error.json")
            if self._plan.sweeps and record and record["type"] == HEADER_MISSING and self._has_only(version, record):
                self.violate(f"O1: {version} waits for a header that is there")
            alone, together = made.heard
            looks = len(made.writes) + manifests - 1  # a manifest that is too short leaves what it lacks at an open end
            if alone > len(made.writes) + faults or together > 2 * looks + faults:
                self.violate(f"O6: {version} was heard {alone} times alone, {together} times with neighbours")
            self._check_loser(version)
        self._check_final_session()

    def _is_hard(self) -> bool:
        """Some audio fails, or waits, without any fault."""
        kinds = (BAD, DEADLY, HEADLESS)
        return any(made.body.startswith(kinds) for made in self._made.values())

    def _has_only(self, version: Version, record: dict[str, Any]) -> bool:
        """All that this audio has is its record, though the chunk 1 of its format is there."""
        if f"{PREFIX}chunk-1.{version[0].rpartition('.')[2]}" not in self._store.entries:
            return False
        transcript = self._document(f"{OUTPUTS}-{name_of(version[0])}.json")
        return self._winner(index_of(version[0])) == version == source_of(record) and source_of(transcript) != version

    def _check_loser(self, version: Version) -> None:
        """Audio whose number another object has, under a name of its own: it is not silently passed over."""
        key, etag = version
        winner = self._winner(index_of(key))
        entry = self._store.entries.get(key)
        current = entry is not None and entry.info.etag == etag
        if winner is None or not current or winner == version or name_of(winner[0]) == name_of(key):
            return
        stem = f"{OUTPUTS}-{name_of(key)}"
        if not any(source_of(self._document(f"{stem}.{kind}"))[0] == key for kind in ("json", "error.json")):
            self.violate(f"O1: nothing tells that {key} is a duplicate")

    def _check_final_session(self) -> None:
        expected = self._expected()
        if expected is None:
            self.violate("O5: the session is not complete in the end")
            return
        if JSON_KEY not in self._store.entries:
            self.violate("O5: there is no session transcript in the end")
            return
        if self._store.entries[JSON_KEY].body != expected.to_json():
            self.violate("O5: the session transcript is not what its chunks make")
        views = {self._store.entries[key].info.metadata[VIEW] for key in (JSON_KEY, *DERIVED)}
        rendered = {key: render(expected, key.rpartition(".")[2])[0] for key in DERIVED}
        if len(views) > 1 or any(self._store.entries[key].body != body for key, body in rendered.items()):
            self.violate("O5: the subtitles are not of this session transcript")

    def is_session_behind(self) -> bool:
        """There is a transcript, of chunks that have better ones by now."""
        expected, entry = self._expected(), self._store.entries.get(JSON_KEY)
        return expected is not None and entry is not None and entry.body != expected.to_json()

    def _expected(self) -> Transcript | None:
        """What the session's transcript must be, by what lies in the bucket."""
        manifest = self._store.entries[MANIFEST]
        count = json.loads(manifest.body)["chunkCount"]
        winners = [self._winner(index) or self._deleted_audio.get(index) for index in range(1, count + 1)]
        outcomes = [version and self._outcome(index, version) for index, version in enumerate(winners, 1)]
        chunks = [outcome for outcome in outcomes if outcome]
        if len(chunks) < count:
            return None
        return combine_chunks(Session(USER, SESSION), bucket=BUCKET, manifest_etag=manifest.info.etag, chunks=chunks)

    def _outcome(self, index: int, version: Version) -> ChunkOutcome | None:
        key = self._outcome_of(version)
        if key is None:
            return None
        entry = self._store.entries[key]
        type = ErrorRecord if key.endswith(".error.json") else Transcript
        return ChunkOutcome(index, *version, key, entry.info.etag, type.model_validate_json(entry.body))
