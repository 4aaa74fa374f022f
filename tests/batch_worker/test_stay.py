"""A worker on an instance: when it protects the instance, when it ends it, and that no job is lost at any moment."""

import math
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batch_worker.batch import Summary
from batch_worker.drain import ServerGone
from batch_worker.instance import Member
from batch_worker.lease import Leases
from batch_worker.stay import NEXT_BATCH_SECONDS, Stay
from shared.jobs import Job, Reason
from shared.outcomes import Standing, standing
from shared.queues import Backlog, Message
from shared.server import Answer, Health, Limits, Said, Work
from tests.batch_worker.test_worker import Night
from tests.fakes import MemoryQueue, MemoryStore, ScriptedServer

IDLE = 600.0
POLL = 20.0  # a long poll that brings nothing
LONGEST = 24 * 3600.0


@dataclass
class World:
    """Everything outside of the worker. Each call to it is a step, before which something may happen."""

    now: float = 0.0
    steps: int = 0
    happens: defaultdict[int, list[Callable[[], object]]] = field(default_factory=lambda: defaultdict(list))
    ended: bool = False
    lock: threading.RLock = field(default_factory=threading.RLock)

    def happens_at(self, step: int, event: Callable[[], object]) -> None:
        self.happens[step].append(event)

    def step(self) -> None:
        assert not self.ended, "it goes on although its instance has ended"
        assert self.now < LONGEST, "it stays for ever"
        with self.lock:
            self.steps += 1
            for event in self.happens.pop(self.steps, []):
                event()


class WatchedQueue(MemoryQueue):
    """`of_others`: in the hands of another worker."""

    world: World
    of_others: list[Message]

    def receive(self, *, most: int, wait: int, visibility: int) -> list[Message]:
        if self.held and not self.visible:  # jobs are in work: no step, since nobody knows how many of these there are
            time.sleep(0.001)
            return []
        self.world.step()
        messages = super().receive(most=most, wait=wait, visibility=visibility)
        self.world.step()
        if not messages and not self.held:
            self.world.now += POLL
        return messages

    def delete(self, message: Message) -> None:
        self.world.step()
        super().delete(message)
        self.world.now += 1

    def backlog(self) -> Backlog:
        self.world.step()
        backlog = Backlog(len(self.visible), len(self.held) + len(self.of_others), 0)
        self.world.step()
        return backlog

    def lend(self) -> None:
        """All that is visible, to another worker."""
        self.of_others, self.visible = self.visible, []


class WatchedServer(ScriptedServer):
    """`share`: of the time until `rush`, that requests of others keep it busy for; each is over at once."""

    world: World
    share: float = 0.0
    rush: float = math.inf

    def work(self, limits: Limits) -> Work | None:
        self.world.step()
        if self.share:
            until = min(self.world.now, self.rush)
            self.of_others = replace(self.of_others, ended=int(until), busy_seconds=self.share * until)
        return super().work(limits)


@dataclass(frozen=True)
class WatchedMember(Member):
    """A place in a group that refuses to let it go `wanted` times. `log`: what it was told. `others`: at work too."""

    world: World
    queue: WatchedQueue
    log: list[object]
    wanted: list[object]
    others: set[str]

    def working(self) -> frozenset[str]:
        self.world.step()
        return frozenset(self.others | ({self.id} if self.log and self.log[-1] is True else set()))

    def protect(self, protected: bool) -> None:
        self.world.step()
        self.log.append(protected)

    def end(self) -> bool:
        self.world.step()
        assert self.log[-1] is False, "it ends what is protected"
        assert not self.queue.held, "it ends with messages in its hands"
        if self.wanted:
            self.wanted.pop()
            return False
        self.log.append("end")
        self.world.ended = True
        return True


class Instance(Night):
    """A night on an instance of a group."""

    def __post_init__(self) -> None:
        super().__post_init__()
        self.world = World()
        self.queue = WatchedQueue()
        self.queue.of_others = []
        self.server = WatchedServer(self.store)
        self.queue.world = self.server.world = self.world
        self.wanted: list[object] = []
        self.others: set[str] = set()
        self.member: WatchedMember | None = WatchedMember(
            None, "i-5", "g", self.world, self.queue, [], self.wanted, self.others
        )

    def stay(self, idle: float = IDLE) -> Summary:
        with Leases(visibility=120, interval=30) as leases:
            batch = self.batch(self.drain(leases))
            return Stay(batch, self.member, idle, clock=lambda: self.world.now).run()

    @property
    def log(self) -> list[object]:
        assert self.member
        return self.member.log


