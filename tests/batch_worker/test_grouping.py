"""Which messages are worked on together, as a pure function of what was received."""

from hypothesis import given
from hypothesis import strategies as st

from batch_worker.grouping import GROUP_CHUNKS, SUSPECT_RECEIVES, Unit, units
from shared.jobs import Job, JobMessage, Options, Reason
from shared.keys import ChunkKey, Session
from shared.queues import Message
from tests.fakes import EPOCH

BUCKET = "audio-bucket"


def message(
    name: str, key: str, *, language: str | None = None, received: int = 1, bucket: str = BUCKET, etag: str = "e"
) -> Message:
    job = Job(bucket=bucket, key=key, etag=etag, options=Options(language=language))
    return Message(name, name, JobMessage.of(job, Reason.FAILED, now=EPOCH).to_json(), received)


def chunk(number: int, session: str = "s") -> str:
    return ChunkKey(Session("u", session), str(number), "webm").key


def names(found: list[Unit]) -> list[list[str]]:
    return [[message.id for message in unit.messages] for unit in found]


def test_chunks_of_one_session_go_together_in_the_sessions_order() -> None:
    found = units([message("c", chunk(10)), message("a", chunk(1)), message("b", chunk(2))], BUCKET)
    assert names(found) == [["a", "b", "c"]]
    assert [job.key for job in found[0].jobs] == [chunk(1), chunk(2), chunk(10)]


def test_sessions_and_wishes_are_not_mixed() -> None:
    received = [
        message("a1", chunk(1, "a")),
        message("b1", chunk(1, "b")),
        message("a2", chunk(2, "a")),
        message("b2", chunk(2, "b")),
        message("a3", chunk(3, "a"), language="de"),
        message("a4", chunk(4, "a"), language="de"),
    ]
    assert names(units(received, BUCKET)) == [["a1", "a2"], ["b1", "b2"], ["a3", "a4"]]


def test_what_is_no_chunk_of_ours_goes_by_itself() -> None:
    received = [
        message("file", "calls/a.mp3"),
        message("elsewhere", chunk(2), bucket="another-bucket"),
        message("one", chunk(1)),
        Message("junk", "junk", "{", 1),
        Message("event", "event", f'{{"s3_bucket": "{BUCKET}", "s3_key": "{chunk(3)}"}}', 1),
    ]
    assert sorted(names(units(received, BUCKET))) == [["elsewhere"], ["event"], ["file"], ["junk"], ["one"]]


def test_copies_of_one_job_make_no_group() -> None:
    assert names(units([message("a", chunk(1)), message("b", chunk(1))], BUCKET)) == [["a"], ["b"]]


def test_what_the_launcher_looked_at_or_one_dead_worker_had_is_no_suspect() -> None:
    received = [message("a", chunk(1), received=2), message("b", chunk(2))]
    assert names(units(received, BUCKET)) == [["a", "b"]]


def test_a_suspect_goes_last_and_alone() -> None:
    received = [message("s", chunk(1), received=SUSPECT_RECEIVES), message("a", chunk(2)), message("b", chunk(3))]
    found = units(received, BUCKET)
    assert names(found) == [["a", "b"], ["s"]]
    assert [unit.alone for unit in found] == [False, True]


messages = st.lists(
    st.tuples(
        st.one_of(
            st.builds(chunk, st.integers(1, 300), st.sampled_from("st")),
            st.sampled_from(["calls/a.mp3", "calls/b.mp3"]),
        ),
        st.sampled_from([None, "de"]),
        st.integers(1, SUSPECT_RECEIVES),
    ),
    max_size=400,
).map(lambda items: [message(str(n), k, language=lang, received=r) for n, (k, lang, r) in enumerate(items)])


@given(messages)
def test_every_message_is_in_exactly_one_unit_and_no_group_is_too_large(received: list[Message]) -> None:
    found = units(received, BUCKET)
    assert sorted(message.id for unit in found for message in unit.messages) == sorted(m.id for m in received)
    for unit in found:
        assert len(unit.messages) <= GROUP_CHUNKS
        assert len(unit.jobs) == (len(unit.messages) if len(unit.messages) > 1 else 0)
        assert unit.alone == (unit.messages[0].receive_count >= SUSPECT_RECEIVES)
        assert len({(job.options, job.audio.session) for job in unit.jobs if isinstance(job.audio, ChunkKey)}) <= 1
