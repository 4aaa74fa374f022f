"""What must hold at every write, whenever something is forgotten, and in the end. It trusts nothing but the bytes.

O1 every audio version is accounted for       O5 it ends, in a bounded number of steps
O2 a session transcript is well-formed        O6 no audio is transcribed more often than faults explain
O3 nothing newer is replaced by older         O7 nothing is forgotten before O1 holds for it
O4 every word is what that audio says
"""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from hashlib import md5
from typing import Any

from shared.combine import SessionTranscribed
from tests.faults.simulation.plan import MANIFEST, PREFIX, SESSION, USER, Plan, index_of, name_of, returning
from tests.faults.simulation.ports import Entry, Letter, SimQueue, SimStore
from tests.faults.simulation.server import BAD, DEADLY, HEADLESS, words_of

OUTPUTS = f"users/{USER}/transcripts/{SESSION}"
JSON_KEY, BAD_MANIFEST_KEY = f"{OUTPUTS}.json", f"{OUTPUTS}.error.json"
DERIVED = tuple(f"{OUTPUTS}.{extension}" for extension in ("srt", "vtt", "txt"))
Version = tuple[str, str]  # key and ETag
Telling = tuple[int, int, float, dict[str, float]]  # what the event about a session transcript says of it


@dataclass
class Made:
    """An audio or manifest version: its bytes, the writes that made it current, and how often each pass heard it."""

    body: bytes
    writes: list[int]
    heard: list[int] = field(default_factory=lambda: [0, 0])


