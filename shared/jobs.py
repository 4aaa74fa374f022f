"""The unit of work: one audio object version that wants a transcript, and its SQS message (version 1)."""

import hashlib
import re
from datetime import UTC, datetime
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    StrictBool,
    ValidationError,
    field_validator,
    model_validator,
)

from shared.errors import BadMessage, RefusedKey
from shared.keys import AudioKey, ChunkKey, parse_audio_key

# About what a second takes: Opus between the 3,000 of a thrifty producer and the 16,000 of Chromium's recorder, MP3 and
# AAC at 128 kbit/s, FLAC and WAV of one channel at 16 kHz. For how much work waits, not for any transcript.
BYTES_A_SECOND = {"webm": 8_000, "ogg": 8_000, "opus": 8_000, "flac": 20_000, "wav": 32_000}
BYTES_A_SECOND_OF_OTHERS = 16_000


def bare_etag(etag: str | None) -> str | None:
    """ETags are opaque, but some senders quote them and some don't; an empty one is none."""
    return etag.strip('"') or None if etag else None


# Of an ETag's characters (RFC 9110, section 8.8.3) those of ASCII: it goes into a header, which it must not break.
ETag = Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[\x21\x23-\x7e]+$")]
GivenETag = Annotated[
    str | None, Field(max_length=258, pattern=r'^"?[\x21\x23-\x7e]{0,256}"?$'), AfterValidator(bare_etag)
]


def _with_zone(moment: datetime) -> datetime:
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


Moment = Annotated[datetime, AfterValidator(_with_zone)]  # whoever names no zone means UTC


class Options(BaseModel):
    """What a caller may ask of a transcription. Empty fields are left to the server."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    language: str | None = Field(default=None, max_length=16, description="ISO 639-1 code; detected when absent")
    task: Literal["transcribe", "translate"] = "transcribe"
    initial_prompt: str | None = Field(default=None, max_length=2000)
    hotwords: str | None = Field(default=None, max_length=2000)
    word_timestamps: StrictBool = True

    @field_validator("language")
    @classmethod
    def _without_region(cls, language: str | None) -> str | None:
        """Browsers say "en-US"; the models know "en"."""
        return re.split("[-_]", language)[0].strip().lower() or None if language else None


class Reason(StrEnum):
    """Why a job is in the queue."""

    UNHEALTHY = "unhealthy"
    FAILED = "failed"
    FORCED = "forced"
    DEFERRED = "deferred"
    SAFETY_NET = "safety_net"
    SWEPT = "swept"
    BACKFILL = "backfill"  # a person queued an archive


class Job(BaseModel):
    """One audio object version. Equal (bucket, key, etag) means equal work, wherever it comes from."""

    model_config = ConfigDict(frozen=True)

    bucket: str = Field(min_length=3, max_length=63)
    key: str = Field(min_length=1, max_length=1024)
    etag: ETag
    version_id: str | None = Field(default=None, max_length=1024)
    size: int | None = Field(default=None, ge=0)
    options: Options = Options()

    @property
    def audio(self) -> AudioKey:
        """What the key says. Raises RefusedKey where `parse_audio_key` does."""
        return parse_audio_key(self.key)

    @property
    def output_key(self) -> str:
        return self.audio.output_key

    @property
    def audio_seconds(self) -> float | None:
        """How long the audio is, guessed from its size; None where nobody said that."""
        if self.size is None:
            return None
        return self.size / BYTES_A_SECOND.get(self.key.rpartition(".")[2].lower(), BYTES_A_SECOND_OF_OTHERS)

    @property
    def job_id(self) -> str:
        """One name for every duplicate: derived from bucket, key and ETag."""
        return hashlib.sha256("\n".join((self.bucket, self.key, self.etag)).encode()).hexdigest()[:32]


class JobMessage(BaseModel):
    """A job on its way through SQS. Unknown fields are kept, so that an older program can pass them on."""

    model_config = ConfigDict(frozen=True, extra="allow")

    version: Literal[1] = 1
    job_id: str
    bucket: str
    key: str
    etag: str
    version_id: str | None = None
    size: int | None = None
    output_key: str
    user_id: str | None = None
    session_id: str | None = None
    chunk_index: int | None = None
    options: Options = Options()
    reason: Reason
    queued_at: Moment

    @model_validator(mode="after")
    def _derived_fields_agree(self) -> "JobMessage":
        # The queue must not become a way to write anywhere: both names follow from the key alone.
        job = self.job()
        try:
            output_key = job.output_key
        except RefusedKey as error:
            raise ValueError(error.message) from error
        if self.output_key != output_key:
            raise ValueError("output_key does not follow from key")
        if self.job_id != job.job_id:
            raise ValueError("job_id does not follow from bucket, key and etag")
        return self

    @classmethod
    def of(cls, job: Job, reason: Reason, *, now: datetime | None = None) -> "JobMessage":
        audio = job.audio
        chunk = audio if isinstance(audio, ChunkKey) else None
        return cls(
            job_id=job.job_id,
            output_key=audio.output_key,
            user_id=chunk.session.user if chunk else None,
            session_id=chunk.session.id if chunk else None,
            chunk_index=chunk.index if chunk else None,
            reason=reason,
            queued_at=now or datetime.now(UTC),
            **job.model_dump(),
        )

    def job(self) -> Job:
        return Job(
            bucket=self.bucket,
            key=self.key,
            etag=self.etag,
            version_id=self.version_id,
            size=self.size,
            options=self.options,
        )

    def to_json(self) -> str:
        # ASCII only: SQS refuses some Unicode characters that S3 keys may hold.
        return self.model_dump_json(exclude_none=True, ensure_ascii=True)


def parse_job_message(document: object) -> JobMessage:
    """Raises BadMessage when `document` is not a version 1 job."""
    try:
        return JobMessage.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(map(str, first["loc"])) or "message"
        raise BadMessage(f"not a version 1 job: {field}: {first['msg']}") from error
