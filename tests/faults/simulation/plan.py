"""What happens in one schedule, drawn from its seed: the recording, its uploads, the deployment, the faults."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from tests.faults.simulation.server import BAD, DEADLY, HEADLESS, SILENT

USER, SESSION = "ann", "talk"
PREFIX = f"users/{USER}/audio/sessions/{SESSION}/"
MANIFEST = PREFIX + "metadata.json"
DELETED = 0.04  # schedules in which audio is deleted


@dataclass(frozen=True)
class Upload:
    """`wait`: seconds after the upload before. `deliveries`: of its event; 0: it is lost. `late`: seconds it takes.

    `deleted_after`: seconds until somebody deletes the object again; None: never.
    """

    key: str
    body: bytes
    wait: float
    deliveries: int
    late: float
    deleted_after: float | None = None


@dataclass(frozen=True)
class Plan:
    """`sweeps`: whether batch runs sweep the bucket. `workers`: seconds after the beginning when a batch run starts.

    `broken`: the router's function does not start, most of the time.
    """

    seed: int
    chunks: int
    uploads: tuple[Upload, ...]
    sweeps: bool
    restitch: bool
    batch_only: bool
    long: bool
    capacity: int
    job_seconds: float
    server_up: bool
    workers: tuple[float, ...]
    concurrency: int
    change_gap: float
    faults: int
    fault_gap: float
    broken: bool

    @property
    def only_duplicates(self) -> bool:
        """Nothing goes wrong but that events come twice, late and in any order."""
        return self.faults == 0 and self.server_up and not self.broken


def draw(seed: int) -> Plan:
    random = Random(seed)
    chance = random.random
    chunks = random.choices((1, 2, 3, 4, 7), (36, 42, 14, 5, 3))[0]
    sweeps = chance() < 0.12
    lossy = random.choice((0.3, 1.0)) if sweeps else 0.0
    twice = random.choice((0.0, 0.3, 0.3, 1.0))
    late = random.choice((0.0, 0.3))
    pause = random.choice((0.0, 0.0, 0.0, 5.0, 5.0, 400.0))

    def upload(key: str, body: bytes) -> Upload:
        deliveries = 0 if chance() < lossy else 2 if chance() < twice else 1
        return Upload(key, body, pause * chance(), deliveries, 200 * chance() if chance() < late else 0.0)

    uploads = [upload(key, body) for key, body in _objects(random, chunks)]
    _delete_one(Random(~seed), uploads)
    faults = random.choice((0, 1, 1, 2, 3, 5, 12))
    return Plan(
        seed=seed,
        chunks=chunks,
        uploads=tuple(uploads),
        sweeps=sweeps or bool(returning(uploads)),
        restitch=chance() < 0.3,
        batch_only=chance() < 0.1,
        long=chance() < 0.1,
        capacity=random.choice((1, 2, 3)),
        job_seconds=random.choice((0.0, 0.0, 2.0, 40.0)),
        server_up=chance() < 0.8,
        workers=tuple(random.choice((0.0, 10.0, 200.0)) for _ in range(random.choice((0, 0, 1, 2)))),
        concurrency=random.choice((1, 2, 3)),
        change_gap=random.choice((3.0, 8.0, 25.0, 80.0, 300.0)),
        faults=faults,
        fault_gap=random.choice((5.0, 15.0, 40.0)) * chunks,
        broken=chance() < 0.06,
    )


def _objects(random: Random, chunks: int) -> list[tuple[str, bytes]]:
    """Keys and bodies in the order of their uploads."""
    chance = random.random
    objects = [(_key(index), _audio(random, index, 1)) for index in range(1, chunks + 1)]
    again = [random.randrange(chunks) for _ in range(random.choice((0, 0, 0, 1, 1, 2)))]
    for version, place in enumerate(again, 2):
        key, first = objects[place]
        kind = first.partition(b" ")[0] if chance() < 0.4 else None
        body = first if chance() < 0.2 else _audio(random, place + 1, version, kind)
        objects.append((key, body))
        if chance() < 0.2:
            objects.append((key, first))  # and back again
    if chance() < 0.12:
        index = random.randrange(chunks) + 1
        rival = random.choice((f"{PREFIX}chunk-00{index}.webm", f"{PREFIX}chunk-{index}.mp3"))
        objects.insert(random.randrange(len(objects) + 1), (rival, _audio(random, index, 9)))
    if chance() < 0.3:
        random.shuffle(objects)
    manifests = [_manifest(chunks)]
    if chance() < 0.08:
        manifests[:0] = [b"not json", b"no JSON either"][: random.choice((1, 2))]
    if chance() < 0.08:
        manifests.insert(0, _manifest(max(1, chunks - 1)))
    place = random.choice((0, len(objects), random.randrange(len(objects) + 1)))
    for manifest in manifests:
        objects.insert(place, (MANIFEST, manifest))
        place = random.randrange(place + 1, len(objects) + 1)
    return objects


def _delete_one(random: Random, uploads: list[Upload]) -> None:
    """Seldom.

    Never audio with another version or a rival: which of their outcomes counts then, S3 cannot say. Nor where events
    are lost: the sweep goes by the audio that is there.
    """
    if random.random() >= DELETED or not all(upload.deliveries for upload in uploads):
        return
    audio = [place for place, upload in enumerate(uploads) if upload.key != MANIFEST]
    times = Counter(index_of(uploads[place].key) for place in audio)
    alone = [place for place in audio if times[index_of(uploads[place].key)] == 1]
    if alone:
        place = random.choice(alone)
        uploads[place] = replace(uploads[place], deleted_after=random.choice((0.0, 0.0, 5.0, 300.0)))


def name_of(key: str) -> str:
    """ "chunk-007", whatever the extension."""
    return key.removeprefix(PREFIX).rpartition(".")[0]


def index_of(key: str) -> int:
    return int(name_of(key).removeprefix("chunk-"))


def returning(uploads: Sequence[Upload]) -> set[tuple[str, bytes]]:
    """Audio that is overwritten and then comes back, byte for byte.

    By its ETag it is what it was. If it comes back just while a writer of the version between has looked at the audio
    and not yet written, that writer wins for a while: the next sweep, not the next instant, makes it right.
    """
    last: dict[str, bytes] = {}
    seen: set[tuple[str, bytes]] = set()
    back = set()
    for upload in uploads:
        version = (upload.key, upload.body)
        if version in seen and last[upload.key] != upload.body:
            back.add(version)
        seen.add(version)
        last[upload.key] = upload.body
    return back


def _key(index: int) -> str:
    return f"{PREFIX}chunk-{index}.webm"


CHUNK_1 = _key(1)


def _manifest(chunks: int) -> bytes:
    return b'{"chunkCount": %d}' % chunks


def _audio(random: Random, index: int, version: int, kind: bytes | None = None) -> bytes:
    kind = kind or random.choices((b"speech", SILENT, BAD, HEADLESS, DEADLY, b""), (85, 4, 4, 4, 1, 1))[0]
    if kind == HEADLESS and index == 1:
        kind = b"speech"
    return b"%s %d.%d" % (kind, index, version) if kind else b""
