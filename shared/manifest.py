"""A session's manifest, `metadata.json`: how many chunks there are. Everything else in it is the producer's."""

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from shared.errors import BadManifest
from shared.keys import MAX_CHUNKS

MAX_MANIFEST_BYTES = 64 * 1024


class Manifest(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")

    chunk_count: int = Field(alias="chunkCount", strict=True, ge=1, le=MAX_CHUNKS)


def parse_manifest(body: bytes) -> Manifest:
    """Raises BadManifest, with words for the producer of the recording."""
    if len(body) > MAX_MANIFEST_BYTES:
        raise BadManifest(f"metadata.json is larger than {MAX_MANIFEST_BYTES} bytes")
    try:
        return Manifest.model_validate_json(body)
    except ValidationError as error:
        problem = error.errors()[0]
        raise BadManifest(
            f'metadata.json must hold {{"chunkCount": N}}, N a whole number from 1 to {MAX_CHUNKS}: {problem["msg"]}'
        ) from error
