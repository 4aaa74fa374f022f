"""An S3 Inventory: the list of a bucket's objects that S3 writes once a day or a week.

https://docs.aws.amazon.com/AmazonS3/latest/userguide/storage-inventory-location.html
It may be a day old, knows objects by then gone or replaced, and is in no order: it says which keys to look at, no more.
"""

import csv
import gzip
import hashlib
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_plus

from pydantic import BaseModel, Field, ValidationError

from shared.errors import PermanentError
from shared.store import Store

HASHED_BYTES = 1 << 20  # at a time


class BadInventory(PermanentError):
    """Not an inventory that can be read. The message is for a person."""

    type = "bad-inventory"


class _File(BaseModel):
    key: str
    md5: str = Field(alias="MD5checksum")


class _Manifest(BaseModel):
    bucket: str = Field(alias="sourceBucket")
    format: str = Field(alias="fileFormat")
    schema_: str = Field(alias="fileSchema")
    files: list[_File]


@dataclass(frozen=True)
class Inventory:
    """`store`: the bucket that the inventory lies in, which need not be the one it is of."""

    store: Store
    etag: str
    columns: tuple[str, ...]
    files: tuple[_File, ...]

    def keys(self, after: str) -> Iterator[tuple[str, str]]:
        """Where each row is ("file:row"), and its key; only rows of current objects, and only those beyond `after`.

        Raises BadInventory.
        """
        first_file, last_row = map(int, after.split(":")) if after else (0, -1)
        for number in range(first_file, len(self.files)):
            for row, fields in self._rows(self.files[number]):
                if (number, row) > (first_file, last_row) and _is_current(fields):
                    yield f"{number}:{row}", unquote_plus(fields["Key"])  # a space comes as "+", and "+" as "%2B"

    def _rows(self, file: _File) -> Iterator[tuple[int, dict[str, str]]]:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "rows.csv.gz")
            self._download(file, path)
            with gzip.open(path, "rt", encoding="utf-8", newline="") as lines:
                for row, fields in enumerate(csv.reader(lines)):
                    if len(fields) != len(self.columns):
                        raise BadInventory(f"{file.key}: row {row + 1} has {len(fields)} columns, not {self.columns}")
                    yield row, dict(zip(self.columns, fields, strict=True))

    def _download(self, file: _File, path: Path) -> None:
        info = self.store.head(file.key)
        if info is None or not self.store.download(file.key, path, etag=info.etag):
            raise BadInventory(f"the inventory names {file.key}, which is not in {self.store.bucket}")
        digest = hashlib.md5(usedforsecurity=False)
        with path.open("rb") as body:
            while part := body.read(HASHED_BYTES):
                digest.update(part)
        if digest.hexdigest() != file.md5:
            raise BadInventory(f"{file.key} is not the file that the inventory was delivered with (its MD5 differs)")


def read_inventory(store: Store, manifest_key: str, *, of: str) -> Inventory:
    """The inventory whose `manifest.json` this is.

    Raises:
        BadInventory: there is none, or it is of another bucket than `of`, or not in CSV.
    """
    stored = store.get(manifest_key)
    if stored is None:
        raise BadInventory(f"there is no s3://{store.bucket}/{manifest_key}")
    try:
        manifest = _Manifest.model_validate_json(stored.body)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInventory(f"{manifest_key} is no inventory's manifest.json: {first['loc']}: {first['msg']}") from error
    columns = tuple(name.strip() for name in manifest.schema_.split(","))
    if manifest.format != "CSV" or "Key" not in columns:
        raise BadInventory(f"this reads inventories in CSV with a column Key, not {manifest.format} of {columns}")
    if manifest.bucket != of:
        raise BadInventory(f"the inventory is of bucket {manifest.bucket}, not of {of}")
    return Inventory(store, stored.etag, columns, tuple(manifest.files))


def _is_current(fields: dict[str, str]) -> bool:
    """An inventory of all versions has those that were replaced, and deletions."""
    return fields.get("IsLatest", "true").lower() == "true" and fields.get("IsDeleteMarker", "false").lower() != "true"
