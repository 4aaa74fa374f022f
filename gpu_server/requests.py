"""What callers may ask, as FastAPI reads and documents it."""

import re
from typing import Annotated, Literal, Self

from fastapi import Form
from pydantic import BaseModel, ConfigDict, Field, StrictBool, model_validator

from gpu_server.problems import Refused
from gpu_server.transcriber import Route
from shared.jobs import GivenETag, Options
from shared.transcript import Transcript

MAX_CHUNKS = 2000  # in one request

_S3_PATH = re.compile(r"s3://([a-z0-9][a-z0-9.-]{1,61}[a-z0-9])/(.+)", re.DOTALL)


class TranscribeS3(Options):
    """A job whose audio and result are in S3."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={
            "examples": [{"s3_input_path": "s3://bucket/users/ann/audio/sessions/standup/chunk-1.webm"}]
        },
    )

    s3_input_path: str = Field(max_length=1100, description="s3://bucket/key of the audio")
    s3_output_path: str | None = Field(
        default=None, max_length=1100, description="s3://bucket/transcripts/….json for a further copy of the result"
    )
    return_text: StrictBool = Field(default=True, description="answer with the transcript; false: with a receipt")
    wait: StrictBool = Field(default=True, description="false: answer 202 at once; the result goes to S3")
    etag: GivenETag = Field(default=None, description="only if the audio still is this version")
    version_id: str | None = Field(default=None, max_length=1024, description="kept in the transcript")
    retry_failed: StrictBool = Field(default=False, description="try again although this audio's failure is on record")
    new: StrictBool = Field(default=False, description="nothing lies at its output keys: the caller has just looked")
    alone: StrictBool = Field(default=False, description="only with nothing else at work: a suspect's last try")
    route: Route = Field(default="direct", description="how the job came here; kept in the transcript")


class ChunkPath(BaseModel):
    """One chunk of a session."""

    model_config = ConfigDict(extra="forbid")

    s3_input_path: str = Field(max_length=1100, description="s3://bucket/key of the audio")
    etag: GivenETag = Field(default=None, description="only if the audio still is this version")
    version_id: str | None = Field(default=None, max_length=1024, description="kept in the transcript")


class TranscribeSession(Options):
    """Chunks of one session, to be heard together: either these, in any order, or all that are in S3."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra={"examples": [{"s3_session_path": "s3://bucket/users/ann/audio/sessions/standup/"}]},
    )

    chunks: tuple[ChunkPath, ...] = Field(default=(), max_length=MAX_CHUNKS, description="of one session")
    s3_session_path: str | None = Field(
        default=None, max_length=1100, description="s3://bucket/users/…/audio/sessions/…/ for every chunk there"
    )
    return_text: StrictBool = Field(default=True, description="answer with the chunks' common transcript, too")
    wait: StrictBool = Field(default=True, description="false: answer 202 at once; the results go to S3")
    retry_failed: StrictBool = Field(default=False, description="try chunks again whose failure is on record")
    route: Route = Field(default="direct", description="how the jobs came here; kept in the transcripts")

    @model_validator(mode="after")
    def _one_or_the_other(self) -> Self:
        if bool(self.chunks) == bool(self.s3_session_path):
            raise ValueError("give either chunks or s3_session_path")
        return self


class ChunkReceipt(BaseModel):
    """How one chunk ended: `written`, `already_done`, …, or `failed` and why."""

    s3_input_path: str
    status: str
    type: str | None = None
    message: str | None = None


class SessionReceipt(BaseModel):
    """What became of a session's chunks; their common transcript when it was asked for."""

    session: str
    s3_output_path: str
    status: Literal["done", "accepted"]
    chunks: tuple[ChunkReceipt, ...] = ()
    transcript: Transcript | None = None


class TranscribeUrl(Options):
    """Audio that the server is to fetch."""

    model_config = ConfigDict(
        extra="forbid", json_schema_extra={"examples": [{"audio_url": "https://example.com/talk.mp3"}]}
    )

    audio_url: str = Field(max_length=4096)


class Receipt(BaseModel):
    """What a caller that doesn't want the text gets."""

    job_id: str
    status: str
    s3_output_path: str


class Healthy(BaseModel):
    status: str
    reason: str | None = None
    device: str | None = None
    model: str | None = None
    engine: str | None = None
    capacity: int
    in_flight: int


def upload_options(
    language: Annotated[str | None, Form(max_length=16)] = None,
    task: Annotated[str, Form(pattern="^(transcribe|translate)?$")] = "transcribe",
    initial_prompt: Annotated[str | None, Form(max_length=2000)] = None,
    hotwords: Annotated[str | None, Form(max_length=2000)] = None,
    word_timestamps: Annotated[bool, Form()] = True,
) -> Options:
    """The options of a multipart upload."""
    return Options(
        language=language or None,
        task="translate" if task == "translate" else "transcribe",
        initial_prompt=initial_prompt or None,
        hotwords=hotwords or None,
        word_timestamps=word_timestamps,
    )


def split_s3_path(path: str) -> tuple[str, str]:
    """(bucket, key) of an `s3://bucket/key` path; the key is taken as it stands. Raises Refused."""
    match = _S3_PATH.fullmatch(path)
    if not match:
        raise Refused(400, "invalid-s3-path", "An S3 path looks like s3://bucket/key.")
    return match.group(1), match.group(2)
