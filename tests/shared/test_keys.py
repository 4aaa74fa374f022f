"""Keys, both ways."""

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shared.errors import RefusedKey
from shared.keys import (
    AUDIO_EXTENSIONS,
    MAX_CHUNKS,
    MAX_KEY_BYTES,
    ChunkKey,
    FileKey,
    IgnoredKey,
    ManifestKey,
    Session,
    parse_audio_key,
    parse_key,
)

# What people put into ids: spaces, "+", "%", unicode, dots.
names = st.text(st.characters(exclude_characters="/", exclude_categories=("Cc", "Cs")), min_size=1, max_size=40).filter(
    lambda name: name not in (".", "..")
)
sessions = st.builds(Session, names, names).filter(lambda s: not s.id.endswith(".error") and "-chunk-" not in s.id)
extensions = st.sampled_from(sorted(AUDIO_EXTENSIONS | {"WEBM", "Mp3"}))
numbers = st.builds(lambda n, width: str(n).zfill(width), st.integers(1, MAX_CHUNKS), st.integers(1, 8))


@given(sessions, numbers, extensions)
def test_a_chunk_key_survives_building_and_parsing(session: Session, number: str, extension: str) -> None:
    chunk = ChunkKey(session, number, extension)
    assume(len(chunk.error_key.encode()) <= MAX_KEY_BYTES)
    assert parse_key(chunk.key) == chunk
    assert chunk.index == int(number)


@given(sessions)
def test_a_manifest_key_survives_building_and_parsing(session: Session) -> None:
    assert parse_key(session.manifest_key) == ManifestKey(session)


@given(st.lists(st.builds(ChunkKey, sessions, numbers, st.just("webm")), min_size=2, max_size=8, unique=True))
def test_no_two_results_share_a_key(chunks: list[ChunkKey]) -> None:
    results = [chunk.output_key for chunk in chunks] + [chunk.error_key for chunk in chunks]
    for session in {chunk.session for chunk in chunks}:
        results += [session.derived_key(extension) for extension in ("json", "srt", "vtt", "txt", "error.json")]
    assert len(results) == len(set(results))


@given(sessions, numbers)
def test_no_result_is_audio_or_a_manifest(session: Session, number: str) -> None:
    chunk = ChunkKey(session, number, "webm")
    for key in (chunk.output_key, chunk.error_key, session.output_key, session.derived_key("srt"), session.error_key):
        assert isinstance(parse_key(key), IgnoredKey)


@given(st.text(st.characters(exclude_categories=("Cs",)), max_size=200), extensions)
def test_any_key_is_understood_or_refused(stem: str, extension: str) -> None:
    try:
        parsed = parse_key(f"{stem}.{extension}")
    except RefusedKey as refused:
        assert len(refused.error_key.encode()) <= MAX_KEY_BYTES
        return
    assert isinstance(parsed, ChunkKey | FileKey | IgnoredKey)


def test_other_audio_gets_a_transcript_under_its_own_key() -> None:
    assert parse_key("calls/2026/a b+c%20ü.mp3") == FileKey("calls/2026/a b+c%20ü.mp3")
    assert FileKey("a.mp3").output_key == "transcripts/a.mp3.json"


def test_keys_are_never_decoded() -> None:
    parsed = parse_key("users/a%2Fb/audio/sessions/s+1/chunk-1.webm")
    assert isinstance(parsed, ChunkKey)
    assert parsed.session == Session("a%2Fb", "s+1")


@pytest.mark.parametrize(
    "key",
    [
        "users/u/audio/sessions/a-chunk-1/chunk-1.webm",
        "users/u/audio/sessions/a-chunk-1/metadata.json",
        "users/u/audio/sessions/a.error/chunk-1.webm",
        "users/u/audio/sessions/s/chunk-0.webm",
        "users/u/audio/sessions/s/chunk-100001.webm",
        "users/../audio/sessions/s/chunk-1.webm",
        "users/u\n/audio/sessions/s/chunk-1.webm",
        f"users/{'u' * 129}/audio/sessions/s/chunk-1.webm",
        "x" * 1010 + ".mp3",
    ],
)
def test_names_that_would_collide_or_break_are_refused(key: str) -> None:
    with pytest.raises(RefusedKey):
        parse_key(key)


@pytest.mark.parametrize(
    "key", ["users/u/transcripts/s-chunk-1.json", "folder/", "", "photo.jpg", "users/u/transcripts/s.srt", "webm"]
)
def test_what_is_not_audio_is_ignored(key: str) -> None:
    assert isinstance(parse_key(key), IgnoredKey)


@pytest.mark.parametrize("key", ["photo.jpg", "users/u/audio/sessions/s/metadata.json"])
def test_whoever_was_promised_audio_gets_an_error_instead(key: str) -> None:
    with pytest.raises(RefusedKey):
        parse_audio_key(key)
