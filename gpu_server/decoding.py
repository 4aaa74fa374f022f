"""Turn an untrusted media file into 16 kHz mono PCM; runs in a child process, never in the server.

    MediaError
    ├── EmptyMedia        nothing was uploaded
    ├── HeaderMissing     a continuation chunk of a browser recording: the header is in chunk 1
    ├── NotMedia          no allowed format recognises it
    ├── Undecodable       a known format, but no audio comes out of it
    ├── NoAudioStream     a video or picture without sound
    ├── TooLong           more audio than allowed, counted while decoding
    ├── TooManyChannels
    ├── RateTooHigh
    └── RateTooLow

Each has a stable ``type`` slug and the HTTP ``status`` it means. All are permanent: the same bytes
fail the same way again. A recording that holds no audio *yet* (the 5 to 110 bytes that a browser
leaves when a laptop falls asleep) is no error: it decodes to zero samples, with a reason.

Imports only PyAV and the standard library, so that the child is small and starts fast.
"""

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, ClassVar, cast

import av
import av.error
from av.audio.fifo import AudioFifo
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.audio.stream import AudioStream

from gpu_server import mp4
from gpu_server.containers import begins_as_file, continuation_of
from gpu_server.webm import CLUSTER, EBML_HEADER

SAMPLE_RATE = 16_000  # Hz: what Whisper hears
BYTES_PER_SAMPLE = 2  # s16le

# Without an allow-list FFmpeg follows the URLs inside a playlist and binds ports for an SDP text.
FORMATS = "matroska,webm,ogg,mov,mp4,m4a,3gp,3g2,mj2,mp3,wav,w64,flac,aac,aiff,caf,amr"
PROTOCOLS = "file,pipe"

# Up to here, unreadable bytes are a recorder that wrote no audio, not an error: binary of any kind,
# and what begins like a format we know (Safari's MP4 header takes some 700 bytes).
STUB_BYTES = 128
KNOWN_STUB_BYTES = 1024
SNIFF_BYTES = 1 << 20
RESAMPLED_TOGETHER = 9_600  # samples of the source: frames of 20 ms one by one would take twice the time


class MediaError(Exception):
    """The file can never be transcribed; ``str()`` is fit for a client's eyes."""

    type: ClassVar[str] = "media-error"
    status: ClassVar[int] = 422


class EmptyMedia(MediaError):
    """The file has no bytes."""

    type = "media-empty"


class HeaderMissing(MediaError):
    """A continuation chunk of a browser recording: decodable only behind the header of its chunk 1."""

    type = "media-header-missing"


class NotMedia(MediaError):
    """No allowed format recognises the bytes."""

    type = "media-not-recognised"
    status = 415


class Undecodable(MediaError):
    """The format is known, but the content is damaged or its codec is unknown."""

    type = "media-undecodable"


class NoAudioStream(MediaError):
    """Genuine media without sound."""

    type = "media-no-audio"


class TooLong(MediaError):
    """More decoded audio than :attr:`Limits.max_seconds`."""

    type = "media-too-long"
    status = 413


class TooManyChannels(MediaError):
    """More channels than :attr:`Limits.max_channels`."""

    type = "media-too-many-channels"


class RateTooHigh(MediaError):
    """A higher sampling rate than :attr:`Limits.max_rate`."""

    type = "media-rate-too-high"