@pytest.fixture
def instance(store: MemoryStore) -> Instance:
    return Instance(store)


def test_an_instance_works_waits_and_ends_itself(instance: Instance) -> None:
    for number in (1, 2, 3):
        instance.queue.send(instance.upload(f"chunk-{number}.webm"), Reason.UNHEALTHY)
    instance.upload("metadata.json", b'{"chunkCount": 3}')
    summary = instance.stay()
    assert (summary.transcribed, summary.all_done) == (3, True)
    assert len(instance.events) == 1
    assert instance.log == [True, False, "end"]
    assert IDLE <= instance.world.now < IDLE + 5 * POLL


def test_elsewhere_only_the_worker_ends(instance: Instance) -> None:
    instance.member = None
    instance.queue.send(instance.upload("chunk-1.webm"), Reason.UNHEALTHY)
    assert instance.stay().transcribed == 1


def test_the_batch_run_is_whole(instance: Instance) -> None:
    """Dead letters, lost events and the stitched pass, as without an instance."""
    lost = instance.upload("chunk-1.webm")
    dead = instance.upload("chunk-2.webm")
    instance.dead_letters.send(dead, Reason.FAILED)
    instance.upload("metadata.json", b'{"chunkCount": 2}')
    summary = instance.stay()
    assert (summary.transcribed, summary.swept, summary.restitched) == (2, 1, 1)
    assert standing(instance.store, lost) is Standing.TRANSCRIBED
    assert not instance.dead_letters.visible


def test_a_job_that_comes_while_it_waits_is_done_and_the_waiting_begins_anew(instance: Instance) -> None:
    job = instance.upload("chunk-1.webm")
    came: list[float] = []

    def send() -> None:
        came.append(instance.world.now)
        instance.queue.send(job, Reason.FAILED)

    instance.world.happens_at(60, send)
    assert instance.stay().transcribed == 1
    assert 0 < came[0] < IDLE
    assert instance.world.now >= came[0] + IDLE
    assert instance.log == [True, False, "end"]


@pytest.mark.parametrize("comes", ["a job", "a request"])
def test_what_comes_just_before_the_last_look_keeps_the_instance(instance: Instance, comes: str) -> None:
    assert instance.member
    protect, came = instance.member.protect, []

    def send_before_the_last_look(protected: bool) -> None:
        protect(protected)
        if not protected and not came:
            came.append(instance.world.now)
            if comes == "a job":
                instance.queue.send(instance.upload("chunk-1.webm"), Reason.FAILED)
            else:
                instance.server.of_others = Work(ended=1, in_flight=0)

    object.__setattr__(instance.member, "protect", send_before_the_last_look)
    assert instance.stay().transcribed == (comes == "a job")
    assert instance.log == [True, False, True, False, "end"]
    assert instance.world.now >= came[0] + IDLE


@pytest.mark.parametrize("works", [Work(ended=0, in_flight=1), Work(ended=1, in_flight=0)])
def test_what_the_router_posts_to_the_server_is_work_too(instance: Instance, works: Work) -> None:
    came: list[float] = []

    def post() -> None:
        came.append(instance.world.now)
        instance.server.of_others = works

    def finish() -> None:
        came.append(instance.world.now)
        instance.server.of_others = Work(ended=1, in_flight=0)

    instance.world.happens_at(60, post)
    instance.world.happens_at(200, finish)
    instance.stay()
    last = came[-1] if works.in_flight else came[0]
    assert instance.world.now >= last + IDLE
    assert instance.log == [True, False, "end"]


def test_an_instance_that_the_group_must_have_goes_on_working(instance: Instance) -> None:
    instance.wanted += [None, None]
    late = instance.upload("chunk-1.webm")
    instance.world.happens_at(150, partial(instance.queue.send, late, Reason.FAILED))
    assert instance.stay().transcribed == 1
    assert instance.log == [True, False] * 3 + ["end"]


def test_a_worker_whose_colleague_has_a_long_job_neither_waits_for_it_nor_sweeps(instance: Instance) -> None:
    instance.queue.send(instance.upload("chunk-1.webm"), Reason.UNHEALTHY)
    instance.queue.lend()
    summary = instance.stay()
    assert (summary.transcribed, summary.swept) == (0, 0)
    assert instance.log == [True, False, "end"]
    assert IDLE <= instance.world.now < IDLE + 5 * POLL
    assert "list" not in [name for name, _ in instance.store.trace]


