"""The containers that browsers record in, and which of them a chunk without a header is of."""

from typing import Protocol

from gpu_server import mp4, ogg, webm

# How files of the allowed formats begin, if they do so at their first byte.
FILE_STARTS = (webm.EBML_HEADER, b"OggS", b"RIFF", b"RF64", b"fLaC", b"ID3", b"FORM", b"caff", b"#!AMR")


class Container(Protocol):
    """What `webm`, `ogg` and `mp4` can do with the chunks of a recording that was cut with a timeslice."""

    def is_continuation(self, head: bytes) -> bool: ...

    def header_of(self, first_chunk: bytes) -> bytes | None: ...

    def is_cut(self, head: bytes) -> bool: ...

    def cut_element(self, chunk: bytes) -> bytes: ...

    def graft(self, header: bytes, cut: bytes, chunk: bytes) -> bytes: ...


CONTAINERS: tuple[Container, ...] = (webm, ogg, mp4)


def begins_as_file(head: bytes) -> bool:
    """Whether `head` is how a file of an allowed format begins, whole or damaged."""
    return head.startswith(FILE_STARTS) or head[4:8] == mp4.FTYP


def continuation_of(head: bytes) -> Container | None:
    """The container of which `head` is the middle of a recording; None for every other file."""
    if ogg.is_continuation(head):  # its pages begin alike, a recording's first and all others
        return ogg
    if begins_as_file(head):
        return None
    # WebM last: it is told from the looks of its elements, the others from what no other file holds.
    return mp4 if mp4.is_continuation(head) else webm if webm.is_continuation(head) else None


def header_of(first_chunk: bytes) -> tuple[Container, bytes] | None:
    """The container of a recording's chunk 1, and its header."""
    for container in CONTAINERS:
        header = container.header_of(first_chunk)
        if header is not None:
            return container, header
    return None
