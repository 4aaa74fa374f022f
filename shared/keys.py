"""S3 keys, both ways: what an object's key says it is, and which key a result has.

A key is data, never a path: nothing here touches a file system, and nothing decodes a key. (EventBridge and the
SDKs carry keys raw; only S3 *notifications* URL-encode them, and `shared.events` undoes that once.)
"""

import hashlib
import re
from dataclasses import dataclass
from functools import lru_cache

from shared.errors import RefusedKey

AUDIO_EXTENSIONS = frozenset({"webm", "ogg", "opus", "mp3", "m4a", "mp4", "wav", "flac", "aac"})
MAX_CHUNKS = 100_000  # ours; also the highest chunk number
MAX_NAME_CHARS = 128  # of a user or session id
REMEMBERED = 4096  # keys: each is asked about dozens of times on its way through a program
MAX_KEY_BYTES = 1024  # https://docs.aws.amazon.com/AmazonS3/latest/userguide/object-keys.html
OUTPUT_PREFIX = "transcripts/"
DERIVED_FORMATS = ("srt", "vtt", "txt")

_CHUNK = re.compile(r"users/([^/]+)/audio/sessions/([^/]+)/chunk-([0-9]+)\.([A-Za-z0-9]+)", re.ASCII)
_MANIFEST = re.compile(r"users/([^/]+)/audio/sessions/([^/]+)/metadata\.json")
_RESERVED_SESSION = re.compile(r".*(-chunk-[0-9]+|\.error)", re.ASCII | re.DOTALL)
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


@dataclass(frozen=True, order=True)
class Session:
    """One recording of one user: the owner of chunks, a manifest and the combined transcripts."""

    user: str
    id: str

    @property
    def audio_prefix(self) -> str:
        return f"users/{self.user}/audio/sessions/{self.id}/"

    @property
    def manifest_key(self) -> str:
        return self.audio_prefix + "metadata.json"

    @property
    def transcript_prefix(self) -> str:
        """Prefix of the chunk transcripts and chunk error records, of this session and no other."""
        return f"users/{self.user}/transcripts/{self.id}-chunk-"

    @property
    def output_key(self) -> str:
        return self.derived_key("json")

    @property
    def error_key(self) -> str:
        """Where an unusable manifest is recorded."""
        return self.derived_key("error.json")

    def path_in(self, bucket: str) -> str:
        """The S3 path that names the whole session."""
        return f"s3://{bucket}/{self.audio_prefix}"

    def derived_key(self, extension: str) -> str:
        return f"users/{self.user}/transcripts/{self.id}.{extension}"


@dataclass(frozen=True)
class ChunkKey:
    """`users/{user}/audio/sessions/{session}/chunk-{number}.{extension}`.

    `number` is kept as written ("7", "007"): the transcript's key repeats it.
    """

    session: Session
    number: str
    extension: str

    @property
    def index(self) -> int:
        """Position in the session, from 1."""
        return int(self.number)

    @property
    def key(self) -> str:
        return f"{self.session.audio_prefix}chunk-{self.number}.{self.extension}"

    def sibling_keys(self, index: int) -> tuple[str, ...]:
        """Keys that another chunk of the recording may have: padded like this one, or not."""
        numbers = dict.fromkeys((str(index).zfill(len(self.number)), str(index)))
        return tuple(f"{self.session.audio_prefix}chunk-{number}.{self.extension}" for number in numbers)

    @property
    def output_key(self) -> str:
        return f"{self.session.transcript_prefix}{self.number}.json"

    @property
    def error_key(self) -> str:
        return f"{self.session.transcript_prefix}{self.number}.error.json"


@dataclass(frozen=True)
class FileKey:
    """Any other audio object: it belongs to no session."""

    key: str

    @property
    def output_key(self) -> str:
        return f"{OUTPUT_PREFIX}{self.key}.json"

    @property
    def error_key(self) -> str:
        return f"{OUTPUT_PREFIX}{self.key}.error.json"