def test_a_worker_whose_colleague_ends_its_last_job_looks_further(instance: Instance) -> None:
    instance.queue.send(instance.upload("chunk-1.webm"), Reason.UNHEALTHY)
    instance.queue.lend()
    lost = instance.upload("chunk-2.webm")
    instance.world.happens_at(40, instance.queue.of_others.clear)
    assert instance.stay().swept == 2
    assert standing(instance.store, lost) is Standing.TRANSCRIBED


# A stay of many hours -----------------------------------------------------------------------------------------------


def _sweeps(instance: Instance) -> int:
    return instance.store.trace.count(("list", ""))


def _loses_an_event(instance: Instance) -> list[Job]:
    """Of an upload when the batch is long over; the job, once that has happened."""
    lost: list[Job] = []

    def upload() -> None:
        assert _sweeps(instance) == 1
        lost.append(instance.upload("chunk-1.webm"))

    instance.world.happens_at(100, upload)
    return lost


@pytest.mark.parametrize("works", [True, False])
def test_an_instance_that_stays_finds_what_was_lost_within_an_hour(instance: Instance, works: bool) -> None:
    """Because it has work all the time, or because the group must have it."""
    lost = _loses_an_event(instance)
    if works:
        instance.server.share, instance.server.rush = 0.1, 2 * NEXT_BATCH_SECONDS
    else:
        instance.wanted += [None] * int(2 * NEXT_BATCH_SECONDS / IDLE)
    assert instance.stay().swept == 1
    assert standing(instance.store, lost[0]) is Standing.TRANSCRIBED


def test_a_batch_that_begins_again_does_all_that_the_first_one_does(instance: Instance) -> None:
    """And the summary is of all of them."""
    lost = _loses_an_event(instance)
    instance.server.share, instance.server.rush = 0.1, 2 * NEXT_BATCH_SECONDS
    dead = instance.upload("chunk-2.webm")
    instance.queue.send(dead, Reason.FAILED)
    instance.world.happens_at(110, partial(instance.dead_letters.send, dead, Reason.FAILED))
    instance.world.happens_at(120, partial(instance.upload, "metadata.json", b'{"chunkCount": 2}'))
    summary = instance.stay()
    assert (summary.transcribed, summary.skipped, summary.swept, summary.restitched) == (2, 1, 1, 1)
    assert standing(instance.store, lost[0]) is Standing.TRANSCRIBED
    assert not instance.dead_letters.visible


def test_a_batch_that_finds_nothing_keeps_no_instance(instance: Instance) -> None:
    """An idle time that is longer than the time from batch to batch ends all the same."""
    idle = 2.5 * NEXT_BATCH_SECONDS
    instance.stay(idle)
    assert idle <= instance.world.now < idle + 5 * POLL
    assert _sweeps(instance) == 3


# A group with more instances than it needs -------------------------------------------------------------------------


@pytest.fixture
def busy(instance: Instance) -> Instance:
    """Never idle: for three hours a request comes now and then, to this instance as to the others."""
    instance.server.share, instance.server.rush = 0.1, 3 * 3600.0
    return instance


def test_a_surplus_instance_leaves_though_it_has_work(busy: Instance) -> None:
    busy.others.add("i-1")
    busy.stay()
    assert busy.log == [True, False, "end"]
    assert IDLE <= busy.world.now < IDLE + 5 * POLL


@pytest.mark.parametrize(
    ("others", "share"), [({"i-7"}, 0.1), ({"i-1"}, 0.4), (set(), 0.1), ({"i-1", "i-2", "i-3"}, 0.6)]
)
def test_an_instance_that_is_needed_stays_until_it_is_idle(busy: Instance, others: set[str], share: float) -> None:
    busy.server.share = share
    busy.others |= others
    busy.stay()
    assert busy.log == [True, False, "end"]
    assert busy.world.now >= busy.server.rush + IDLE - POLL


def test_no_instance_leaves_while_it_has_something_in_hand(busy: Instance) -> None:
    busy.others.add("i-1")
    busy.server.of_others = Work(ended=0, in_flight=1)
    freed: list[float] = []

    def end() -> None:
        freed.append(busy.world.now)
        busy.server.of_others = replace(busy.server.of_others, in_flight=0)

    busy.world.happens_at(500, end)
    busy.stay()
    assert IDLE < freed[0] <= busy.world.now < freed[0] + IDLE + 5 * POLL
    assert busy.log == [True, False, "end"]


