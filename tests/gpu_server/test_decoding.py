"""Untrusted media: what is decoded, what is refused and how, and what a dying child takes with it."""

import http.server
import pickle
import random
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from gpu_server import decoding
from gpu_server.decode_pool import DecodePool, DecoderCrashed, DecodeTimeout, load_pcm
from gpu_server.decoding import SAMPLE_RATE, Decoded, Limits, MediaError, decode
from tests.gpu_server import media

LIMITS = Limits(max_seconds=60)


def decoded(content: bytes, folder: Path, *, name: str = "audio", limits: Limits = LIMITS) -> Decoded:
    source = folder / name
    source.write_bytes(content)
    return decode(source, folder / "pcm", limits=limits)


def refusal(content: bytes, folder: Path, **options: object) -> type[MediaError]:
    with pytest.raises(MediaError) as caught:
        decoded(content, folder, **options)  # type: ignore[arg-type]
    assert not (folder / "pcm").exists()
    return caught.type


@pytest.mark.parametrize(
    ("container", "codec", "rate", "channels"),
    [
        ("webm", "libopus", 48_000, 1),
        ("webm", "libopus", 48_000, 2),
        ("ogg", "libopus", 48_000, 1),
        ("ogg", "libopus", 48_000, 2),
        ("ogg", "flac", 48_000, 2),
        ("mp4", "libopus", 48_000, 1),
        ("mp3", "libmp3lame", 44_100, 2),
        ("ipod", "aac", 44_100, 1),
        ("mp4", "aac", 48_000, 6),
        ("adts", "aac", 16_000, 1),
        ("flac", "flac", 96_000, 8),
        ("wav", "pcm_s16le", 8_000, 1),
        ("wav", "pcm_mulaw", 8_000, 1),
        ("wav", "pcm_s16le", 16_000, 2),
        ("wav", "pcm_s16le", 48_000, 2),
        ("w64", "pcm_s16le", 48_000, 1),
        ("aiff", "pcm_s16be", 22_050, 1),
        ("caf", "pcm_s16le", 44_100, 1),
    ],
)
def test_every_usual_format_becomes_16_khz_mono(
    container: str, codec: str, rate: int, channels: int, tmp_path: Path
) -> None:
    content = media.encode(media.tone(1.5, rate=rate), container=container, codec=codec, rate=rate, channels=channels)
    result = decoded(content, tmp_path)
    assert result.duration == pytest.approx(1.5, abs=0.15)  # lossy codecs pad
    assert (result.channels, result.reason, result.truncated) == (channels, None, False)
    samples = load_pcm(tmp_path / "pcm")
    assert samples.dtype == np.float32
    assert samples.shape == (result.samples,)
    spectrum = np.abs(np.fft.rfft(samples[4000:20_000]))
    assert spectrum.argmax() == pytest.approx(440, abs=2)


def test_the_last_samples_come_out_of_the_resampler(tmp_path: Path) -> None:
    result = decoded(media.wav(2.0, rate=44_100), tmp_path)
    assert result.samples == pytest.approx(2 * SAMPLE_RATE, abs=1)


MAKERS = (media.webm, media.wav, media.mp3, media.ogg_recording, media.mp4_recording)


@pytest.mark.parametrize("name", ["x.m3u8", "x.sdp", "x.mp3", "x.wav", "x.ogg", "x.m4a", "x.webm", "x", "x.txt"])
@pytest.mark.parametrize("maker", MAKERS)
def test_names_do_not_matter(maker: Callable[[float], bytes], name: str, tmp_path: Path) -> None:
    assert decoded(maker(1.0), tmp_path, name=name).duration == pytest.approx(1, abs=0.15)


def test_chunks_add_up_to_the_whole(tmp_path: Path) -> None:
    folder = media.DATA / "session-a"
    whole = decode(folder / "whole.opus", tmp_path / "pcm", limits=LIMITS)
    parts = [decode(chunk, tmp_path / "pcm", limits=LIMITS) for chunk in sorted(folder.glob("chunk-*.webm"))]
    assert sum(part.samples for part in parts) == pytest.approx(whole.samples, abs=len(parts))


@pytest.fixture
def hits() -> Iterator[tuple[int, list[str]]]:
    """A loopback HTTP server's port, and the paths asked of it."""
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def log_message(self, *args: object) -> None: ...

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port, asked
        server.shutdown()


@pytest.mark.parametrize("name", ["x.m3u8", "x.mpd", "x.webm"])
@pytest.mark.parametrize("text", [media.PLAYLIST, media.CONCAT, media.DASH, media.SDP])
def test_text_that_names_addresses_reaches_none(
    text: bytes, name: str, hits: tuple[int, list[str]], tmp_path: Path
) -> None:
    port, asked = hits
    assert refusal(text % port, tmp_path, name=name) is decoding.NotMedia  # once open, an SDP reads as a stub
    assert asked == []


OGG = media.ogg_recording()
PAGES = media.pages(OGG)
MP4 = media.mp4_recording()
FRAGMENTS = media.boxes(MP4, b"moof")

