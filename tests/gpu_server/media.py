"""Makers of test media: genuine, damaged and hostile; all in memory, with PyAV."""

import ctypes
import io
import itertools
import os
import time
import zipfile
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from types import MappingProxyType

import av
import numpy as np
import pytest
from numpy.typing import NDArray

from gpu_server.decode_pool import decode_here
from gpu_server.decoding import Decoded, Limits

DATA = Path(__file__).parents[1] / "data"
SPEECH = Path(__file__).parents[3] / "shared" / "speech"  # not part of the project; may be absent
NEEDS_SPEECH = pytest.mark.skipif(not SPEECH.is_dir(), reason="the speech samples are not part of the project")

LAYOUTS = {1: "mono", 2: "stereo", 6: "5.1", 8: "7.1"}

PLAYLIST = b"#EXTM3U\n#EXT-X-TARGETDURATION:10\n#EXTINF:10.0,\nhttp://127.0.0.1:%d/secret.ts\n#EXT-X-ENDLIST\n"
CONCAT = b"ffconcat version 1.0\nfile 'http://127.0.0.1:%d/secret.wav'\n"
DASH = (
    b'<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static" '
    b'profiles="urn:mpeg:dash:profile:isoff-main:2011"><Period><AdaptationSet mimeType="audio/mp4">'
    b'<Representation id="1" bandwidth="1000"><BaseURL>http://127.0.0.1:%d/a.mp4</BaseURL>'
    b"</Representation></AdaptationSet></Period></MPD>"
)
SDP = b"v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=audio %d RTP/AVP 0\n"


def tone(seconds: float, *, rate: int = 16_000, hertz: float = 440.0) -> NDArray[np.int16]:
    """A sine, shape (samples,)."""
    times = np.arange(round(seconds * rate)) / rate
    return (8000 * np.sin(2 * np.pi * hertz * times)).astype(np.int16)


def murmur(seconds: float, *, rate: int = 48_000) -> NDArray[np.int16]:
    """A tone that swells in noise: unlike a plain tone's, no two of its encoded frames are alike."""
    sine = tone(seconds, rate=rate)
    swell = 0.2 + 0.8 * np.abs(np.sin(3 * np.arange(sine.size) / rate))
    return (sine * swell + np.random.default_rng(1).normal(0, 300, sine.size)).astype(np.int16)


def encode(
    samples: NDArray[np.int16],
    *,
    container: str,
    codec: str,
    rate: int = 16_000,
    channels: int = 1,
    options: Mapping[str, str] = MappingProxyType({}),
    codec_options: Mapping[str, str] = MappingProxyType({}),
) -> bytes:
    """`samples` (the same in each channel) as a media file."""
    file = io.BytesIO()
    with av.open(file, "w", format=container, options=dict(options)) as output:
        stream = output.add_stream(codec, rate=rate, layout=LAYOUTS[channels], options=dict(codec_options))
        interleaved = np.repeat(samples, channels)[np.newaxis]
        frame = av.AudioFrame.from_ndarray(interleaved, format="s16", layout=LAYOUTS[channels])
        frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), 0
        output.mux([*stream.encode(frame), *stream.encode(None)])
    return file.getvalue()


def webm(seconds: float = 1.0, **options: int) -> bytes:
    """A complete WebM file, as a browser's restarted MediaRecorder leaves it."""
    return encode(tone(seconds, rate=48_000), container="webm", codec="libopus", rate=48_000, **options)


def wav(seconds: float = 1.0, *, rate: int = 16_000, channels: int = 1) -> bytes:
    """16-bit PCM."""
    return encode(tone(seconds, rate=rate), container="wav", codec="pcm_s16le", rate=rate, channels=channels)


def mp3(seconds: float = 1.0) -> bytes:
    """MPEG layer 3."""
    return encode(tone(seconds), container="mp3", codec="libmp3lame")


def timesliced() -> tuple[bytes, bytes]:
    """A recording cut like ``MediaRecorder.start(timeslice)``: header and first block, then the rest."""
    whole = webm(2.0)
    first_block = whole.index(b"\xa3", whole.index(b"\x1f\x43\xb6\x75"))
    # Chrome cuts right after a block's id, which ends the earlier chunk.
    next_block = whole.index(b"\xa3", first_block + 100)
    while whole[next_block + 2] != 0x81 and whole[next_block + 3] != 0x81:
        next_block = whole.index(b"\xa3", next_block + 1)
    return whole[: next_block + 1], whole[next_block + 1 :]


