"""Media made byte by byte, so that their headers may say anything."""

import struct

from gpu_server import webm
from tests.gpu_server import media


def riff(
    *,
    rate: int = 16_000,
    channels: int = 1,
    bits: int = 16,
    block: int = 2,
    data: bytes = bytes(32_000),
    data_bytes: int = 0,
) -> bytes:
    form = struct.pack("<HHIIHH", 1, channels, rate, rate * 2 & 0xFFFFFFFF, block, bits)
    body = (
        b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", data_bytes or len(data)) + data
    )
    return b"RIFF" + struct.pack("<I", data_bytes or len(body)) + body


def caf(*, rate: float = 16_000.0, channels: int = 1) -> bytes:
    desc = struct.pack(">d4sIIIII", rate, b"lpcm", 0, 2 * channels & 0xFFFFFFFF, 1, channels, 16)
    data = bytes(32_000)
    return (
        b"caff\0\1\0\0desc"
        + struct.pack(">q", len(desc))
        + desc
        + b"data"
        + struct.pack(">q", 4 + len(data))
        + bytes(4)
        + data
    )


def matroska(*, rate: float = 16_000.0, channels: int = 1) -> bytes:
    """One track of PCM."""
    element = _element
    audio = element(b"\xb5", struct.pack(">d", rate)) + element(b"\x9f", channels.to_bytes(8, "big"))
    audio += element(b"\x62\x64", b"\x10")
    entry = element(b"\xd7", b"\1") + element(b"\x73\xc5", b"\1") + element(b"\x83", b"\2")
    entry += element(b"\x86", b"A_PCM/INT/LIT") + element(b"\xe1", audio)
    block = element(b"\xa3", b"\x81\0\0\x80" + bytes(3_200))
    cluster = element(webm.CLUSTER, element(b"\xe7", b"\0") + block)
    tracks = element(b"\x16\x54\xae\x6b", element(b"\xae", entry))
    return element(webm.EBML_HEADER, element(b"\x42\x82", b"matroska")) + element(b"\x18\x53\x80\x67", tracks + cluster)


def _element(identity: bytes, content: bytes) -> bytes:
    return identity + (0x01 << 56 | len(content)).to_bytes(8, "big") + content


def quicktime(place: bytes) -> bytes:
    """A film whose samples are said to be in another file (a `url ` data reference)."""
    whole = media.encode(media.tone(0.5), container="mov", codec="pcm_s16le")
    reference = b"url " + bytes(4) + place + b"\0"
    old = whole.index(b"dinf") - 4
    size = int.from_bytes(whole[old : old + 4], "big")
    dref = _box(b"dref", bytes(4) + b"\0\0\0\1" + _box(reference[:4], reference[4:]))
    new = _box(b"dinf", dref)
    body = bytearray(whole[:old] + new + whole[old + size :])
    for holder in (b"moov", b"trak", b"mdia", b"minf"):
        at = body.index(holder) - 4
        body[at : at + 4] = (int.from_bytes(body[at : at + 4], "big") + len(new) - size).to_bytes(4, "big")
    return bytes(body)


def _box(kind: bytes, content: bytes) -> bytes:
    return (8 + len(content)).to_bytes(4, "big") + kind + content


def nested(kind: bytes, depth: int) -> bytes:
    return b"".join((8 * (depth - level)).to_bytes(4, "big") + kind for level in range(depth))


def id3(text: bytes) -> bytes:
    """A tag with `text` in a user's URL frame."""
    frame = b"WXXX" + _synchsafe(len(text) + 2) + b"\0\0\0\0" + text
    return b"ID3\x04\0\0" + _synchsafe(len(frame)) + frame


def _synchsafe(number: int) -> bytes:
    return bytes(number >> shift & 0x7F for shift in (21, 14, 7, 0))