HOSTILE = {
    "empty": (b"", decoding.EmptyMedia),
    "zip": (media.zipped(), decoding.NotMedia),
    "text": (b"hello, is this audio? " * 100, decoding.NotMedia),
    "json": (b'{"chunkCount": 3}', decoding.NotMedia),
    "html": (b"<html><body>404</body></html>" * 50, decoding.NotMedia),
    "elf": (b"\x7fELF" + bytes(5000), decoding.NotMedia),
    "zeros": (bytes(100_000), decoding.NotMedia),
    "random": (random.Random(1).randbytes(100_000), decoding.NotMedia),
    "film without sound": (media.picture_only(), decoding.NoAudioStream),
    "continuation": (media.timesliced()[1], decoding.HeaderMissing),
    "continuation, cut anywhere": (media.timesliced()[1][77:], decoding.HeaderMissing),
    "continuation, short": (media.timesliced()[1][:40], decoding.HeaderMissing),
    "ogg continuation": (OGG[PAGES[3] :], decoding.HeaderMissing),
    "ogg continuation, cut anywhere": (OGG[PAGES[3] + 77 :], decoding.HeaderMissing),
    "ogg continuation, short": (OGG[PAGES[3] :][:40], decoding.HeaderMissing),
    "ogg continuation, a page": (OGG[PAGES[-1] :], decoding.HeaderMissing),
    "mp4 continuation": (MP4[FRAGMENTS[3] :], decoding.HeaderMissing),
    "mp4 continuation, cut anywhere": (MP4[FRAGMENTS[3] + 77 :], decoding.HeaderMissing),
    "mp4 continuation, from its data": (MP4[media.boxes(MP4, b"mdat")[3] :], decoding.HeaderMissing),
    "mp4 continuation, short": (MP4[FRAGMENTS[3] :][:40], decoding.HeaderMissing),
    "mp4 continuation, a fragment": (MP4[FRAGMENTS[3] : FRAGMENTS[4]], decoding.HeaderMissing),
    "mp4 and garbage": (MP4[:28] + random.Random(6).randbytes(3000), decoding.Undecodable),
    "ebml and garbage": (b"\x1a\x45\xdf\xa3" + b"\x1f\x43\xb6\x75" + bytes(3000), decoding.Undecodable),
    "ogg and garbage": (b"OggS" + random.Random(2).randbytes(3000), decoding.Undecodable),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_is_no_recording_is_refused_by_its_name(case: str, tmp_path: Path) -> None:
    content, expected = HOSTILE[case]
    assert refusal(content, tmp_path) is expected


WEBM = media.webm()
STUBS = {
    **{f"webm {size}": WEBM[:size] for size in (4, 5, 36, 80, 110, 150, 200)},
    "webm header": WEBM[: WEBM.index(b"\x1f\x43\xb6\x75")],
    "webm header and cluster": WEBM[: WEBM.index(b"\x1f\x43\xb6\x75") + 12],
    **{f"ogg {size}": OGG[:size] for size in (4, 27, 47, 90, PAGES[2], PAGES[2] + 40)},
    "ogg, the end of a page": OGG[-40:],
    **{f"mp4 {size}": MP4[:size] for size in (8, 28, 40, 300, FRAGMENTS[0], FRAGMENTS[0] + 40)},
    "mp4 header and fragment's head": MP4[: media.boxes(MP4, b"mdat")[0] + 8],
    "mp4, the end of its data": MP4[FRAGMENTS[1] - 40 : FRAGMENTS[1]],
    "wav header": media.wav()[:44],
    "five bytes": b"\x00\x01\xfe\xff\x80",
}


@pytest.mark.parametrize("case", STUBS)
def test_a_recorder_that_wrote_no_audio_is_no_error(case: str, tmp_path: Path) -> None:
    result = decoded(STUBS[case], tmp_path)
    assert (result.samples, result.reason) == (0, "header-only")
    assert load_pcm(tmp_path / "pcm").shape == (0,)


@pytest.mark.parametrize("maker", MAKERS)
def test_of_a_cut_off_file_all_that_is_there_is_decoded(maker: Callable[[float], bytes], tmp_path: Path) -> None:
    content = maker(4.0)
    result = decoded(content[: len(content) // 2], tmp_path)
    assert result.duration == pytest.approx(2, abs=0.5)


def test_flipped_bits_never_raise_anything_but_a_refusal(tmp_path: Path) -> None:
    dice = random.Random(3)
    files = [
        media.webm(),
        media.wav(),
        media.mp3(),
        media.mp4_recording(),
        (media.DATA / "session-a/whole.opus").read_bytes()[:30_000],
    ]
    for number in range(200):
        content = bytearray(files[number % len(files)])
        for _ in range(dice.choice([1, 10, 100])):
            content[dice.randrange(len(content))] ^= 1 << dice.randrange(8)
        try:
            result = decoded(bytes(content[: dice.randrange(1, len(content))]), tmp_path)
        except MediaError:
            continue
        assert result.duration <= LIMITS.max_seconds


def test_length_is_counted_and_not_believed(tmp_path: Path) -> None:
    content = media.bomb(hours=2)
    assert len(content) < 20_000_000
    assert refusal(content, tmp_path) is decoding.TooLong


def test_limits_on_channels_and_rate(tmp_path: Path) -> None:
    flac = media.encode(np.zeros(192_000, np.int16), container="flac", codec="flac", rate=192_000, channels=8)
    assert len(flac) < 20_000  # what unpacks to 3 MB
    assert decoded(flac, tmp_path).duration == pytest.approx(1, abs=0.01)
    assert refusal(flac, tmp_path, limits=Limits(max_channels=2)) is decoding.TooManyChannels
    assert refusal(flac, tmp_path, limits=Limits(max_rate=96_000)) is decoding.RateTooHigh
    assert refusal(flac, tmp_path, limits=Limits(min_rate=200_000)) is decoding.RateTooLow


@pytest.mark.parametrize("error", MediaError.__subclasses__())
def test_errors_cross_the_process_boundary(error: type[MediaError]) -> None:
    copy = pickle.loads(pickle.dumps(error("why")))
    assert (type(copy), str(copy)) == (error, "why")
    assert error.type.startswith("media-")
    assert 400 <= error.status < 500


@media.NEEDS_SPEECH
def test_a_real_browsers_chunks(tmp_path: Path) -> None:
    browser = media.SPEECH / "browser"
    restarted = list((browser / "restart").glob("*.webm"))
    assert restarted
    for chunk in restarted:
        assert decode(chunk, tmp_path / "pcm", limits=LIMITS).duration > 0.1
    first, *others = sorted((browser / "timeslice").glob("*.webm"))
    assert others
    assert decode(first, tmp_path / "pcm", limits=LIMITS).duration == pytest.approx(5, abs=0.1)
    for chunk in others:
        with pytest.raises(decoding.HeaderMissing):
            decode(chunk, tmp_path / "pcm", limits=LIMITS)


@pytest.fixture(scope="module")
def pool() -> Iterator[DecodePool]:
    pool = DecodePool(workers=2, limits=LIMITS, timeout_s=30, memory_bytes=400 << 20, work=media.decode_or_die)
    pool.warm_up()
    yield pool
    pool.close()


def in_pool(pool: DecodePool, content: bytes, folder: Path, name: str = "a") -> Decoded:
    source = folder / name
    source.write_bytes(content)
    return pool.decode(source, folder / f"{name}.pcm")


def test_the_pool_decodes_and_refuses_like_the_function(pool: DecodePool, tmp_path: Path) -> None:
    assert in_pool(pool, media.webm(), tmp_path).duration == pytest.approx(1, abs=0.05)
    with pytest.raises(decoding.NotMedia):
        in_pool(pool, media.zipped(), tmp_path)


@pytest.mark.parametrize("way", [b"segfault", b"exit", b"memory"])
def test_a_crash_fails_only_its_own_file(way: bytes, pool: DecodePool, tmp_path: Path) -> None:
    good: list[Decoded] = []

    def others() -> None:
        good.extend(in_pool(pool, media.webm(), tmp_path, "good") for _ in range(10))

    thread = threading.Thread(target=others)
    thread.start()
    for _ in range(2):
        with pytest.raises(DecoderCrashed):
            in_pool(pool, way, tmp_path, "bad")
    thread.join()
    assert len(good) == 10
    assert in_pool(pool, media.webm(), tmp_path).samples > 0


@pytest.mark.parametrize("way", [b"sleep", b"spin"])
def test_a_decoder_that_does_not_come_back_is_ended(
    way: bytes, pool: DecodePool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as hurry:
        hurry.setattr(pool, "_timeout_s", 3)
        with pytest.raises((DecodeTimeout, DecoderCrashed)):
            in_pool(pool, way, tmp_path)
    assert in_pool(pool, media.webm(), tmp_path).samples > 0


def test_an_idle_childs_death_is_not_noticed_by_callers(pool: DecodePool, tmp_path: Path) -> None:
    running = pool._current()
    for child in list(running._pool_manager.worker_manager.workers.values()):
        child.kill()
    deadline = time.monotonic() + 30
    while running.active:  # until the pool finds out, and breaks
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert in_pool(pool, media.webm(), tmp_path).samples > 0


def test_children_know_no_secrets(pool: DecodePool, tmp_path: Path) -> None:
    assert in_pool(pool, b"environment", tmp_path).reason == "0"


def test_a_bomb_fits_in_little_memory(tmp_path: Path) -> None:
    small = DecodePool(workers=1, limits=Limits(max_seconds=900), memory_bytes=300 << 20)
    try:
        with pytest.raises(decoding.TooLong):
            in_pool(small, media.bomb(hours=6), tmp_path)
    finally:
        small.close()


def test_no_port_stays_open_after_an_sdp(tmp_path: Path) -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    refusal(media.SDP % port, tmp_path)
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
        again.bind(("127.0.0.1", port))
