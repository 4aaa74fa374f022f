"""Ogg/Opus from a browser's MediaRecorder with a timeslice: pages of one stream, the header's pages in chunk 1 only.

A later chunk can be decoded behind those pages and what went of its first page, or of its first packet, with the chunk
before it. The Opus decoder starts anew there: every sample is kept, but the first 80 ms are only nearly right (RFC
7845, section 4.6). A last chunk of one page keeps the padding at its end, up to 20 ms: where it ends is told from the
page before it.
https://www.rfc-editor.org/rfc/rfc3533 https://www.rfc-editor.org/rfc/rfc7845
"""

import zlib
from collections.abc import Iterator
from typing import NamedTuple

# A page, RFC 3533, section 6: capture pattern and version, flags, granule position (8 bytes), serial number (4),
# sequence number (4), checksum (4), how many lacing values, the lacing values, the body.
CAPTURE = b"OggS\0"
FLAGS = 5
GRANULE = 6
CHECKSUM = 22
SEGMENTS = 26
FIXED_BYTES = 27
CONTINUED, FIRST, LAST = 1, 2, 4
UNFINISHED = 255  # as the last lacing value: the packet goes on in the next page
NO_PACKET_ENDS = b"\xff" * 8  # as the granule position

OPUS_HEAD, OPUS_TAGS = b"OpusHead", b"OpusTags"  # RFC 7845, section 5
PRE_SKIP = slice(10, 12)  # in OpusHead

# So that no made-up file keeps the server busy: pages passed over, and pages at all (an hour has 180,000 of 20 ms).
MOST_DAMAGED = 100
MOST_PAGES = 200_000
REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))


class Page(NamedTuple):
    """Where a page is in a chunk; its `end` may be beyond the chunk's."""

    start: int
    flags: int
    lacing: bytes
    end: int


def is_continuation(head: bytes) -> bool:
    """Whether `head` is Ogg from the middle of a stream: its first page, wherever that begins, is not a stream's first.

    Checksums tell pages from anything else that holds these letters.
    """
    first = next(_pages(head), None)
    return first is not None and not first.flags & FIRST


def header_of(first_chunk: bytes) -> bytes | None:
    """The pages before the first audio, or None when this is no such chunk.

    They ask no decoder to skip samples any more: what is to be skipped (6.5 ms in most recordings) is in chunk 1.
    """
    pages = _pages(first_chunk)
    head = next(pages, None)
    if head is None or head.start or not head.flags & FIRST or not _body(first_chunk, head).startswith(OPUS_HEAD):
        return None
    for number, page in enumerate(pages):
        if page.end > len(first_chunk) or (number == 0 and not _body(first_chunk, page).startswith(OPUS_TAGS)):
            return None
        if any(value != UNFINISHED for value in page.lacing):  # the tags end here, and audio begins on a fresh page
            body = bytearray(_body(first_chunk, head))
            body[PRE_SKIP] = bytes(2)
            front = first_chunk[head.start : head.end - len(body)]
            return _signed(front + body) + first_chunk[head.end : page.end]
    return None


def is_cut(head: bytes) -> bool:
    """Whether something of the continuation's first page or packet may be in the chunk before it."""
    first = _page(head, 0)
    return first is None or bool(first.flags & CONTINUED)


def cut_element(chunk: bytes) -> bytes:
    """What `chunk` ends in the middle of: a page, a packet that goes on in the next page, or both; else empty."""
    pages = list(_pages(chunk))
    if not pages:
        return b""
    whole = [page for page in pages if page.end <= len(chunk)]
    return _open_packet(chunk, whole[-1]) + chunk[whole[-1].end :] if whole else chunk[pages[0].start :]


def graft(header: bytes, cut: bytes, chunk: bytes) -> bytes:
    """A file that can be decoded: the recording's header, what `cut_element` found before the chunk, the chunk."""
    return header + cut + chunk


def _pages(data: bytes) -> Iterator[Page]:
    """All pages, one after the other, the last perhaps cut; what is damaged is passed over."""
    position, damaged, whole = data.find(CAPTURE), 0, 0
    while position != -1 and damaged < MOST_DAMAGED and whole < MOST_PAGES:
        page = _page(data, position)
        if page:
            whole += 1
            yield page
        else:
            damaged += 1
        position = data.find(CAPTURE, page.end if page else position + 1)


def _page(data: bytes, start: int) -> Page | None:
    """The page at `start`; None when there is none, or it is whole and its checksum is wrong."""
    fixed = data[start : start + FIXED_BYTES]
    if not fixed.startswith(CAPTURE) or len(fixed) <= FLAGS or fixed[FLAGS] > CONTINUED | FIRST | LAST:
        return None
    body = start + FIXED_BYTES + (fixed[SEGMENTS] if len(fixed) == FIXED_BYTES else len(data))
    lacing = data[start + FIXED_BYTES : body]
    page = Page(start, fixed[FLAGS], lacing, body + sum(lacing))
    whole = data[start : page.end]
    return None if page.end <= len(data) and _signed(whole) != whole else page


def _body(data: bytes, page: Page) -> bytes:
    return data[page.start + FIXED_BYTES + len(page.lacing) : page.end]


def _open_packet(chunk: bytes, page: Page) -> bytes:
    """A page with nothing but the packet that does not end in `page`; empty when all end there."""
    first = len(page.lacing.rstrip(bytes([UNFINISHED])))
    lacing = page.lacing[first:]
    if not lacing:
        return b""
    fixed = bytearray(chunk[page.start : page.start + FIXED_BYTES])
    fixed[FLAGS] = 0 if first else page.flags & CONTINUED
    fixed[GRANULE : GRANULE + len(NO_PACKET_ENDS)] = NO_PACKET_ENDS
    fixed[SEGMENTS] = len(lacing)
    return _signed(bytes(fixed) + lacing + chunk[page.end - sum(lacing) : page.end])


def _signed(page: bytes) -> bytes:
    """`page` with its right checksum: zlib's polynomial, but highest bits first, and from zero (RFC 3533, 6)."""
    blank = page[:CHECKSUM] + bytes(4) + page[CHECKSUM + 4 :]
    reversed_crc = zlib.crc32(blank.translate(REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    # All 32 bits reversed, then stored lowest byte first: the bytes keep their order, each one's bits do not.
    return page[:CHECKSUM] + reversed_crc.to_bytes(4, "big").translate(REVERSED) + page[CHECKSUM + 4 :]
