"""WebM from a browser's MediaRecorder with a timeslice: one stream, cut at arbitrary bytes, its header in chunk 1 only.

A later chunk can be decoded behind that header, a cluster's start, and whatever of its first element went with the
chunk before it (for Chrome: one byte, the block's id). Element ids are from RFC 9559:
https://www.rfc-editor.org/rfc/rfc9559
"""

import re
from collections.abc import Iterator
from itertools import islice

EBML_HEADER = b"\x1a\x45\xdf\xa3"  # how every WebM and Matroska file begins
CLUSTER = b"\x1f\x43\xb6\x75"
SIMPLE_BLOCK = b"\xa3"
NUMBERS = (b"\xe7", b"\xa7", b"\xab")  # a cluster's timestamp, position, size of the one before
MAX_NUMBER_BYTES = 8
RARE = (b"\xa0", b"\x1c\x53\xbb\x6b", b"\xec")  # block group, cues, void
CODEC_DELAY = re.compile(rb"\x56\xaa[\x81-\x88]")  # and its size in bytes
OPUS_HEAD, PRE_SKIP = b"OpusHead", 10  # the codec's private data: RFC 7845, section 5.1
ENOUGH = 4  # elements in a row that are no accident
# So that no made-up file keeps the server busy: of bytes at random every 256th looks like a block's start, and an hour
# has 200,000 blocks.
MOST_TRIED = 20_000
MOST_ELEMENTS = 200_000
CLUSTER_START = CLUSTER + b"\x01" + b"\xff" * 7 + b"\xe7\x81\x00"  # of unknown size, at time zero


def is_continuation(head: bytes) -> bool:
    """Whether `head` is WebM from the middle of a recording.

    Browsers cut inside an element (Chrome: right after a block's one-byte id), so the first whole
    element is searched for: several in a row, or as many as there are up to the end, are no accident.
    """
    return _first_element(head) is not None


def header_of(first_chunk: bytes) -> bytes | None:
    """What stands before the recording's first cluster, or None when this is no such chunk.

    It asks no decoder to skip samples any more: what is to be skipped (6.5 ms in most recordings) is in chunk 1.
    """
    end = first_chunk.find(CLUSTER)
    if not first_chunk.startswith(EBML_HEADER) or end < 0:
        return None
    header = bytearray(first_chunk[:end])
    for delay in CODEC_DELAY.finditer(first_chunk, 0, end):
        width = delay[0][-1] & 0x7F
        header[delay.end() : delay.end() + width] = bytes(width)
    opus = header.find(OPUS_HEAD)
    if opus != -1:
        header[opus + PRE_SKIP : opus + PRE_SKIP + 2] = bytes(2)
    return bytes(header)


def is_cut(head: bytes) -> bool:
    """Whether something of the continuation's first element may be in the chunk before it."""
    return not head.startswith(CLUSTER)


def cut_element(chunk: bytes) -> bytes:
    """The start of the element that `chunk` ends in the middle of; empty when it ends with a whole one."""
    position = chunk.find(CLUSTER) if chunk.startswith(EBML_HEADER) else _first_element(chunk)
    if position is None or position < 0:
        return b""
    for _ in range(MOST_ELEMENTS):
        if position >= len(chunk):
            break
        end = _element_end(chunk, position)
        if end is None or end > len(chunk):
            return chunk[position:]
        position = end
    return b""


def graft(header: bytes, cut: bytes, chunk: bytes) -> bytes:
    """A file that can be decoded: the recording's header, what `cut_element` found before the chunk, the chunk.

    With nothing before it, the chunk counts from its first whole element: behind a broken one a decoder would skip all
    up to the next cluster.
    """
    start = 0 if cut else _first_element(chunk) or 0
    return header + CLUSTER_START + cut + chunk[start:]


def _first_element(head: bytes) -> int | None:
    """Where the first whole element of a continuation begins, or None when this is none.

    A block that would reach beyond the end says little: any bytes may look like its start. It counts last.
    """
    at_front = (_block_end(head, 0, id_bytes=0) or 0) if _chains(head, 0) else None
    if at_front is not None and at_front <= len(head):
        return at_front
    tried = islice(_occurrences(head, SIMPLE_BLOCK), MOST_TRIED)
    found = next((position for position in tried if _chains(head, position)), None)
    return len(head) if found is None and at_front is not None else found


def _element_end(chunk: bytes, position: int) -> int | None:
    """Where the element at `position` ends (a cluster: where its content begins); None when it is cut in its head."""
    id_width = 9 - _byte(chunk, position).bit_length() if _byte(chunk, position) > 0 else 1
    size_width = _vint(chunk, position + id_width)
    if size_width is None or position + id_width + size_width[1] > len(chunk):
        return None
    content = position + id_width + size_width[1]
    return content if chunk.startswith(CLUSTER, position) else content + size_width[0]


def _occurrences(head: bytes, what: bytes) -> Iterator[int]:
    position = head.find(what)
    while position != -1:
        yield position
        position = head.find(what, position + 1)


def _chains(head: bytes, start: int) -> bool:
    """Whether WebM elements follow each other from `start`."""
    at_front = start == 0
    position, length = start, 0
    if at_front and (end := _block_end(head, 0, id_bytes=0)) is not None:
        position, length = end, 1  # the block's id went with the previous chunk
    while length < ENOUGH and position < len(head):
        if head.startswith(CLUSTER, position):
            size_width = _vint(head, position + len(CLUSTER))
            if size_width is None:
                return False
            position += len(CLUSTER) + size_width[1]
        elif head.startswith(SIMPLE_BLOCK, position):
            end = _block_end(head, position, id_bytes=1)
            if end is None:
                return False
            position = end
        elif head.startswith(NUMBERS, position):
            size_width = _vint(head, position + 1)
            if size_width is None or not 1 <= size_width[0] <= MAX_NUMBER_BYTES:
                return False
            position += 1 + size_width[1] + size_width[0]
        else:
            return length >= ENOUGH - 1 and head.startswith(RARE, position)
        length += 1
    return length >= (1 if at_front else 2)


def _block_end(head: bytes, position: int, *, id_bytes: int) -> int | None:
    """Where the block at `position` ends, or None when it does not look like one."""
    size_width = _vint(head, position + id_bytes)
    if size_width is None:
        return None
    size, width = size_width
    body = position + id_bytes + width
    # Track number 1 to 15 in one byte, two bytes of time, flags: key frame, invisible, lacing.
    is_block = size >= 4 and 0x81 <= _byte(head, body) <= 0x8F and not _byte(head, body + 3) & 0x70
    return body + size if is_block else None


def _vint(head: bytes, position: int) -> tuple[int, int] | None:
    """EBML's variable-length integer at `position`: its value and its width in bytes."""
    first = _byte(head, position)
    if first <= 0:
        return None
    width = 9 - first.bit_length()
    raw = int.from_bytes(head[position : position + width], "big")
    return raw & ((1 << (7 * width)) - 1), width


def _byte(head: bytes, position: int) -> int:
    return head[position] if position < len(head) else -1