def bomb(hours: int) -> bytes:
    """Hours of silence in a small WebM: one Opus packet, again and again."""
    silence = encode(np.zeros(48_000, np.int16), container="webm", codec="libopus", rate=48_000, channels=1)
    file = io.BytesIO()
    with av.open(io.BytesIO(silence)) as source, av.open(file, "w", format="webm") as output:
        template = source.streams.audio[0]
        stream = output.add_stream_from_template(template)
        first = bytes(next(packet for packet in source.demux(template) if packet.size))
        for number in range(hours * 3600 * 50):
            packet = av.Packet(first)
            packet.stream, packet.time_base = stream, Fraction(1, 1000)
            packet.pts = packet.dts = number * 20
            output.mux(packet)
    return file.getvalue()


def picture_only() -> bytes:
    """A film without sound."""
    file = io.BytesIO()
    with av.open(file, "w", format="mov") as output:
        stream = output.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 32
        for _ in range(5):
            output.mux(stream.encode(av.VideoFrame(32, 32, "yuv420p")))
        output.mux(stream.encode(None))
    return file.getvalue()


def zipped() -> bytes:
    """A zip archive with a sound inside."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("audio.wav", wav())
    return file.getvalue()


def decode_or_die(source: Path, pcm: Path, limits: Limits, seconds: float) -> Decoded:
    """A decoder (for a pool's child) that dies in the way the file's content names."""
    match source.read_bytes()[:16]:
        case b"segfault":
            ctypes.string_at(0)
        case b"exit":
            os._exit(7)
        case b"memory":
            bytearray(1 << 33)
        case b"sleep":
            time.sleep(60)
        case b"spin":
            while True:
                pass
        case b"environment":
            return Decoded(samples=0, reason=str(len(os.environ)))
    return decode_here(source, pcm, limits, seconds)


def recording(seconds: float = 2.0) -> bytes:
    """One WebM stream as MediaRecorder writes it: clusters as they come, nothing filled in afterwards."""
    return encode(
        murmur(seconds),
        container="webm",
        codec="libopus",
        rate=48_000,
        options={"live": "1", "cluster_time_limit": "700"},
    )


def ogg_recording(seconds: float = 2.0, *, page_ms: int = 200) -> bytes:
    """One Ogg stream, as Firefox records."""
    options = {"page_duration": str(page_ms * 1000)}
    return encode(murmur(seconds), container="ogg", codec="libopus", rate=48_000, options=options)


def ogg_with_open_pages(seconds: float = 4.0) -> bytes:
    """Ogg whose pages end in the middle of a packet: six lacing values each, and a page holds 255."""
    return encode(
        murmur(seconds),
        container="ogg",
        codec="libopus",
        rate=48_000,
        channels=2,
        options={"page_duration": "10000000"},
        codec_options={"b": "510000", "vbr": "off"},
    )


FRAGMENTS = "frag_keyframe+empty_moov+default_base_moof"


def mp4_recording(seconds: float = 2.0, *, codec: str = "aac", flags: str = FRAGMENTS, rate: int = 48_000) -> bytes:
    """MP4 fragments of 0.3 s, as Safari and Chrome record."""
    return encode(
        murmur(seconds, rate=rate),
        container="mp4",
        codec=codec,
        rate=rate,
        options={"movflags": flags, "frag_duration": "300000"},
    )


def boxes(body: bytes, kind: bytes) -> list[int]:
    """Where the outermost boxes of one kind begin."""
    found, position = [], 0
    while position < len(body):
        if body[position + 4 : position + 8] == kind:
            found.append(position)
        position += int.from_bytes(body[position : position + 4], "big")
    return found


def pages(body: bytes) -> list[int]:
    """Where the pages of an Ogg file begin."""
    found, position = [], 0
    while position < len(body):
        found.append(position)
        lacing = body[position + 27 : position + 27 + body[position + 26]]
        position += 27 + len(lacing) + sum(lacing)
    return found


def recording_of(speech: Path) -> bytes:
    """An Opus file's own packets as one live WebM stream."""
    file = io.BytesIO()
    options = {"live": "1", "cluster_time_limit": "5000"}
    with av.open(str(speech)) as source, av.open(file, "w", format="webm", options=options) as output:
        stream = output.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.size:
                packet.stream = stream
                output.mux(packet)
    return file.getvalue()


def timeslices(recording: bytes, count: int) -> list[bytes]:
    """`recording` in `count` pieces of about one length, cut wherever that falls."""
    edges = [len(recording) * number // count for number in range(count + 1)]
    return [recording[start:end] for start, end in itertools.pairwise(edges)]
