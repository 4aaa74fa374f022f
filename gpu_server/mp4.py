"""MP4 from a browser's MediaRecorder with a timeslice: `ftyp` and `moov` in chunk 1, then fragments, `moof` and `mdat`.

A later chunk can be decoded behind those two boxes and the fragment that began in the chunk before it. An AAC decoder
starts anew there: every sample is kept, but the first frame (21 ms at 48 kHz) fades in. A fragment is looked for in
the chunk before, and no further back. Boxes are from ISO/IEC 14496-12, section 8.8 for fragments; `dOps` is from
https://opus-codec.org/docs/opus_in_isobmff.html
"""

import re
from collections.abc import Iterator
from typing import BinaryIO, NamedTuple

MAX_BOX_HEADER = 16  # bytes: size and kind, and with size 1 a longer size
MOST_BOXES = 100_000  # side by side, so that no made-up file keeps the server busy; an hour has 24,000 fragments
FTYP, MOOV, MOOF, MDAT, FREE = b"ftyp", b"moov", b"moof", b"mdat", b"free"
# What a recording consists of behind its header.
LATER_BOXES = (MOOF, MDAT, b"styp", b"sidx", b"ssix", b"emsg", b"prft", b"mfra")
FILLING = (FREE, b"skip", b"uuid")
MOOF_AND_ITS_FIRST_BOX = re.compile(rb"moof\0\0\0\x10mfhd\0")
SAMPLE_TABLES = (b"stts", b"ctts", b"stsc", b"stsz", b"stz2", b"stco", b"co64", b"stss")

BASE_OFFSET = 0x1  # tfhd's flags
TFHD_BEFORE_SIZE = ((BASE_OFFSET, 8), (0x2, 4), (0x8, 4))  # fields that may stand before the default size
DEFAULT_SIZE = 0x10
DATA_OFFSET, FIRST_FLAGS, DURATION, SIZE, PER_SAMPLE = 0x1, 0x4, 0x100, 0x200, 0xF00  # trun's flags


class Box(NamedTuple):
    """Where a box is; its `end` may be beyond the data's."""

    kind: bytes
    start: int
    content: int
    end: int


def is_continuation(head: bytes) -> bool:
    """Whether `head` is MP4 from the middle of a recording: fragments, the first perhaps cut, and no header."""
    start = _first_box(head)
    return start is not None and all(box.kind in LATER_BOXES + FILLING for box in _boxes(head, start, len(head)))


def header_of(first_chunk: bytes) -> bytes | None:
    """`ftyp` and `moov`, or None when this is no such chunk.

    They ask no decoder to skip samples any more (FFmpeg would skip the edit list's 21 ms of AAC, or 6.5 ms of Opus, in
    every chunk), and describe none: some recorders describe the first fragment in `moov`.
    """
    ftyp = _box(first_chunk, 0)
    moov = next(_find(first_chunk, 0, len(first_chunk), MOOV), None)
    if ftyp is None or ftyp.kind != FTYP or moov is None or b"mvex" not in first_chunk[moov.start : moov.end]:
        return None
    header = bytearray(first_chunk[: ftyp.end] + first_chunk[moov.start : moov.end])
    for trak in _find(header, 0, len(header), MOOV, b"trak"):
        edits = _find(header, trak.content, trak.end, b"edts")
        tables = _find(header, trak.content, trak.end, b"mdia", b"minf", b"stbl")
        samples = (
            box for table in tables for box in _boxes(header, table.content, table.end) if box.kind in SAMPLE_TABLES
        )
        for box in (*edits, *samples):
            header[box.start + 4 : box.start + 8] = FREE
    opus = header.find(b"dOps")  # four letters, version, channels, pre-skip
    if opus != -1:
        header[opus + 6 : opus + 8] = bytes(2)
    return bytes(header)


def is_cut(head: bytes) -> bool:
    """Whether the fragment that the continuation begins with may have begun in the chunk before it."""
    box = _box(head, 0)
    return box is None or box.kind not in LATER_BOXES or box.kind == MDAT


def cut_element(chunk: bytes) -> bytes:
    """The start of the fragment (or other box) that `chunk` ends in the middle of; empty when it ends with a whole one.

    It describes only the samples that are not whole in `chunk`: they are all that is not decoded with it.
    """
    first = _box(chunk, 0)
    start = 0 if first and first.kind == FTYP else _first_box(chunk)
    if start is None:
        return b""
    moof, end = None, start
    for box in _boxes(chunk, start, len(chunk)):
        moof = box if box.kind == MOOF else None if box.kind == MDAT else moof
        end = box.end
    return _without_whole_samples(chunk[moof.start :]) if moof else chunk[end:]


