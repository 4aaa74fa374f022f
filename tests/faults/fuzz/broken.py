"""Broken and hostile media, all made here: cut at every boundary, bits flipped, bombs, impossible headers, pointers."""

import io
import random
import struct
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import av
import numpy as np

from gpu_server import webm
from tests.faults.fuzz.headers import caf, id3, matroska, nested, quicktime, riff
from tests.gpu_server import media

CLUSTER_SECONDS = 30
HEADER_BYTES = 128
# Opus, two frames of 60 ms without a byte of content (RFC 6716, section 3.2.3): silence at 8 bytes a second.
SILENT_PACKET, PACKET_MS = b"\x19", 120


@dataclass(frozen=True)
class Case:
    """`like`: what it was made from, whose length it can't exceed by much."""

    name: str
    content: bytes
    like: str | None = None


@cache
def samples() -> dict[str, bytes]:
    """One genuine file of each container that a browser or a phone makes."""
    return {
        "webm": media.recording(1.5),
        "ogg": media.ogg_recording(1.5),
        "mp4": media.mp4_recording(1.5),
        "mp4 with its samples in moov": media.encode(media.tone(1.5), container="ipod", codec="aac"),
        "mp3": media.mp3(1.5),
        "wav": media.wav(1.5),
        "flac": media.encode(media.murmur(1.5), container="flac", codec="flac", rate=48_000),
        "adts": media.encode(media.tone(1.5), container="adts", codec="aac"),
        "caf": media.encode(media.tone(1.5), container="caf", codec="pcm_s16le"),
        "aiff": media.encode(media.tone(1.5), container="aiff", codec="pcm_s16be"),
        "w64": media.encode(media.tone(1.5), container="w64", codec="pcm_s16le"),
    }


def boundaries(name: str) -> list[int]:
    """Where something begins or ends inside a sample: elements, pages, boxes; else packets, and words of the header."""
    body = samples()[name]
    match name:
        case "webm":
            return _elements(body)
        case "ogg":
            pages = media.pages(body)
            return sorted({*pages, *(page + 27 for page in pages), *(page + 27 + body[page + 26] for page in pages)})
        case "mp4" | "mp4 with its samples in moov":
            return _boxes(body, 0, len(body))
    return _packets(body)


def cut(*, near: Sequence[int], stride: int) -> Iterator[Case]:
    """Every sample without its end, or its beginning, at and `near` each boundary, and at a stride of bytes."""
    for name, body in samples().items():
        places = {place + distance for place in boundaries(name) for distance in near}
        places |= set(range(0, len(body), stride))
        for place in sorted(place for place in places if 0 < place < len(body)):
            yield Case(f"{name} up to {place}", body[:place], like=name)
            yield Case(f"{name} from {place}", body[place:], like=name)


def flipped(*, count: int, seed: int) -> Iterator[Case]:
    """Samples with some bits wrong, half of them in the first bytes, where the headers are."""
    dice = random.Random(seed)
    for number in range(count):
        name = dice.choice(list(samples()))
        content = bytearray(samples()[name])
        within = dice.choice([256, len(content)])
        for _ in range(dice.choice([1, 3, 30])):
            content[dice.randrange(min(within, len(content)))] ^= 1 << dice.randrange(8)
        yield Case(f"{name}, flipped {number} of seed {seed}", bytes(content))


def silence(hours: float) -> bytes:
    """A live WebM of `hours`, 200 kB each."""
    recording = media.recording(0.3)
    blocks = b"".join(
        b"\xa3\x85\x81" + time.to_bytes(2, "big") + b"\x80" + SILENT_PACKET
        for time in range(0, CLUSTER_SECONDS * 1000, PACKET_MS)
    )
    clusters = (
        webm.CLUSTER
        + b"\x01"
        + b"\xff" * 7
        + b"\xe7\x84"
        + (number * CLUSTER_SECONDS * 1000).to_bytes(4, "big")
        + blocks
        for number in range(int(hours * 3600 / CLUSTER_SECONDS))
    )
    return recording[: recording.index(webm.CLUSTER)] + b"".join(clusters)