class RateTooLow(MediaError):
    """A sampling rate at which nothing is heard, and a kilobyte would become hours."""

    type = "media-rate-too-low"


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one file may cost. Headers lie or are missing, so all is counted while decoding."""

    max_seconds: float = 4 * 3600.0
    max_channels: int = 8
    max_rate: int = 384_000  # Hz
    min_rate: int = 1_000  # Hz: a telephone's is 8,000
    max_streams: int = 32
    open_timeout_s: float = 10.0
    read_timeout_s: float = 10.0


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """What came out: ``samples`` of 16 kHz mono s16le.

    ``truncated``: the file broke off or could not be read further after some audio.
    ``skipped_packets``: damaged packets left out. ``reason``: why there are no samples.
    ``channels`` and ``rate`` (Hz) are the source's.
    """

    samples: int
    container: str = ""
    codec: str = ""
    channels: int = 0
    rate: int = 0
    truncated: bool = False
    skipped_packets: int = 0
    reason: str | None = None

    @property
    def duration(self) -> float:
        """Seconds of decoded audio: the only duration that can be trusted."""
        return self.samples / SAMPLE_RATE


def decode(source: Path, pcm: Path, *, limits: Limits) -> Decoded:
    """Decode the first audio stream of `source` into raw 16 kHz mono s16le at `pcm`.

    Memory stays bounded whatever the file says about itself. The content is sniffed: names and
    extensions do not matter. Raises :class:`MediaError`; then nothing is left at `pcm`.
    """
    try:
        with source.open("rb") as file, pcm.open("wb") as out:
            return _decode(file, out, limits=limits)
    except MediaError:
        pcm.unlink(missing_ok=True)
        raise


def _decode(file: BinaryIO, out: BinaryIO, *, limits: Limits) -> Decoded:
    size = os.fstat(file.fileno()).st_size
    if size == 0:
        raise EmptyMedia("The file is empty.")
    head = file.read(SNIFF_BYTES)
    readable = mp4.readable_bytes(file, size) if head[4:8] == mp4.FTYP else size
    file.seek(0)
    try:
        container = av.open(
            cast(Any, _Anonymous(file, readable)),
            mode="r",
            options={"format_whitelist": FORMATS, "protocol_whitelist": PROTOCOLS},
            container_options={"max_streams": str(limits.max_streams)},
            timeout=(limits.open_timeout_s, limits.read_timeout_s),
            metadata_errors="ignore",
        )
    except (av.error.FFmpegError, UnicodeError) as error:
        if _is_stub(head, size):
            return Decoded(samples=0, reason="header-only")
        raise _judge(head) from error
    with container:
        if not container.streams.audio:
            if not container.streams and head.startswith(EBML_HEADER):
                return Decoded(samples=0, container=container.format.name, reason="header-only")
            raise NoAudioStream("The file has no audio stream.")
        stream = container.streams.audio[0]
        if stream.codec_context is None:
            raise Undecodable("The audio's codec is unknown.")
        stream.codec_context.thread_count = 1
        sink = _Sink(out, limits=limits)
        in_mp4 = "mp4" in container.format.name
        packets, skipped, truncated = 0, 0, False
        try:
            for packet in container.demux(stream):
                if packet.is_corrupt and in_mp4:  # cut by the file's end: the next chunk of a recording has it whole
                    truncated = True
                    continue
                packets += packet.size > 0
                try:
                    frames = stream.codec_context.decode(packet)
                except av.error.FFmpegError as error:
                    _reraise_if_out_of_memory(error)
                    skipped += 1
                    continue
                for frame in frames:
                    sink.write(frame)
        except av.error.FFmpegError as error:
            _reraise_if_out_of_memory(error)
            truncated = True
        sink.finish()
        facts = _facts(container.format.name, stream)
    if sink.samples == 0 and packets > 0:
        raise Undecodable("The audio is damaged: none of it could be decoded.")
    return Decoded(
        samples=sink.samples,
        truncated=truncated and sink.samples > 0,
        skipped_packets=skipped,
        reason=None if sink.samples else "header-only",
        **facts,
    )


def _facts(container: str, stream: AudioStream) -> dict[str, Any]:
    context = stream.codec_context
    return {
        "container": container,
        "codec": context.codec.canonical_name,
        "channels": context.channels or 0,
        "rate": context.sample_rate or 0,
    }


class _Anonymous:
    """A file's first `size` bytes, without its name: FFmpeg would choose a demuxer by it, and the client chose it."""

    name = "audio"

    def __init__(self, file: BinaryIO, size: int) -> None:
        self.tell = file.tell
        self._file = file
        self._size = size

    def read(self, count: int) -> bytes:
        """As of a file, up to `size`."""
        return self._file.read(max(0, min(count, self._size - self.tell())))

    def seek(self, offset: int, whence: int = 0) -> int:
        """As of a file, but -1 instead of an exception: damaged files make FFmpeg seek below 0."""
        if whence == os.SEEK_END:
            offset, whence = self._size + offset, os.SEEK_SET
        try:
            return self._file.seek(offset, whence)
        except (OSError, ValueError, OverflowError):
            return -1


