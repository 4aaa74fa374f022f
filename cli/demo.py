"""`make demo`: real speech through the whole system, by both routes, with what is known to have been said beside it."""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import jiwer
from rich.console import Console
from rich.live import Live
from rich.panel import Panel
from rich.table import Table

from cli.local import BUCKET, QUEUE_PREFIX, LocalStack
from cli.watch import Chunk, Watch
from shared.keys import Session

SAMPLES = Path(__file__).resolve().parents[1] / "tests/data"
UPLOAD_SECONDS = 0.7  # between two chunks: a recording, seven times as fast as it was made
PATIENCE_SECONDS = 60.0
REFRESH_SECONDS = 0.4
MAX_WER = 0.15
DERIVED = ("json", "srt", "vtt", "txt")

NORMALIZE = jiwer.Compose(
    [
        jiwer.ToLowerCase(),
        jiwer.RemovePunctuation(),  # type: ignore[no-untyped-call]
        jiwer.RemoveMultipleSpaces(),
        jiwer.Strip(),
        jiwer.ReduceToListOfListOfWords(),
    ]
)


class Demo:
    """One run. `home`: its stack's folder, made anew."""

    def __init__(self, home: Path, console: Console) -> None:
        self.home, self.console = home, console
        self.stack = LocalStack(home)

    def run(self) -> bool:
        """Play the demo; True when both sessions came out complete and right. Stops all it started."""
        started = time.monotonic()
        if self.stack.is_up():
            self.stack.down()
        shutil.rmtree(self.home, ignore_errors=True)
        try:
            return self._play(started)
        finally:
            with self.console.status("stopping what was started"):
                self.stack.down()

    def _play(self, started: float) -> bool:
        self._title("1. A local AWS, deployed by the real scripts, and the speech server")
        self.stack.up(server=True, on_step=self._step)
        self.console.print("   [green]✓[/] the GPU server is ready (here: CPU, tiny.en)")
        watch = Watch(
            self.stack.client("s3"),
            self.stack.client("logs"),
            bucket=BUCKET,
            log_group=f"/aws/lambda/{QUEUE_PREFIX}-router",
        )
        first, second = Session("ann", "garden talk"), Session("ann", "evening-notes")

        self._title("2. A recording arrives in 5-second chunks while the server is on")
        self._upload(watch, first, SAMPLES / "session-a", until=lambda chunk: chunk.settled or bool(chunk.decision))

        self._title("3. The server is off: a second recording waits in the queue")
        self.stack.stop_server()
        self._upload(watch, second, SAMPLES / "session-b", until=lambda chunk: bool(chunk.decision))

        self._title("4. The batch: a server comes up, the worker drains the queue")
        working = time.monotonic()
        status = self.stack.work()
        batch_seconds = time.monotonic() - working
        watch.refresh()
        with self._table(watch, second) as refresh:
            refresh()

        self._title("5. What was said, and what came out")
        good = [
            self._compare(watch, session, SAMPLES / name)
            for session, name in ((first, "session-a"), (second, "session-b"))
        ]
        self._summary(watch, started, batch_seconds)
        return all(good) and status == 0

    def _upload(self, watch: Watch, session: Session, folder: Path, *, until: Callable[[Chunk], bool]) -> None:
        chunks = sorted(folder.glob("chunk-*.webm"))
        with self._table(watch, session) as refresh:
            for number, chunk in enumerate(chunks, 1):
                watch.upload(session.audio_prefix + chunk.name, chunk.read_bytes())
                next_upload = time.monotonic() + UPLOAD_SECONDS
                if number == len(chunks):
                    watch.upload_manifest(session, len(chunks))
                while time.monotonic() < next_upload:
                    refresh()
            deadline = time.monotonic() + PATIENCE_SECONDS
            while not all(until(chunk) for chunk in watch.of(session)) and time.monotonic() < deadline:
                refresh()

    def _table(self, watch: Watch, session: Session) -> "_LiveTable":
        return _LiveTable(watch, session, self.console)

    def _compare(self, watch: Watch, session: Session, folder: Path) -> bool:
        said = " ".join((folder / "text.txt").read_text().split())
        transcript = watch.session_transcript(session)
        if transcript is None:
            self.console.print(Panel("no session transcript", title=session.id, border_style="red"))
            return False
        wer = jiwer.wer(said, transcript.text, NORMALIZE, NORMALIZE)
        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(ratio=1)
        table.add_column(ratio=1)
        table.add_row("[dim]what was said[/]", "[dim]what came out[/]")
        table.add_row(said, transcript.text)
        right = wer <= MAX_WER
        title = f"{session.id}: word error rate {wer:.1%}, {transcript.duration:.0f} s, gaps: {len(transcript.gaps)}"
        self.console.print(Panel(table, title=title, border_style="green" if right else "red"))
        self.console.print(f"  in S3:   s3://{BUCKET}/{session.output_key} (also .srt .vtt .txt)", soft_wrap=True)
        self.console.print(f"  on disk: {self._save(watch, session)}\n", soft_wrap=True)
        return right

    def _save(self, watch: Watch, session: Session) -> Path:
        folder = self.home / "transcripts"
        folder.mkdir(parents=True, exist_ok=True)
        name = session.id.replace(" ", "-")
        for extension in DERIVED:
            if body := watch.file(session.derived_key(extension)):
                (folder / f"{name}.{extension}").write_bytes(body)
        return Path(os.path.relpath(folder / f"{name}.json"))

    def _summary(self, watch: Watch, started: float, batch_seconds: float) -> None:
        chunks = list(watch.chunks.values())
        routes = [chunk.transcript.route for chunk in chunks if chunk.transcript]
        lost = sum(not chunk.settled for chunk in chunks)
        queued_seconds = sum(c.transcript.duration for c in chunks if c.transcript and c.transcript.route == "queue")
        waits = sorted(
            c.done_at - c.uploaded_at for c in chunks if c.transcript and c.transcript.route == "direct" and c.done_at
        )
        if waits:
            self.console.print(
                f"direct route: half of the chunks had their transcript within {waits[len(waits) // 2]:.1f} s"
            )
        self.console.print(
            f"batch: {queued_seconds:.0f} s of audio in {batch_seconds:.0f} s with the server's start "
            f"({queued_seconds / batch_seconds:.1f}x real time)"
        )
        self.console.print(
            f"[bold]{len(chunks)} chunks: {routes.count('direct')} direct, {routes.count('queue')} queued, lost: {lost}"
            f"[/] ({time.monotonic() - started:.0f} s in all)"
        )

    def _step(self, step: str, seconds: float | None) -> None:
        if seconds is not None:
            self.console.print(f"   [green]✓[/] {step} [dim]{seconds:.1f} s[/]")

    def _title(self, text: str) -> None:
        self.console.print(f"\n[bold]{text}[/]")


