"""The `ssd` command: its subcommands, and the place where every error that a user can cause becomes one sentence.

Commands import the engine, and with it torch, when they run, so that `ssd --help` and a wrong flag are answered at once.
"""

from __future__ import annotations

import os
import sys
import warnings
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from ssd import __version__
from ssd.cli.batch import batch
from ssd.cli.bench import bench
from ssd.cli.chat import chat
from ssd.cli.console import INTERRUPTED, say
from ssd.cli.decode import decode
from ssd.cli.demo import demo
from ssd.cli.distill import distill
from ssd.cli.doctor import doctor
from ssd.cli.options import WrongUsage
from ssd.cli.plan import plan
from ssd.cli.pull import pull
from ssd.cli.report import report
from ssd.cli.serve import serve
from ssd.cli.simulate import simulate
from ssd.errors import SsdError, one_line

FAILED, WRONG_USAGE = 1, 2

app = typer.Typer(
    help="Speculative speculative decoding: the text of a target model, drafted ahead by a small one.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for command in (decode, chat, serve, batch, demo, bench, report, plan, simulate, distill, pull, doctor):
    app.command()(command)


def _show_version(asked: bool) -> None:
    if asked:
        print(f"ssd {__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _ssd(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Version of ssd.")] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status: 1 after a failure, 2 for arguments that are not understood."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # a terminal shows the number of a character that it does not have
            stream.reconfigure(errors="backslashreplace")
    try:
        with warnings.catch_warnings():
            warnings.showwarning = _show_warning
            return _run(sys.argv[1:] if arguments is None else list(arguments))
    except WrongUsage as error:
        say(str(error))
        return WRONG_USAGE
    except (SsdError, ImportError) as error:
        say(str(error))
    except BrokenPipeError:
        # The reader is gone, so the rest of the buffer must not be written at exit either.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        say("the output was closed before it was complete.")
    except MemoryError as error:
        say(f"memory is full ({one_line(error)}); lower --max-batch or --max-context.")
    except OSError as error:
        say(f"{one_line(error)}.")
    except (KeyboardInterrupt, typer.Abort):
        say("interrupted.")
        return INTERRUPTED
    return FAILED


def _run(arguments: list[str]) -> int:
    """Run one command; `app()` would print errors and end the process itself."""
    command = typer.main.get_command(app)
    try:
        with command.make_context("ssd", arguments) as context:
            command.invoke(context)
            sys.stdout.flush()
    except typer.Exit as stop:
        return int(stop.exit_code)
    except Exception as error:
        if not hasattr(error, "format_message"):  # only typer's errors about arguments have it, whichever click it brings
            raise
        say(" ".join(str(error.format_message()).split()))
        return WRONG_USAGE
    return 0


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: str | None = None
) -> None:
    say(f"warning: {' '.join(str(message).split())}")