class _Sink:
    """Resamples and counts what it writes."""

    def __init__(self, out: BinaryIO, *, limits: Limits) -> None:
        self.samples = 0
        self._out = out
        self._limits = limits
        self._most = int(limits.max_seconds * SAMPLE_RATE)
        self._shape: tuple[str, str, int] | None = None
        self._collected = AudioFifo()
        self._resampler: AudioResampler | None = None

    def write(self, frame: AudioFrame) -> None:
        shape = (frame.format.name, frame.layout.name, frame.sample_rate)
        if shape != self._shape:  # some streams change format on the way
            self._check(frame)
            self.finish()
            self._shape = shape
            self._collected = AudioFifo()
            self._resampler = AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
        frame.pts = None  # time is counted in samples; gaps in timestamps are not filled
        self._collected.write(frame)
        if self._collected.samples >= RESAMPLED_TOGETHER:
            self._resample()

    def finish(self) -> None:
        """Write what is still held."""
        if self._resampler is not None:
            self._resample()
            self._take(self._resampler.resample(None))
            self._resampler = None

    def _resample(self) -> None:
        assert self._resampler is not None
        frame = self._collected.read()
        if frame is not None:
            self._take(self._resampler.resample(frame))

    def _check(self, frame: AudioFrame) -> None:
        limits = self._limits
        if frame.layout.nb_channels > limits.max_channels:
            raise TooManyChannels(f"The audio has more than {limits.max_channels} channels.")
        if frame.sample_rate > limits.max_rate:
            raise RateTooHigh(f"The audio's sampling rate is above {limits.max_rate} Hz.")
        if frame.sample_rate < limits.min_rate:
            raise RateTooLow(f"The audio's sampling rate is below {limits.min_rate} Hz.")

    def _take(self, frames: list[AudioFrame]) -> None:
        for frame in frames:
            self.samples += frame.samples
            if self.samples > self._most:
                raise TooLong(f"The audio is longer than {self._limits.max_seconds:g} seconds.")
            # A plane's buffer may be longer than its samples.
            self._out.write(memoryview(frame.planes[0])[: frame.samples * BYTES_PER_SAMPLE])


def _reraise_if_out_of_memory(error: Exception) -> None:
    if isinstance(error, MemoryError):
        raise error


def _is_stub(head: bytes, size: int) -> bool:
    """Whether an unreadable file is only what a recorder writes before its first audio."""
    if continuation_of(head):
        return False
    if head.startswith(EBML_HEADER):
        return size <= len(head) and CLUSTER not in head
    if begins_as_file(head):
        return size <= KNOWN_STUB_BYTES
    return size <= STUB_BYTES and not _is_text(head)


def _judge(head: bytes) -> MediaError:
    if continuation_of(head):
        return HeaderMissing(
            "This is a later part of a browser recording: it can only be decoded after the header "
            "in the recording's first chunk."
        )
    if begins_as_file(head):
        return Undecodable("The file is damaged: its header cannot be read.")
    return NotMedia("The content is not a supported audio or video format.")


def _is_text(head: bytes) -> bool:
    with contextlib.suppress(UnicodeDecodeError):
        return all(c.isprintable() or c in "\r\n\t" for c in head.decode())
    return False