def graft(header: bytes, cut: bytes, chunk: bytes) -> bytes:
    """A file that can be decoded: the recording's header, what `cut_element` found before the chunk, the chunk."""
    start = 0 if cut else _first_box(chunk) or 0
    file = bytearray(header + cut + chunk[start:])
    for moof in _find(file, 0, len(file), MOOF):
        for tfhd in _find(file, moof.content, moof.end, b"traf", b"tfhd"):
            if _int(file, tfhd.content) & BASE_OFFSET:  # where the fragment was in the whole recording
                file[tfhd.content + 8 : tfhd.content + 16] = moof.start.to_bytes(8, "big")
    return bytes(file)


def readable_bytes(file: BinaryIO, size: int) -> int:
    """How much of `file` to decode: all but a box that its end cuts, for which FFmpeg may refuse all, unless `mdat`."""
    position = 0
    for _ in range(MOST_BOXES):
        file.seek(position)
        box = _box(file.read(MAX_BOX_HEADER), 0)
        if box is None:
            break
        if position + box.end > size:
            return size if box.kind == MDAT else position
        position += box.end
    return size


def _first_box(chunk: bytes) -> int | None:
    """Where the first box of a continuation begins; None when this is none."""
    box = _box(chunk, 0)
    if box and box.kind in LATER_BOXES:
        return 0
    moof = MOOF_AND_ITS_FIRST_BOX.search(chunk, 4)
    return moof.start() - 4 if moof and MOOV not in chunk[: moof.start()] else None


def _without_whole_samples(fragment: bytes) -> bytes:
    """`fragment`, a `moof` and the start of its `mdat`, with only those samples described that end beyond it."""
    moof = _box(fragment, 0)
    assert moof is not None
    described = b""
    for box in _boxes(fragment, moof.content, moof.end):
        described += _rest_of_track(fragment, box) if box.kind == b"traf" else fragment[box.start : box.end]
    # What was taken out is filled up, and a box's eight bytes more: so all offsets grow by eight.
    filling = _made(FREE, bytes(moof.end - moof.content - len(described)))
    return _made(MOOF, described) + filling + fragment[moof.end :]


def _rest_of_track(fragment: bytes, track: Box) -> bytes:
    default_size, described = 0, b""
    for box in _boxes(fragment, track.content, track.end):
        if box.kind == b"tfhd" and (flags := _int(fragment, box.content)) & DEFAULT_SIZE:
            before = sum(width for flag, width in TFHD_BEFORE_SIZE if flags & flag)
            default_size = _int(fragment, box.content + 8 + before)
        is_run = box.kind == b"trun" and _int(fragment, box.content) & DATA_OFFSET
        described += _rest_of_run(fragment, box, default_size) if is_run else fragment[box.start : box.end]
    return _made(b"traf", described)


def _rest_of_run(fragment: bytes, run: Box, default_size: int) -> bytes:
    """The run of samples without those that are whole in `fragment`, and eight bytes further."""
    flags, count, offset = (_int(fragment, run.content + place) for place in (0, 4, 8))
    table = run.content + 12 + (4 if flags & FIRST_FLAGS else 0)
    width = 4 * (flags & PER_SAMPLE).bit_count()
    whole = 0
    if flags & SIZE:
        size_place = table + (4 if flags & DURATION else 0)
        count = min(count, (run.end - table) // width)
        while whole < count and (end := offset + _int(fragment, size_place + whole * width)) <= len(fragment):
            offset, whole = end, whole + 1
    elif default_size:
        whole = min(count, max(0, len(fragment) - offset) // default_size)
        offset += whole * default_size
    numbers = b"".join(number.to_bytes(4, "big") for number in (flags, count - whole, (offset + 8) & 0xFFFFFFFF))
    rest = fragment[run.content + 12 : table] + fragment[table + whole * width : run.end]
    return _made(b"trun", numbers + rest)


def _find(data: bytes | bytearray, start: int, end: int, *path: bytes) -> Iterator[Box]:
    """The boxes at `path`, from the outermost kind to the innermost."""
    for box in _boxes(data, start, end):
        if box.kind == path[0]:
            yield from _find(data, box.content, box.end, *path[1:]) if path[1:] else (box,)


def _boxes(data: bytes | bytearray, start: int, end: int) -> Iterator[Box]:
    """The whole boxes from `start`, one after the other."""
    for _ in range(MOST_BOXES):
        box = _box(data, start)
        if box is None or box.end > end:
            break
        yield box
        start = box.end


def _box(data: bytes | bytearray, start: int) -> Box | None:
    """The box at `start`; None when its header is cut, or says what no box can."""
    size, kind, content = _int(data, start), bytes(data[start + 4 : start + 8]), start + 8
    if size == 1:
        size, content = int.from_bytes(data[start + 8 : start + 16], "big"), start + 16
    return Box(kind, start, content, start + size) if len(data) >= content and size >= content - start else None


def _int(data: bytes | bytearray, start: int) -> int:
    return int.from_bytes(data[start : start + 4], "big")


def _made(kind: bytes, content: bytes) -> bytes:
    return (8 + len(content)).to_bytes(4, "big") + kind + content