@pytest.mark.parametrize("comes", ["a job", "a request", "a colleague's leave"])
def test_what_comes_before_the_last_look_keeps_a_surplus_instance_until_the_next(busy: Instance, comes: str) -> None:
    assert busy.member
    busy.others.add("i-1")
    protect, came = busy.member.protect, []

    def happen_before_the_last_look(protected: bool) -> None:
        protect(protected)
        if protected and came:
            busy.others.add("i-1")
            busy.server.of_others = replace(busy.server.of_others, in_flight=0)
        elif not protected and not came:
            came.append(busy.world.now)
            if comes == "a job":
                busy.queue.send(busy.upload("chunk-1.webm"), Reason.FAILED)
            elif comes == "a request":
                busy.server.of_others = replace(busy.server.of_others, in_flight=1)
            else:
                busy.others.clear()

    object.__setattr__(busy.member, "protect", happen_before_the_last_look)
    assert busy.stay().transcribed == (comes == "a job")
    assert busy.log == [True, False, True, False, "end"]
    assert came[0] + IDLE <= busy.world.now < came[0] + IDLE + 5 * POLL


def test_a_surplus_instance_that_the_group_must_have_goes_on_working(busy: Instance) -> None:
    busy.others.add("i-1")
    busy.wanted += [None, None]
    busy.stay()
    assert busy.log == [True, False] * 3 + ["end"]
    assert 3 * IDLE <= busy.world.now < 3 * (IDLE + 5 * POLL)


# Ends that are not its own ------------------------------------------------------------------------------------------


def test_an_instance_without_a_server_is_not_protected(instance: Instance) -> None:
    instance.server.ready = Health(ready=False, alive=False, reason="no answer")
    with pytest.raises(ServerGone):
        instance.stay()
    assert instance.log == []


def test_a_worker_that_fails_takes_its_protection_away(instance: Instance) -> None:
    instance.server.answers = [Answer(Said.UNAUTHORIZED, 401)]
    instance.queue.send(instance.upload("chunk-1.webm"), Reason.UNHEALTHY)
    with pytest.raises(Exception, match="API_KEY"):
        instance.stay()
    assert instance.log == [True, False]


def test_a_worker_that_is_told_to_stop_does_not_end_its_instance(instance: Instance) -> None:
    instance.world.happens_at(20, instance.stopping.set)
    assert instance.stay().stopped
    assert instance.log == [True, False]


@dataclass
class Upload:
    """Something that happens outside, at some step of the worker's."""

    at: int
    session: int
    by_event: bool  # else its event is lost


UPLOADS = st.lists(
    st.builds(Upload, at=st.integers(1, 250), session=st.integers(1, 2), by_event=st.booleans()), max_size=8
)


@given(
    uploads=UPLOADS, wanted=st.integers(0, 2), killed_at=st.none() | st.integers(1, 250), first=st.sampled_from("19")
)
def test_no_job_is_lost_whatever_comes_at_whatever_moment(
    uploads: list[Upload], wanted: int, killed_at: int | None, first: str
) -> None:
    """Every message is worked or waits in the queue, and no instance ends that had work within the idle time, unless
    another comes before it.

    `killed_at`: another worker holds a message until that step, and is then killed.
    """
    instance = Instance(MemoryStore())
    world, queue = instance.world, instance.queue
    instance.wanted += [None] * wanted
    instance.others.add(f"i-{first}")
    sent: list[Job] = []
    worked: list[float] = [0.0]

    def upload(number: int, one: Upload) -> None:
        key = f"users/u/audio/sessions/s{one.session}/chunk-{number}.webm"
        job = Job(bucket=instance.store.bucket, key=key, etag=instance.store.upload(key, str(number).encode()))
        if one.by_event:
            sent.append(job)
            queue.send(job, Reason.FAILED)

    def kill() -> None:
        queue.visible += queue.of_others
        queue.of_others = []

    def forget(message: Message, delete: Callable[[Message], None] = queue.delete) -> None:
        worked.append(world.now)
        delete(message)

    queue.delete = forget  # type: ignore[method-assign]
    upload(1, Upload(at=0, session=1, by_event=True))
    if killed_at is not None:
        queue.lend()
        world.happens_at(killed_at, kill)
    for number, one in enumerate(uploads, start=2):
        world.happens_at(one.at, partial(upload, number, one))

    instance.stay()

    assert world.ended
    assert not queue.held
    assert world.now >= (IDLE if f"i-{first}" < "i-5" else max(worked) + IDLE)
    assert instance.log == [True, False] * instance.log.count(True) + ["end"]
    waiting = {message.document()["job_id"] for message in queue.visible + queue.of_others}
    assert {job.job_id for job in sent if standing(instance.store, job) is not Standing.TRANSCRIBED} <= waiting
