"""Looks at every output while the faults go on: wrong for an instant is wrong."""

import threading
from collections.abc import Callable, Sequence
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError

from shared.keys import DERIVED_FORMATS
from tests.faults.oracle import Upload, regressions, wrong_outcome, wrong_session

LOOK_SECONDS = 0.2


class Watch:
    """Use as a context manager. `looks`: versions of outputs that were seen; `wrong`: what was wrong with them."""

    def __init__(self, s3: Any, bucket: str, uploads: Callable[[], Sequence[Upload]]) -> None:
        self._s3 = s3
        self._bucket = bucket
        self._uploads = uploads
        self._seen: dict[str, tuple[str, bytes]] = {}
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look_until_stopped, daemon=True)
        self.looks = 0
        self.sessions = 0
        self.wrong: list[str] = []

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def look(self) -> None:
        """Every output that is new or has changed since the last look."""
        pages = self._s3.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix="users/")
        listed = {item["Key"]: item["ETag"] for page in pages for item in page.get("Contents", ())}
        for key, etag in listed.items():
            is_output = "/transcripts/" in key and not key.endswith(tuple(DERIVED_FORMATS))
            if is_output and self._seen.get(key, ("",))[0] != etag:
                self._examine(key)

    def _examine(self, key: str) -> None:
        try:
            answer = self._s3.get_object(Bucket=self._bucket, Key=key)
        except self._s3.exceptions.NoSuchKey:
            return
        etag, body = answer["ETag"], answer["Body"].read()
        uploads = self._uploads()
        check = wrong_outcome if "-chunk-" in key else wrong_session
        self.wrong += check(key, body, uploads)
        if key in self._seen:
            self.wrong += regressions(key, self._seen[key][1], body, uploads)
        self._seen[key] = (etag, body)
        self.looks += 1
        self.sessions += check is wrong_session

    def _look_until_stopped(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            try:
                self.look()
            except (ClientError, BotoCoreError):
                continue  # the local AWS is being started again