def wide_flac(hours: float) -> bytes:
    """Silence in 8 channels at 192 kHz: 34 bytes for a third of a second that is 1 MB of samples."""
    one = media.encode(
        np.zeros(2 * 192_000, np.int16),
        container="flac",
        codec="flac",
        rate=192_000,
        channels=8,
        codec_options={"frame_size": "65535"},
    )
    first = one.index(b"\xff\xf8")  # a frame of fixed size
    return one[:first] + one[first:] * round(hours * 1800)


def bombs(hours: float) -> Iterator[Case]:
    """Little that becomes much: in time, in width, and in the resampler."""
    yield Case(f"{hours:g} h of silence", silence(hours))
    yield Case(f"{hours / 24:g} h of 8 channels at 192 kHz", wide_flac(hours / 24))
    yield Case("18 h in a second's bytes: 1 Hz", riff(rate=1, data=bytes(2 * 65_536)))
    yield Case("a RIFF that claims 4 GB", riff(data_bytes=0xFFFFFFFF))
    yield Case("an MP4 that claims 2^62 bytes of moov", media.mp4_recording(0.3)[:28] + b"\0\0\0\1moov" + b"\x3f" * 8)
    yield Case("an MP4 of a million empty boxes", media.mp4_recording(0.3)[:28] + b"\0\0\0\x08free" * 1_000_000)
    yield Case("an MP4 of boxes in boxes", media.mp4_recording(0.3)[:28] + nested(b"moov", 5_000))
    yield Case("EBML that is deep", samples()["webm"][:40] + b"\xa0\x01\xff\xff\xff\xff\xff\xff\xff" * 100_000)
    yield Case("a megabyte of block ids", b"\xa3" * (1 << 20))


def impossible() -> Iterator[Case]:
    """Headers that no recorder writes: rates and channels that are nothing, or more than there can be."""
    for rate in (0, 1, 2**31 - 1, 2**32 - 1):
        yield Case(f"WAV at {rate} Hz", riff(rate=rate))
    for channels in (0, 9, 255, 65_535):
        yield Case(f"WAV of {channels} channels", riff(channels=channels))
    for rate in (0.0, -48_000.0, 1e-9, 1e300, float("nan"), float("inf")):
        yield Case(f"CAF at {rate} Hz", caf(rate=rate))
    for channels in (0, 1_000_000, 2**32 - 1):
        yield Case(f"CAF of {channels} channels", caf(channels=channels))
    for rate in (0.0, 1.0, -1.0, 1e300, float("nan")):
        yield Case(f"Matroska at {rate} Hz", matroska(rate=rate))
    for channels in (0, 1_000_000, 2**32 - 1):
        yield Case(f"Matroska of {channels} channels", matroska(channels=channels))
    for bits in (0, 1, 7, 65_535):
        yield Case(f"WAV of {bits} bits a sample", riff(bits=bits))
    for block in (0, 65_535):
        yield Case(f"WAV with blocks of {block} bytes", riff(block=block))
    yield Case("MP4 with its time base 0", samples()["mp4"].replace(b"\0\0\xbb\x80", b"\0\0\0\0"))
    yield Case("Ogg Opus of 255 channels", samples()["ogg"].replace(b"OpusHead\x01\x01", b"OpusHead\x01\xff"))


