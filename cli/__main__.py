"""`python -m cli`: what the Makefile calls. Every command is non-interactive and safe to repeat."""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from cli import operate
from cli.local import LocalStack
from infra.local.stack import StackError
from shared.errors import RouterError

ROOT = Path(__file__).resolve().parents[1]
HOME = Path(os.environ.get("LOCAL_HOME") or ROOT / ".local")  # another folder: another stack beside it
EXIT_INTERRUPTED = 130
INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
UsageError: Any = typer.BadParameter.__base__  # click's own, which some versions of typer bring along

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
app.add_typer(operate.dlq, name="dlq")
app.command("backfill")(operate.queue_archive)
app.command("report")(operate.tell)
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


@app.command()
def demo() -> None:
    """Real speech through the whole system, both routes; exit 0 only if both transcripts are right."""
    from cli.demo import Demo  # brings what measures word errors, for which no other command should wait

    if not Demo(HOME / "demo", console).run():
        console.print(f"[red]The demo did not come out right.[/] Its logs: {os.path.relpath(HOME / 'demo/log')}")
        raise typer.Exit(1)


@app.command()
def up(server: bool = typer.Option(os.environ.get("NO_SERVER", "") in ("", "0"), help="also start the server")) -> None:
    """Start the local stack, deployed and ready, and say how to use it."""
    local = LocalStack(HOME)
    local.up(server=server, on_step=_step)
    console.print("\n[bold]The local stack is up.[/] Try, from this folder:\n")
    for line in ("source " + os.path.relpath(HOME / "env"), *_lines_to_try(server=server)):
        console.print(f"  {line}", markup=False, soft_wrap=True)
    console.print("\n`make worker` drains the queue, `make down` stops everything.", markup=False)


@app.command()
def down() -> None:
    """Stop the local stack; what it holds stays for the next `up`."""
    LocalStack(HOME).down()
    console.print("The local stack is down.")


@app.command()
def worker() -> None:
    """Drain the local stack's queue, starting a server if none runs."""
    raise typer.Exit(LocalStack(HOME).work())


def _lines_to_try(*, server: bool) -> tuple[str, ...]:
    aws = '.venv-aws/bin/aws --endpoint-url "$AWS_ENDPOINT_URL" s3'
    chunk = "s3://$AUDIO_BUCKET/users/me/audio/sessions/first/chunk-001.webm"
    s3_lines = (
        f'{aws} cp tests/data/session-a/chunk-001.webm "{chunk}"',
        f'{aws} ls --recursive "s3://$AUDIO_BUCKET/users/me/"',
    )
    if not server:
        return s3_lines
    curl = 'curl -H "X-API-Key: $API_KEY"'
    body = f'{{\\"s3_input_path\\": \\"{chunk}\\"}}'
    return (
        f'{curl} -F file=@tests/data/hello.wav "$FAST_API_SERVER_URL/transcribe"',
        *s3_lines,
        f'{curl} -H "Content-Type: application/json" -d "{body}" "$FAST_API_SERVER_URL/transcribe-s3"',
    )


def _step(step: str, seconds: float | None) -> None:
    if seconds is not None:
        console.print(f"  [green]✓[/] {step} [dim]{seconds:.1f} s[/]")


def _interrupt(number: int, frame: object) -> None:
    """Clean up, once: further signals (a second Ctrl-C, the terminal that closes) must not cut that short."""
    for every in INTERRUPTS:
        signal.signal(every, signal.SIG_IGN)
    raise KeyboardInterrupt


def main() -> None:
    for number in INTERRUPTS:
        signal.signal(number, _interrupt)
    try:
        status = app(standalone_mode=False)
    except StackError as error:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        console.print(
            f"The logs are in {os.path.relpath(HOME)}. `make down`, then the same command again, starts afresh."
        )
        status = 1
    except UsageError as error:
        error.show()
        status = error.exit_code
    except RouterError as error:
        console.print(str(error), style="red", markup=False, soft_wrap=True)
        status = 1
    if status == EXIT_INTERRUPTED:  # typer makes this of a KeyboardInterrupt
        console.print("\nInterrupted. `make down` stops whatever still runs; the same command starts again.")
    sys.exit(status)


if __name__ == "__main__":
    main()
