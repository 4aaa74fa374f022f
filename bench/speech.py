"""Real speech with its words: recordings joined from clips, cut into chunks as a browser's recorder sends them."""

import csv
import itertools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from numpy.typing import NDArray

from gpu_server.engines import Audio

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared/speech"
OWN = ROOT / "tests/data"

RATE = 48_000  # Hz: what Opus works in
MODEL_RATE = 16_000  # Hz: what Whisper hears
BITRATE = 32_000  # bit/s: what browsers use for speech
FRAME = RATE // 50  # samples in a packet of libopus
CHUNK_S = 5.0
SHORTEST_S = 0.5  # a shorter rest stays with the chunk before it
PAUSE_S = 0.3  # between two clips of a recording

Pcm = NDArray[np.int16]  # shape (samples,), mono

# A recording's id, and what its clips' names begin with.
RECORDINGS = (
    ("lj", "lj_"),
    ("librispeech", "ls_2277"),
    ("fleurs", "fleurs_en_"),
    ("cities", "read_two_cities"),
    ("sonnet-1", "read_sonnet1"),
    ("sonnet-2", "read_sonnet2"),
    ("sonnet-3", "read_sonnet3"),
)


@dataclass(frozen=True)
class Clip:
    """A file of speech and what is said in it."""

    path: Path
    seconds: float
    text: str


@dataclass(frozen=True)
class Recording:
    """One recording on disk: whole, and cut into chunks. Both are complete files of their own."""

    id: str
    text: str
    seconds: float
    whole: Path
    chunks: tuple[Path, ...]


def prepare(folder: Path, *, minutes: float | None) -> list[Recording]:
    """Write about `minutes` of speech (None: all there is) below `folder`; more than there is comes again."""
    clips = shared_clips(SHARED) if (SHARED / "manifest.tsv").is_file() else own_clips(OWN)
    chosen = choose(clips, None if minutes is None else minutes * 60)
    recordings = [_write(folder / id, id, parts) for id, parts in chosen.items()]
    return list(repeat(recordings, seconds=(minutes or 0) * 60))


def shared_clips(folder: Path) -> dict[str, list[Clip]]:
    """The clips of each recording, from the manifest beside them."""
    with (folder / "manifest.tsv").open(newline="") as file:
        lines = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    clips = sorted(
        (Clip(folder / line["file"], float(line["seconds"]), line["reference transcript"]) for line in lines),
        key=lambda clip: clip.path.name,
    )
    return {id: [clip for clip in clips if clip.path.name.startswith(prefix)] for id, prefix in RECORDINGS}


def own_clips(folder: Path) -> dict[str, list[Clip]]:
    """The project's own sample speech."""
    clips = {}
    for name in ("session-a", "session-b"):
        path = folder / name / "whole.opus"
        seconds = len(decode(path, rate=MODEL_RATE)) / MODEL_RATE
        clips[name] = [Clip(path, seconds, " ".join((folder / name / "text.txt").read_text().split()))]
    return clips


def choose(clips: dict[str, list[Clip]], limit: float | None) -> dict[str, list[Clip]]:
    """The first clips of each recording, one of each in turn, as long as they fit into `limit` seconds."""
    if limit is None:
        return {id: parts for id, parts in clips.items() if parts}
    chosen: dict[str, list[Clip]] = {id: [] for id in clips}
    full: set[str] = set()
    total = 0.0
    for turn in itertools.zip_longest(*([(id, clip) for clip in parts] for id, parts in clips.items())):
        for id, clip in filter(None, turn):
            if id in full or total + clip.seconds > limit:
                full.add(id)  # a recording has no holes
                continue
            chosen[id].append(clip)
            total += clip.seconds
    if not any(chosen.values()):
        raise ValueError(f"no recording fits into {limit:.0f} seconds")
    return {id: parts for id, parts in chosen.items() if parts}