def pointers(url: str, file: Path) -> Iterator[Case]:
    """Lists and headers that name an address, or a file beside the server, in every way FFmpeg has to follow one."""
    for place in (
        url,
        file.as_uri(),
        str(file),
        f"../{file.name}",
        f"concat:{file}",
        f"subfile,,start,0,end,0,,:{file}",
    ):
        text = place.encode()
        yield Case(f"m3u8 to {place}", b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\n" + text + b"\n#EXT-X-ENDLIST\n")
        key = b'#EXTM3U\n#EXT-X-KEY:METHOD=AES-128,URI="' + text + b'"\n#EXTINF:9,\n' + text + b"\n"
        yield Case(f"m3u8 with its key at {place}", key)
        yield Case(
            f"m3u8 with its map at {place}", b'#EXTM3U\n#EXT-X-MAP:URI="' + text + b'"\n#EXTINF:9,\n' + text + b"\n"
        )
        yield Case(f"ffconcat of {place}", b"ffconcat version 1.0\nfile '" + text + b"'\n")
        yield Case(f"PLS of {place}", b"[playlist]\nNumberOfEntries=1\nFile1=" + text + b"\n")
        yield Case(f"ASX of {place}", b'<asx version="3.0"><entry><ref href="' + text + b'"/></entry></asx>')
        yield Case(
            f"XSPF of {place}", b"<?xml version='1.0'?><playlist><track><location>" + text + b"</location></track>"
        )
        yield Case(f"SMIL of {place}", b'<smil><body><audio src="' + text + b'"/></body></smil>')
        yield Case(f"RealMedia's .ram of {place}", text + b"\n")
        yield Case(f"QuickTime whose data is at {place}", quicktime(text))
        yield Case(f"DASH at {place}", media.DASH.replace(b"http://127.0.0.1:%d/a.mp4", text))
    port = int(url.rpartition(":")[2].partition("/")[0])
    yield Case("SDP", media.SDP % port)
    yield Case("RTSP", b"RTSP/1.0 200 OK\r\nContent-Base: " + url.encode() + b"\r\n\r\n")


def polyglots(url: str, file: Path) -> Iterator[Case]:
    """Files that are two things at once: one of them points elsewhere."""
    for pointer in pointers(url, file):
        if pointer.name.startswith(("m3u8 to", "ffconcat", "SDP")):
            text = pointer.content
            yield Case(f"ID3 and {pointer.name}", b"ID3\x04\0\0\0\0\0\0" + text)
            yield Case(f"RIFF and {pointer.name}", b"RIFF" + struct.pack("<I", len(text)) + b"WAVE" + text)
            yield Case(f"{pointer.name}, then a WAV", text + samples()["wav"])
            yield Case(f"a WAV, then {pointer.name}", samples()["wav"] + text)
            yield Case(f"an MP3 with {pointer.name} in its tag", id3(text) + samples()["mp3"])
            yield Case(f"WebM with {pointer.name} behind it", samples()["webm"] + text)
    archive = io.BytesIO(samples()["wav"])
    with zipfile.ZipFile(archive, "a") as inside:
        inside.writestr("audio.mp3", samples()["mp3"])
    yield Case("a WAV that is a zip archive too", archive.getvalue())
    yield Case("a GIF that is an MP3 too", b"GIF89a\1\0\1\0\0\0\0;" + samples()["mp3"])
    yield Case("HTML that is an MP3 too", b"<html><script src='" + url.encode() + b"'></script>" + samples()["mp3"])
    yield Case("a PDF that is a WAV too", b"%PDF-1.7\n" + samples()["wav"])
    yield Case("an ELF that is a FLAC too", b"\x7fELF" + bytes(60) + samples()["flac"])


def _packets(body: bytes) -> list[int]:
    """As FFmpeg finds them; before the first there is the header, sometimes with much room to grow."""
    with av.open(io.BytesIO(body)) as container:
        packets = [(packet.pos, packet.pos + packet.size) for packet in container.demux() if packet.pos is not None]
    return sorted({*range(0, min(packets[0][0], HEADER_BYTES), 4), *(place for packet in packets for place in packet)})


def _elements(body: bytes) -> list[int]:
    """Where the elements of a live WebM begin, and their contents; those that hold others are gone into."""
    holders = (b"\x1a\x45\xdf\xa3", b"\x18\x53\x80\x67", b"\x16\x54\xae\x6b", b"\xae", b"\xe1", webm.CLUSTER)
    places, position = [], 0
    while position < len(body):
        width = 9 - body[position].bit_length()
        identity = body[position : position + width]
        size_at = position + width
        size_width = 9 - body[size_at].bit_length()
        size = int.from_bytes(body[size_at : size_at + size_width], "big") & ((1 << (7 * size_width)) - 1)
        content = size_at + size_width
        places += [position, content]
        position = content if identity in holders else content + size
    return places


def _boxes(body: bytes, start: int, end: int) -> list[int]:
    holders = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf", b"mvex", b"edts", b"dinf")
    places = []
    while start + 8 <= end:
        size, kind = int.from_bytes(body[start : start + 4], "big"), body[start + 4 : start + 8]
        places += [start, start + 8]
        if kind in holders:
            places += _boxes(body, start + 8, start + size)
        start += max(size, 8)
    return places
