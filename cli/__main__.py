"""`python -m cli`: what the Makefile calls. Every command is non-interactive and safe to repeat."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import typer
from rich.console import Console

from cli.demo import Demo
from cli.local import BUCKET, LocalStack
from infra.local.stack import StackError

ROOT = Path(__file__).resolve().parents[1]
HOME = ROOT / ".local"
EXIT_INTERRUPTED = 130

app = typer.Typer(add_completion=False, no_args_is_help=True, pretty_exceptions_enable=False)
console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)


@app.command()
def demo() -> None:
    """Real speech through the whole system, both routes; exit 0 only if both transcripts are right."""
    if not Demo(HOME / "demo", console).run():
        console.print("[red]The demo did not come out right.[/] Its logs: .local/demo/log")
        raise typer.Exit(1)


@app.command()
def up(server: bool = typer.Option(os.environ.get("NO_SERVER", "") in ("", "0"), help="also start the server")) -> None:
    """Start the local stack, deployed and ready, and say how to use it."""
    local = LocalStack(HOME)
    local.up(server=server, on_step=_step)
    settings = local.settings()
    aws = f".venv-aws/bin/aws --endpoint-url {settings['AWS_ENDPOINT_URL']}"
    console.print("\n[bold]The local stack is up.[/] In this shell:\n")
    console.print("  source .local/env", soft_wrap=True)
    for line in (
        *(_curl_lines() if server else ()),
        f"{aws} s3 cp tests/data/session-a/chunk-001.webm s3://{BUCKET}/users/me/audio/sessions/first/chunk-001.webm",
        f"{aws} s3 ls --recursive s3://{BUCKET}/users/me/transcripts/",
    ):
        console.print(f"  {line}", soft_wrap=True, markup=False)
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


def _curl_lines() -> tuple[str, ...]:
    key = '-H "X-API-Key: $API_KEY"'
    return (
        f'curl {key} -F file=@tests/data/hello.wav "$FAST_API_SERVER_URL/transcribe"',
        f'curl -X POST {key} -H "Content-Type: application/json" -d "{{\\"s3_input_path\\": '
        f'\\"s3://$AUDIO_BUCKET/users/me/audio/sessions/first/chunk-001.webm\\"}}" '
        '"$FAST_API_SERVER_URL/transcribe-s3"',
    )


def _step(step: str, seconds: float | None) -> None:
    if seconds is not None:
        console.print(f"  [green]✓[/] {step} [dim]{seconds:.1f} s[/]")


def main() -> None:
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stopped demo cleans up like an interrupted one
    try:
        app(standalone_mode=False)
    except StackError as error:
        console.print(f"[red]{error}[/]", soft_wrap=True)
        console.print("The logs are in .local; `make down` and then the same command again start afresh.")
        sys.exit(1)
    except KeyboardInterrupt:
        console.print("\nInterrupted; everything that was started is stopped. Start again with the same command.")
        sys.exit(EXIT_INTERRUPTED)
    except typer.Exit as leave:
        sys.exit(leave.exit_code)
    except subprocess.SubprocessError as error:
        console.print(f"[red]{error}[/]")
        sys.exit(1)


if __name__ == "__main__":
    main()