@dataclass(frozen=True)
class ManifestKey:
    """A session's `metadata.json`."""

    session: Session


@dataclass(frozen=True)
class IgnoredKey:
    """Not ours to transcribe: our own outputs, folders, pictures, whatever else people store."""

    key: str
    reason: str


AudioKey = ChunkKey | FileKey
ParsedKey = AudioKey | ManifestKey | IgnoredKey


def parse_key(key: str) -> ParsedKey:
    """Say what the object `key` is.

    Raises:
        RefusedKey: audio or a manifest whose results would collide with another's, or have no valid key.
    """
    return _parse(key)


@lru_cache(REMEMBERED)
def _parse(key: str) -> ParsedKey:
    if not key or key.endswith("/"):
        return IgnoredKey(key, "a folder marker")
    if match := _MANIFEST.fullmatch(key):
        return ManifestKey(_session(key, *match.groups()))
    extension = key.rpartition(".")[2] if "." in key else ""
    if extension.lower() not in AUDIO_EXTENSIONS:
        return IgnoredKey(key, "not audio")
    parsed: AudioKey
    if match := _CHUNK.fullmatch(key):
        user, session, number, extension = match.groups()
        parsed = ChunkKey(_session(key, user, session), number, extension)
        if not 1 <= int(number[:20]) <= MAX_CHUNKS or len(number) > 20:
            raise _refused(key, f"chunk numbers go from 1 to {MAX_CHUNKS}")
    else:
        parsed = FileKey(key)
    if len(parsed.error_key.encode()) > MAX_KEY_BYTES:
        raise _refused(key, f"its transcript's key would be longer than S3's {MAX_KEY_BYTES} bytes")
    return parsed


def parse_audio_key(key: str) -> AudioKey:
    """`parse_key` for callers that were told that `key` is audio.

    Raises:
        RefusedKey: it is not, or it must not enter the pipeline.
    """
    parsed = parse_key(key)
    if isinstance(parsed, ChunkKey | FileKey):
        return parsed
    reason = parsed.reason if isinstance(parsed, IgnoredKey) else "a session's manifest, not audio"
    raise _refused(key, reason)


def is_audio(key: str) -> bool:
    """Whether the object `key` is audio that may enter the pipeline."""
    try:
        return isinstance(parse_key(key), ChunkKey | FileKey)
    except RefusedKey:
        return False


def parse_chunk_key(key: str) -> ChunkKey | None:
    """The chunk that `key` names, None for whatever else it is: for listings, in which nothing has to be explained."""
    try:
        parsed = parse_key(key)
    except RefusedKey:
        return None
    return parsed if isinstance(parsed, ChunkKey) else None


def session_of(key: ParsedKey) -> Session | None:
    """The session whose completeness depends on this object, if any."""
    return key.session if isinstance(key, ChunkKey | ManifestKey) else None


def _session(key: str, user: str, session: str) -> Session:
    for name in (user, session):
        if name in (".", "..") or len(name) > MAX_NAME_CHARS or _CONTROL.search(name):
            raise _refused(
                key,
                f"user and session ids have at most {MAX_NAME_CHARS} characters, no control characters, "
                "and are not '.' or '..'",
            )
    if _RESERVED_SESSION.fullmatch(session):
        raise _refused(key, "session ids must not end in '-chunk-<number>' or '.error': those names are transcripts'")
    return Session(user, session)


def _refused(key: str, reason: str) -> RefusedKey:
    error_key = f"{OUTPUT_PREFIX}{key}.error.json"
    if len(error_key.encode()) > MAX_KEY_BYTES or _CONTROL.search(key):
        error_key = f"{OUTPUT_PREFIX}refused/{hashlib.sha256(key.encode()).hexdigest()}.error.json"
    return RefusedKey(f"the key is refused: {reason}", error_key=error_key)
