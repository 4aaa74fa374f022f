"""One run of the bench: every way in turn, one row each; a way that fails leaves the others their rows."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from rich.console import Console

from bench import ours, speech
from bench.children import Model, Work, run_child
from bench.measure import Call, Row, Timed, join, percentile, rss_bytes, wer
from shared.keys import Session

WAYS = ("stock", "stock-whole", "plain", "upload", "s3", "live", "session", "whole", "bare", "light")
NEED_S3 = {"s3", "session", "live"}
LONG = "long"
LONG_S = 3 * 3600.0
SESSIONS = 4  # at once, as many as the batch worker asks for
FULL_LOAD = 16

Place = tuple[int, int]  # (recording, chunk)
T = TypeVar("T")


class Bench:
    """`rows`: what was measured so far, failures included. `folder`: for what is needed only now."""

    def __init__(
        self,
        model: Model,
        recordings: Sequence[speech.Recording],
        folder: Path,
        console: Console,
        *,
        in_flight: Sequence[int],
        with_wer: bool,
    ) -> None:
        self.rows: list[Row] = []
        self._model = model
        self._recordings = recordings
        self._folder = folder
        self._console = console
        self._logs = folder / "log"
        self._in_flight = in_flight
        self._with_wer = with_wer
        self._seconds = sum(recording.seconds for recording in recordings)
        self._order = speech.interleave(recordings)
        self._chunks = [recordings[which].chunks[chunk] for which, chunk in self._order]
        self._wholes = [recording.whole for recording in recordings]
        self._whole_order = [(which, 0) for which in range(len(recordings))]

    def run(self, wanted: set[str]) -> None:
        self._stock(wanted)
        if "plain" in wanted:
            self._plain()
        if wanted & NEED_S3:
            with self._started("the local S3", [], ours.local_bucket(self._folder / "aws")) as bucket:
                self._ours(wanted, bucket)
                if "live" in wanted:
                    self._live(bucket)
        else:
            self._ours(wanted, None)
        if "bare" in wanted:
            self._bare()
        if "light" in wanted:
            self._light()
        if LONG in wanted:
            self._long()

    def _stock(self, wanted: set[str]) -> None:
        works = {
            "stock": ("stock WhisperX, file by file", self._chunks, self._order),
            "stock-whole": ("stock WhisperX, uncut", self._wholes, self._whole_order),
        }
        works = {id: work for id, work in works.items() if id in wanted}
        if not works:
            return
        times: dict[str, Timed] = {}

        def run_all() -> None:
            files = [Work(id, [str(path) for path in paths]) for id, (_, paths, _) in works.items()]
            times.update(run_child("bench.stock", self._model, files, self._logs))

        problem = self._attempt("stock WhisperX", run_all)
        for id, (way, _, order) in works.items():
            self._add(Row(id, way, 1), problem or times[id], order)

    def _plain(self) -> None:
        row = Row("plain-4", "plain server: faster-whisper, one lock", 4)
        with self._started("the plain server", [row], ours.plain_server(self._model, self._logs)) as server:
            if server:
                self._upload(row, server)

    def _ours(self, wanted: set[str], bucket: ours.Bucket | None) -> None:
        uploads = [Row(f"upload-{n}", "ours, lone chunks", n) for n in self._in_flight] if "upload" in wanted else []
        s3 = Row(f"s3-{FULL_LOAD}", "ours, lone chunks from S3", FULL_LOAD)
        session = Row(f"session-{SESSIONS}", "ours, stitched sessions from S3", SESSIONS)
        whole = Row("whole-1", "ours, uncut", 1)
        others = [row for row in (s3, session, whole) if row.id.rpartition("-")[0] in wanted]
        if not [*uploads, *others]:
            return
        ready = ours.our_server(self._model, bucket, self._logs)
        with self._started("our server", [*uploads, *others], ready) as server:
            if not server:
                return
            for row in uploads:
                self._upload(row, server)
            if s3 in others:
                self._measure(s3, partial(self._load_s3, server, bucket), self._order)
            if session in others:
                self._measure(session, partial(self._load_sessions, server, bucket), self._whole_order)
            if whole in others:
                self._measure(whole, partial(self._load_wholes, server), self._whole_order)

    def _live(self, bucket: ours.Bucket | None) -> None:
        context = f"{ours.CONTEXT_S} s context"
        few = Row("live-4", f"ours, live sessions from S3, {context}", 4)
        many = Row(f"live-{FULL_LOAD}", f"ours, live chunks from S3, {context}", FULL_LOAD)
        ready = ours.our_server(self._model, bucket, self._logs, context_s=ours.CONTEXT_S)
        with self._started(f"our server with {context}", [few, many], ready) as server:
            if not server:
                return
            in_order = [
                (which, chunk)
                for which, recording in enumerate(self._recordings)
                for chunk in range(len(recording.chunks))
            ]
            self._measure(few, partial(self._load_live, server, bucket, few, by_session=True), in_order)
            self._measure(many, partial(self._load_live, server, bucket, many, by_session=False), self._order)

    def _bare(self) -> None:
        row = Row(f"bare-{FULL_LOAD}", "ours, engine alone in its process", FULL_LOAD)

        def measure() -> Timed:
            work = Work(row.id, [str(chunk) for chunk in self._chunks], FULL_LOAD)
            return run_child("bench.bare", self._model, [work], self._logs)[row.id]

        self._measure(row, measure, self._order)

    def _light(self) -> None:
        row = Row(f"light-{FULL_LOAD}", "ours with faster-whisper, lone chunks", FULL_LOAD)
        light = replace(self._model, engine="faster-whisper")
        with self._started("our server with faster-whisper", [row], ours.our_server(light, None, self._logs)) as server:
            if server:
                self._upload(row, server)

    def _long(self) -> None:
        row = Row("long-1", "ours, one file of 3 hours", 1)
        file = self._folder / "long.opus"
        with self._started("our server", [row], ours.our_server(self._model, None, self._logs)) as server:
            if not server:
                return
            idle: list[int | None] = []

            def measure() -> Timed:
                speech.make_long(self._recordings, file, seconds=LONG_S)
                server.load([[server.upload(self._chunks[0])]], in_flight=1)  # warm
                idle.append(rss_bytes(server.pid))
                return server.load([[server.upload(file)]], in_flight=1)

            self._measure(replace(row, audio_seconds=LONG_S), measure, None)
            self.rows[-1] = replace(self.rows[-1], idle_bytes=idle[0] if idle else None)

    def _upload(self, row: Row, server: ours.PlainServer) -> None:
        groups = [[server.upload(chunk)] for chunk in self._chunks]

        def measure() -> Timed:
            server.load(groups[-row.in_flight :], in_flight=row.in_flight)  # warm
            return server.load(groups, in_flight=row.in_flight)

        self._measure(row, measure, self._order)

    def _load_s3(self, server: ours.OurServer, bucket: ours.Bucket | None) -> Timed:
        """Keys outside of sessions: nothing to share a window with."""
        bucket = _there(bucket)
        keys = [f"calls/{number:05}.webm" for number in range(len(self._chunks))]
        warm = [f"warm/{number:05}.webm" for number in range(min(FULL_LOAD, len(self._chunks)))]
        chunks = bucket.put_files(list(zip(keys, self._chunks, strict=True)))
        first = bucket.put_files(list(zip(warm, self._chunks, strict=False)))
        server.load([[server.from_s3(chunk)] for chunk in first], in_flight=FULL_LOAD)
        return server.load([[server.from_s3(chunk)] for chunk in chunks], in_flight=FULL_LOAD)

    def _load_sessions(self, server: ours.OurServer, bucket: ours.Bucket | None) -> Timed:
        bucket = _there(bucket)
        warm = Session("warm", "stitched")
        bucket.put_session(warm, self._shortest())
        server.load([[server.session(warm)]], in_flight=1)
        groups = []
        for recording in self._recordings:
            session = Session("stitched", recording.id)
            bucket.put_session(session, recording)
            groups.append([server.session(session)])
        return server.load(groups, in_flight=SESSIONS)

    def _load_wholes(self, server: ours.OurServer) -> Timed:
        server.load([[server.upload(self._shortest().whole)]], in_flight=1)  # warm
        return server.load([[server.upload(whole)] for whole in self._wholes], in_flight=1)

    def _load_live(self, server: ours.OurServer, bucket: ours.Bucket | None, row: Row, *, by_session: bool) -> Timed:
        bucket = _there(bucket)
        warm = bucket.put_session(Session("warm", row.id), self._shortest())
        server.load([[server.from_s3(chunk)] for chunk in warm[:4]], in_flight=1)
        sessions: list[list[Call]] = []
        for recording in self._recordings:
            chunks = bucket.put_session(Session(row.id, recording.id), recording)
            sessions.append([server.from_s3(chunk) for chunk in chunks])
        groups = sessions if by_session else [[sessions[which][chunk]] for which, chunk in self._order]
        return server.load(groups, in_flight=row.in_flight)

    def _shortest(self) -> speech.Recording:
        return min(self._recordings, key=lambda recording: recording.seconds)

    def _measure(self, row: Row, measure: Callable[[], Timed], order: Sequence[Place] | None) -> None:
        times: list[Timed] = []
        problem = self._attempt(f"{row.way}, {row.in_flight} in flight", lambda: times.append(measure()))
        self._add(row, problem or times[0], order)

    def _add(self, row: Row, result: Timed | str, order: Sequence[Place] | None) -> None:
        """A finished line; `order`: which recording's chunk each text is of, None if nobody knows the words."""
        if isinstance(result, str):
            self.rows.append(replace(row, failed=result))
            return
        errors = None
        if order and self._with_wer:
            said = [recording.text for recording in self._recordings]
            errors = wer(said, join(result.texts, order, len(said)))
        self.rows.append(
            replace(
                row,
                audio_seconds=row.audio_seconds or self._seconds,
                wall=result.wall,
                p50=percentile(result.latencies, 0.5),
                p95=percentile(result.latencies, 0.95),
                wer=errors,
                cpu_seconds=result.cpu_seconds,
                peak_bytes=result.peak_bytes,
                busy_share=None if result.busy_seconds is None else result.busy_seconds / result.wall,
            )
        )

    def _attempt(self, what: str, action: Callable[[], None]) -> str | None:
        """Why it failed, if it did: whatever that was, the other rows are wanted."""
        try:
            with self._console.status(what):
                action()
        except Exception as error:  # it becomes the row's own result
            self._console.print(f"[red]✗[/] {what}")
            return f"{type(error).__name__}: {error}"
        self._console.print(f"[green]✓[/] {what}")
        return None

    @contextmanager
    def _started(self, what: str, rows: Sequence[Row], context: AbstractContextManager[T]) -> Iterator[T | None]:
        """What `context` starts; None, and `rows` failed, if it does not start."""
        with ExitStack() as exits:
            started: list[T] = []
            problem = self._attempt(f"start {what}", lambda: started.append(exits.enter_context(context)))
            if problem:
                self.rows += [replace(row, failed=problem) for row in rows]
            yield started[0] if started else None


def _there(bucket: ours.Bucket | None) -> ours.Bucket:
    if bucket is None:
        raise RuntimeError("the local S3 did not start")
    return bucket
