"""The errors that callers act on.

RouterError
├── PermanentError      the input is at fault: record the failure, never retry
│   ├── RefusedKey      a key that would collide with another or that S3 names badly
│   ├── BadEvent        an event nobody can read
│   ├── BadMessage      a queue message nobody can read
│   ├── BadManifest     metadata.json without a usable chunkCount
│   ├── SourceMissing   the audio is not (or no longer) in S3
│   └── InputRefused    the server, or the decoder, says that this audio cannot be transcribed
├── TransientError      try again later: retry, queue, or leave in the queue
│   ├── StoreUnavailable
│   └── Contended       lost a write race more often than any race can explain
└── SettingsError       a person must change the configuration; the program exits
"""


class RouterError(Exception):
    """Anything this system raises on purpose."""


class PermanentError(RouterError):
    """The input is at fault: retrying cannot help, so the failure is recorded.

    `type` is a stable slug for error records and problem documents; `status` is its HTTP status.
    """

    type = "refused"
    status = 422

    def __init__(self, message: str, *, type: str | None = None, status: int | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.type = type or self.type
        self.status = status or self.status


class RefusedKey(PermanentError):
    """An object key that must not enter the pipeline. `error_key` is where that is recorded."""

    type = "refused-key"

    def __init__(self, message: str, *, error_key: str) -> None:
        super().__init__(message)
        self.error_key = error_key


class BadEvent(PermanentError):
    type = "bad-event"
    status = 400


class BadMessage(PermanentError):
    type = "bad-message"
    status = 400


class BadManifest(PermanentError):
    type = "bad-manifest"


class SourceMissing(PermanentError):
    type = "source-missing"
    status = 404


class InputRefused(PermanentError):
    type = "input-refused"


class TransientError(RouterError):
    """Try again later: nothing is wrong with the input."""


# What a server says that could not do its part for want of S3, or of room on its disk.
STORE_UNAVAILABLE = "store-unavailable"
DISK_FULL = "disk-full"


class StoreUnavailable(TransientError):
    pass


class Contended(TransientError):
    pass


class SettingsError(RouterError):
    """The configuration is wrong. The message names the variable, its value and what is expected."""