def repeat(recordings: Sequence[Recording], *, seconds: float) -> Iterator[Recording]:
    """The recordings, again and again under new ids until they last `seconds`; each at least once."""
    yield from recordings
    total = sum(recording.seconds for recording in recordings)
    for time in itertools.count(2):
        for recording in recordings:
            if total + recording.seconds > seconds:
                return
            total += recording.seconds
            yield Recording(
                f"{recording.id}-{time}", recording.text, recording.seconds, recording.whole, recording.chunks
            )


def interleave(recordings: Iterable[Recording]) -> list[tuple[int, int]]:
    """(recording, chunk) of all chunks, as they come when all recordings are made at once."""
    sizes = [len(recording.chunks) for recording in recordings]
    return [
        (which, chunk) for chunk in range(max(sizes, default=0)) for which, size in enumerate(sizes) if chunk < size
    ]


def cut(speech: Pcm, *, rate: int = RATE) -> list[Pcm]:
    """Chunks of 5 seconds, cut without regard for words, as a recorder does."""
    size, shortest = int(CHUNK_S * rate), int(SHORTEST_S * rate)
    edges = list(range(size, len(speech), size))
    if edges and len(speech) - edges[-1] < shortest:
        edges.pop()
    return np.split(speech, edges)


def decode(path: Path, *, rate: int) -> Pcm:
    """The samples of a media file."""
    resampler = av.AudioResampler(format="s16", layout="mono", rate=rate)
    with av.open(str(path)) as container:
        frames = [out for frame in [*container.decode(audio=0), None] for out in resampler.resample(frame)]
    return np.concatenate([frame.to_ndarray()[0] for frame in frames])


def load(path: Path) -> Audio:
    """A file as Whisper wants it: what `whisperx.load_audio` does with an ffmpeg process."""
    return decode(path, rate=MODEL_RATE).astype(np.float32) / 32768.0


def encode(speech: Pcm, path: Path) -> None:
    """`speech` (48 kHz) as one complete Opus file; the name's ending says in which container."""
    with av.open(str(path), "w", format="webm" if path.suffix == ".webm" else "ogg") as output:
        stream = output.add_stream("libopus", rate=RATE, layout="mono")
        stream.bit_rate = BITRATE
        stream.options = {"application": "voip"}
        frame = av.AudioFrame.from_ndarray(speech[np.newaxis], format="s16", layout="mono")
        frame.sample_rate = RATE
        frame.time_base = Fraction(1, RATE)
        frame.pts = 0
        output.mux([*stream.encode(frame), *stream.encode(None)])


def make_long(recordings: Sequence[Recording], path: Path, *, seconds: float) -> None:
    """Write a file of `seconds` from the recordings' packets, again and again."""
    with av.open(str(path), "w", format="ogg") as output:
        with av.open(str(recordings[0].whole)) as first:
            stream = output.add_stream_from_template(first.streams.audio[0])
        frames = 0  # each takes its 20 ms, the shortened last one of a recording too
        for recording in itertools.cycle(recordings):
            with av.open(str(recording.whole)) as source:
                for packet in source.demux(audio=0):
                    if packet.pts is None:  # the end
                        continue
                    packet.time_base = Fraction(1, RATE)
                    packet.pts = packet.dts = frames * FRAME
                    packet.duration = FRAME
                    packet.stream = stream
                    output.mux(packet)
                    frames += 1
                    if frames * FRAME >= seconds * RATE:
                        return


def _write(folder: Path, id: str, clips: Sequence[Clip]) -> Recording:
    folder.mkdir(parents=True)
    pause = np.zeros(int(PAUSE_S * RATE), np.int16)
    parts = [part for clip in clips for part in (decode(clip.path, rate=RATE), pause)]
    speech = np.concatenate(parts[:-1])
    whole = folder / "whole.opus"
    encode(speech, whole)
    chunks = []
    for number, chunk in enumerate(cut(speech), 1):
        chunks.append(folder / f"chunk-{number:03}.webm")
        encode(chunk, chunks[-1])
    return Recording(id, " ".join(clip.text for clip in clips), len(speech) / RATE, whole, tuple(chunks))
