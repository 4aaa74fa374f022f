"""Transcript JSON, version 1: one shape for chunk, file and session, and the record of a failure.

Times are seconds from the start of the file or session, to the millisecond.
"""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, ValidationError

from shared.jobs import Moment, Options

MAX_SECONDS = 1e13  # a subtitle's clock has ten digits for the hours
Seconds = Annotated[
    float, Field(ge=0, le=MAX_SECONDS), PlainSerializer(lambda value: round(value, 3), return_type=float)
]


class _Document(BaseModel):
    model_config = ConfigDict(frozen=True, extra="allow")


class Word(_Document):
    word: str
    start: Seconds
    end: Seconds
    score: float | None = None
    speaker: str | None = None


class Segment(_Document):
    id: int
    start: Seconds
    end: Seconds
    text: str
    speaker: str | None = None
    avg_logprob: float | None = None
    no_speech_prob: float | None = None
    words: tuple[Word, ...] = ()


class ObjectRef(_Document):
    """One version of one S3 object."""

    bucket: str
    key: str
    etag: str
    version_id: str | None = None


class ChunkRef(_Document):
    """A chunk as its session transcript used it: which audio, which result, where on the time line."""

    index: int
    key: str
    etag: str
    start: Seconds
    duration: Seconds
    status: Literal["transcribed", "failed"]
    outcome_key: str
    outcome_etag: str


class SessionRef(_Document):
    bucket: str
    manifest_key: str
    manifest_etag: str
    chunks: tuple[ChunkRef, ...]


class Gap(_Document):
    """A span without transcript, and why."""

    start: Seconds
    end: Seconds
    reason: str


class Transcript(_Document):
    # "pass" is a keyword of Python's: the field is `pass_` here and "pass" in every JSON.
    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    version: Literal[1] = 1
    text: str
    language: str | None = Field(default=None, description="ISO 639-1 code; absent when nothing was said")
    duration: Seconds = Field(description="decoded seconds of audio")
    segments: tuple[Segment, ...]
    source: ObjectRef | SessionRef | None = None
    model: str
    engine: str
    alignment: Literal["attention", "wav2vec2", "none"] = "none"
    route: Literal["direct", "queue"] | None = None
    pass_: Literal["live", "stitched"] | None = Field(
        default=None,
        validation_alias="pass",
        serialization_alias="pass",
        description="of a chunk: heard alone (live; so is one without this field), or with its neighbours (stitched)",
    )
    options: Options | None = Field(default=None, description="what was asked for, if it was anything special")
    created_at: Moment
    gaps: tuple[Gap, ...] = ()
    reason: str | None = Field(default=None, description="why there is no text, when the audio says so")

    @property
    def is_stitched(self) -> bool:
        return self.pass_ == "stitched"  # noqa: S105 (no password)

    def to_json(self) -> bytes:
        return self.model_dump_json(exclude_none=True).encode()


class ErrorRecord(_Document):
    """Why an input has no transcript; it lets a session complete without it."""

    version: Literal[1] = 1
    type: str
    message: str
    source: ObjectRef
    attempts: int
    header_etag: str | None = Field(default=None, description="of the chunk 1 that was of no help, if there was one")
    duration: Seconds | None = None
    created_at: Moment

    def to_json(self) -> bytes:
        return self.model_dump_json(exclude_none=True).encode()


def read_transcript(body: bytes) -> Transcript | None:
    """The transcript in `body`, or None when there is none to read: then the work must be done again."""
    try:
        return Transcript.model_validate_json(body)
    except ValidationError:
        return None


def read_error_record(body: bytes) -> ErrorRecord | None:
    try:
        return ErrorRecord.model_validate_json(body)
    except ValidationError:
        return None