class _LiveTable:
    """The chunks of one session, redrawn as things happen. On something that is no terminal: drawn once, at the end."""

    def __init__(self, watch: Watch, session: Session, console: Console) -> None:
        self._watch, self._session = watch, session
        self._live = Live(console=console, auto_refresh=False, transient=False)

    def __enter__(self) -> Callable[[], None]:
        self._live.__enter__()
        return self._refresh

    def __exit__(self, *error: object) -> None:
        self._live.update(self._draw(), refresh=True)
        self._live.__exit__(None, None, None)

    def _refresh(self) -> None:
        began = time.monotonic()
        self._watch.refresh()
        self._live.update(self._draw(), refresh=self._live.console.is_terminal)
        time.sleep(max(0.0, REFRESH_SECONDS - (time.monotonic() - began)))

    def _draw(self) -> Table:
        table = Table(expand=True, box=None, padding=(0, 1), header_style="dim")
        table.add_column("chunk", no_wrap=True)
        table.add_column("route", no_wrap=True)
        table.add_column("after", justify="right", no_wrap=True)
        table.add_column("text", ratio=1, no_wrap=True, overflow="ellipsis")
        for chunk in self._watch.of(self._session):
            after = f"{chunk.done_at - chunk.uploaded_at:.1f} s" if chunk.done_at else ""
            table.add_row(chunk.name, _route(chunk), after, _text(chunk))
        return table


def _route(chunk: Chunk) -> str:
    if chunk.transcript:
        return f"[green]{chunk.transcript.route}[/]"
    if chunk.failure:
        return "[red]failed[/]"
    return f"[yellow]{chunk.decision}[/]" if chunk.decision else "[dim]on its way[/]"


def _text(chunk: Chunk) -> str:
    if chunk.transcript:
        return chunk.transcript.text or f"[dim]({chunk.transcript.reason})[/]"
    return chunk.failure or f"[dim]{chunk.reason}[/]"