class Oracle:
    """`pending`: audio versions whose events are still on their way, with how many of them."""

    def __init__(self, plan: Plan, store: SimStore, queues: Sequence[SimQueue], pending: Counter[Version]) -> None:
        self.violations: list[str] = []
        self._plan = plan
        self._store = store
        self._queues = queues
        self._pending = pending
        self._made: dict[Version, Made] = {}
        self._owners: defaultdict[str, set[str]] = defaultdict(set)  # output and error keys: the audio they may tell of
        self._outcomes: dict[Version, tuple[int, Any]] = {}  # chunk outcomes ever written: their write, and document
        self._returning = returning(plan.uploads)
        self._deleted_audio: dict[int, Version] = {}  # by number: what was its only audio
        self._last_tries: set[Version] = set()  # what Lambda, or the queue, has given up
        self._struck: set[Version] = set()  # what a server failed at in its last try
        self._sessions: list[Telling] = []  # what there was to tell of each session transcript ever written
        store.watch = self._written
        for queue in queues:
            queue.on_delete = self._deleted
            queue.on_bury = self._buried

    def violate(self, words: str) -> None:
        self.violations.append(words)

    def uploaded(self, entry: Entry) -> None:
        key = entry.info.key
        made = self._made.setdefault((key, entry.info.etag), Made(entry.body, []))
        made.writes.append(entry.number)
        if key != MANIFEST:
            stem = f"{OUTPUTS}-{name_of(key)}"
            self._owners[f"{stem}.json"].add(key)
            self._owners[f"{stem}.error.json"].add(key)

    def deleted(self, entry: Entry) -> None:
        """Its transcript stands, or a record says that it is missing: its session is completed all the same."""
        self._deleted_audio[index_of(entry.info.key)] = entry.info.key, entry.info.etag

    def heard(self, body: bytes, stitched: bool) -> None:
        """`stitched`: with its neighbours, which is other work than alone."""
        etag = md5(body, usedforsecurity=False).hexdigest()
        for (_, its), made in self._made.items():
            if its == etag:
                made.heard[stitched] += 1

    def _buried(self, letter: Letter) -> None:
        self.given_up(letter.about)

    def given_up(self, versions: Iterable[Version]) -> None:
        """All tries but the last one came to nothing: the queue's five, or Lambda's three."""
        self._last_tries.update(versions)

    def struck(self, version: Version) -> None:
        """A server that lives, and that nobody is about to end, took this alone and failed."""
        self._struck.update({version} & self._last_tries)

    def announced(self, event: SessionTranscribed) -> None:
        if (event.chunks, event.failed, event.duration, event.audio_seconds) not in self._sessions:
            self.violate("an announcement of a session transcript that nobody wrote")

    def _deleted(self, letter: Letter) -> None:
        self.forgotten(letter.about)

    def forgotten(self, versions: Iterable[Version]) -> None:
        """O7: nobody will come back to these, as far as this message or event is concerned.

        Audio that came back may have done so since that was decided: it has an event of its own, or the sweep.
        """
        for version in versions:
            came_back = version in self._made and (version[0], self._made[version].body) in self._returning
            if version[0] != MANIFEST and not came_back and not self._is_safe(version):
                self.violate(f"O7: forgotten, but not accounted for: {version}")

    def _is_safe(self, version: Version) -> bool:
        return (
            self._is_accounted(version)
            or self._pending[version] > 0
            or any(version in letter.about for queue in self._queues for letter in queue.letters.values())
        )

    def _is_accounted(self, version: Version) -> bool:
        """It has its transcript or its record, or it no longer counts."""
        key, etag = version
        current = self._store.entries.get(key)
        if current is None or current.info.etag != etag or self._winner(index_of(key)) != version:
            return True
        return self._outcome_of(version) is not None

    def _outcome_of(self, version: Version) -> str | None:
        """The key of what tells how it ended: its record counts only while it has no transcript."""
        stem = f"{OUTPUTS}-{name_of(version[0])}"
        found = (f"{stem}.{kind}" for kind in ("json", "error.json"))
        return next((key for key in found if source_of(self._document(key)) == version), None)

    def _document(self, key: str) -> Any:
        entry = self._store.entries.get(key)
        return self._outcomes[key, entry.info.etag][1] if entry else None

    def _winner(self, index: int) -> Version | None:
        """Of the audio objects with one number, the one that counts."""
        rivals = [
            entry.info
            for key, entry in self._store.entries.items()
            if key.startswith(PREFIX) and key != MANIFEST and index_of(key) == index
        ]
        if not rivals:
            return None
        info = max(rivals, key=lambda info: (info.last_modified, info.key))
        return info.key, info.etag

    def _written(self, key: str, before: Entry | None, entry: Entry) -> None:
        if key in self._owners:
            document = json.loads(entry.body)
            self._outcomes[key, entry.info.etag] = entry.number, document
            if key.endswith(".error.json"):
                self._check_record(key, before, document)
            else:
                self._check_transcript(key, before, document)
        elif key == JSON_KEY:
            self._check_session(json.loads(before.body) if before else None, json.loads(entry.body))
        elif key == BAD_MANIFEST_KEY:
            self._check_manifest_record(json.loads(before.body) if before else None, json.loads(entry.body))
        elif key not in DERIVED:
            self.violate(f"written outside the expected keys: {key}")

    def _check_manifest_record(self, before: dict[str, Any] | None, record: dict[str, Any]) -> None:
        version = source_of(record)
        made = self._made.get(version)
        if made is None or version[0] != MANIFEST or b"{" in made.body:
            self.violate(f"a bad manifest's record for one that is well, or never existed: {version}")
        elif before and self._made[source_of(before)].writes[0] > made.writes[-1]:
            self.violate("O3: the record of a bad manifest goes back to an older one")

    def _check_record(self, key: str, before: Entry | None, record: dict[str, Any]) -> None:
        version = source_of(record)
        made = self._made.get(version)
        if made is None or version[0] not in self._owners[key]:
            self.violate(f"a record for an input that never existed: {version} at {key}")
            return
        explained = {
            "media-not-recognised": made.body.startswith(BAD),
            "media-empty": not made.body,
            "media-header-missing": made.body.startswith(HEADLESS) and self._has_ended(),
            "source-missing": version in self._deleted_audio.values(),
            "duplicate-chunk": len(self._same_index(version[0])) > 1,
            "gave-up": version in self._struck and (self._plan.faults > 0 or made.body.startswith(DEADLY)),
        }
        if not explained.get(record["type"], False):
            self.violate(f"a failure that nothing explains: {record['type']} of {version}")
        transcript = self._store.entries.get(key.replace(".error.json", ".json"))
        if transcript and source_of(json.loads(transcript.body)) == version:
            written = transcript.info.last_modified + timedelta(seconds=1)  # at the latest: S3 tells whole seconds
            if written <= datetime.fromisoformat(record["created_at"]):
                self.violate(f"a record of what had its transcript: {version}")

        old = source_of(self._outcomes[key, before.info.etag][1]) if before else version
        if old != version and self._stays_current(old):
            self.violate(f"O3: the record at {key} is replaced by one of another version")

    def _has_ended(self) -> bool:
        """No chunk 1 is still to be waited for."""
        return any(key == MANIFEST or index_of(key) == 1 for key, _ in self._made)

    def _same_index(self, key: str) -> set[str]:
        return {other for other, _ in self._made if other != MANIFEST and index_of(other) == index_of(key)}

    def _check_transcript(self, key: str, before: Entry | None, document: dict[str, Any]) -> None:
        version = source_of(document)
        made = self._made.get(version)
        if made is None or version[0] not in self._owners[key]:
            self.violate(f"a transcript for an input that never existed: {version} at {key}")
            return
        if document["text"] != words_of(made.body):
            self.violate(f"O4: {key} does not say what its audio says")
        if before is None:
            return
        old = self._outcomes[key, before.info.etag][1]
        older = self._made[source_of(old)]
        if source_of(old) == version:
            if old.get("pass") == "stitched" and document.get("pass") != "stitched":
                self.violate(f"O3: a live transcript replaces the stitched one at {key}")
        elif self._stays_current(source_of(old)):
            self.violate(f"O3: the current transcript at {key} is replaced by one of another version")
        elif source_of(old)[0] == version[0] and older.writes[0] > made.writes[-1]:
            self.violate(f"O3: an older transcript replaces a newer one at {key}")

    def _was_current(self, version: Version, write: int) -> bool:
        """It was when that write was the last one."""

        def last(made: Made) -> int:
            return max((number for number in made.writes if number <= write), default=0)

        rivals = [last(made) for (key, _), made in self._made.items() if key == version[0]]
        return last(self._made[version]) == max(rivals)

    def _stays_current(self, version: Version) -> bool:
        """It is, and it did not come back meanwhile (see `plan.returning`)."""
        key, body = version[0], self._made[version].body
        return self._winner(index_of(key)) == version and (key, body) not in self._returning

    def _check_session(self, before: dict[str, Any] | None, document: dict[str, Any]) -> None:
        source = document["source"]
        manifest = self._made.get((source["manifest_key"], source["manifest_etag"]))
        if manifest is None:
            self.violate("O2: the session names a manifest that never existed")
            return
        chunks = source["chunks"]
        if [chunk["index"] for chunk in chunks] != list(range(1, json.loads(manifest.body)["chunkCount"] + 1)):
            self.violate(f"O2: the session's chunks are {[chunk['index'] for chunk in chunks]}")
        texts = []
        seconds: Counter[str] = Counter()
        for chunk in chunks:
            version = (chunk["key"], chunk["etag"])
            _, outcome = self._outcomes.get((chunk["outcome_key"], chunk["outcome_etag"]), (0, None))
            if outcome is None or source_of(outcome) != version or index_of(version[0]) != chunk["index"]:
                self.violate(f"O2: chunk {chunk['index']} names an outcome that is not its audio's")
                return
            if (chunk["status"] == "transcribed") != ("text" in outcome):
                self.violate(f"O2: chunk {chunk['index']} is said to be {chunk['status']}")
            if not self._was_current(version, self._store.last_listed(PREFIX)):
                self.violate(f"O2: chunk {chunk['index']} had other audio when its combiner looked")
            if "text" in outcome:
                texts.append(outcome["text"])
                seconds[outcome["route"]] += chunk["duration"]
            elif self._had_transcript(version, self._store.last_listed(f"{OUTPUTS}-chunk-")):
                self.violate(f"O2: chunk {chunk['index']} has failed, but had its transcript when its combiner looked")
        if document["text"] != " ".join(text for text in texts if text):
            self.violate("O4: the session does not say what its chunks say")
        self._sessions.append((len(chunks), len(chunks) - len(texts), document["duration"], dict(seconds)))
        if any(key not in self._store.entries for key in DERIVED):
            self.violate("O2: the session is there before its subtitles")
        if before:
            self._check_no_regression(before["source"], source)

    def _had_transcript(self, version: Version, write: int) -> bool:
        """Its transcript lay there when that write was the last one."""
        output = f"{OUTPUTS}-{name_of(version[0])}.json"
        made = [outcome for (key, _), outcome in self._outcomes.items() if key == output and outcome[0] <= write]
        return bool(made) and source_of(max(made, key=lambda outcome: outcome[0])[1]) == version

    def _check_no_regression(self, old: dict[str, Any], new: dict[str, Any]) -> None:
        def age(manifest_etag: str) -> int:
            return self._made[MANIFEST, manifest_etag].writes[-1]

        if age(old["manifest_etag"]) > age(new["manifest_etag"]):
            self.violate("O3: the session goes back to an older manifest")
        for one, other in zip(old["chunks"], new["chunks"], strict=False):
            was, now = (one["key"], one["etag"]), (other["key"], other["etag"])
            if was[0] == now[0] and self._made[was].writes[0] > self._made[now].writes[-1]:
                self.violate(f"O3: the session goes back to older audio of chunk {one['index']}")
            if was != now and self._stays_current(was):
                self.violate(f"O3: the session drops the current audio of chunk {one['index']}")
            same = was == now and one["outcome_key"] == other["outcome_key"]
            if same and self._age(one) > self._age(other):
                self.violate(f"O3: the session goes back to an older outcome of chunk {one['index']}")

    def _age(self, chunk: dict[str, Any]) -> int:
        return self._outcomes[chunk["outcome_key"], chunk["outcome_etag"]][0]


def source_of(document: Any) -> Version:
    """The input that a transcript or a record names."""
    return (document["source"]["key"], document["source"]["etag"]) if document else ("", "")
