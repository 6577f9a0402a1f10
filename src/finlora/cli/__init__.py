"""The command line. Each command is one straight-line file that reads as a recipe; here they are only gathered.

`main` prints a `FinloraError` as one `error:` line a problem on stderr and returns 2; an interrupted run returns 130 and
says how to go on. Results go to stdout, all else to stderr. Nothing heavier than typer is imported until a command runs.
"""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from .. import __version__
from ..errors import FinloraError
from . import (
    check,
    compress,
    data,
    doctor,
    evaluate,
    export,
    fidelity,
    finetune,
    generate,
    list,
    pretrain,
    quickstart,
    report,
    study,
    xbrl,
)

ABOUT = """Efficient financial language models: low-rank adapters over quantised bases, measured honestly.

New here? [bold]finlora quickstart[/bold] tunes and grades the embedded model in two or three minutes, with no network.
"""
EPILOG = "A run is one TOML file. [bold]--set train.lr=1e-4[/bold] changes any of its values; [bold]finlora check run.toml[/bold] finds everything wrong with it without running it."
START, RUN, LOOK = "Start here", "Train and grade", "Look closer"


class Interrupted(Exception):
    """Ctrl-C inside a command, carried past typer, which would forget what the verb said."""


class Commands(TyperGroup):
    """The command group; it keeps the words of an interrupted verb."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command. Raises: Interrupted on Ctrl-C."""
        try:
            return super().invoke(ctx)
        except KeyboardInterrupt as stop:
            raise Interrupted(str(stop)) from stop


app = typer.Typer(cls=Commands, help=ABOUT, epilog=EPILOG, invoke_without_command=True, rich_markup_mode="rich", add_completion=False,
                  pretty_exceptions_enable=False, context_settings={"help_option_names": ["-h", "--help"]})  # fmt: skip


@app.callback()
def options(
    ctx: typer.Context,
    version: bool = typer.Option(
        False, "--version", help="Show the version and stop.", is_eager=True, callback=lambda on: _version(on)
    ),
    debug: bool = typer.Option(False, "--debug", help="Show the traceback of an error; may appear anywhere on the line."),
) -> None:
    """Options of every command; `--debug` is taken out by `main` before they are read."""
    if ctx.invoked_subcommand is None:
        typer.echo(ctx.get_help())


for _module, _panel in (
    (quickstart, START), (finetune, RUN), (evaluate, RUN), (pretrain, RUN), (compress, RUN), (generate, RUN), (study, RUN), (export, RUN), (xbrl, RUN),
    (report, LOOK), (fidelity, LOOK), (list, LOOK), (check, LOOK), (doctor, LOOK), (data, LOOK),
):  # fmt: skip
    app.command(_module.__name__.rpartition(".")[2], rich_help_panel=_panel)(_module.command)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit status: 0 done, 1 found wanting, 2 an error the user can fix, 130 interrupted."""
    words = [*(sys.argv[1:] if argv is None else argv)]
    debug = "--debug" in words
    try:
        status = app(args=[word for word in words if word != "--debug"], prog_name="finlora", standalone_mode=False)
        sys.stdout.flush()
        return int(status or 0)
    except FinloraError as error:
        _tell(error, debug)
        return 2
    except Interrupted as stop:
        _line(f"interrupted: {str(stop) or 'the same command again goes on where it stopped'}")
        return 130
    except OSError as error:
        if error.errno == errno.EPIPE:  # the reader of our output has left: `finlora list methods | head -1`
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            return 0
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EPERM, errno.EROFS):
            raise
        place = error.filename or "the output"
        _tell(
            FinloraError(
                f"cannot write {place}: {error.strerror}", "free some space, or choose another folder with --out"
            ),
            debug,
        )
        return 2
    except Exception as error:
        told = getattr(error, "format_message", None)  # typer's own errors: unknown option, missing argument
        if told is None:
            raise
        context = getattr(error, "ctx", None)
        hint = f"{context.command_path} --help" if context else "finlora --help"
        _tell(FinloraError(told(), f"see `{hint}`"), debug)
        return 2


def _tell(error: FinloraError, debug: bool) -> None:
    if debug:
        import traceback

        traceback.print_exception(error)
    for problem in error.problems:
        _line(f"error: {problem}")


def _line(text: str) -> None:
    from rich.console import Console
    from rich.text import Text

    word, _, rest = text.partition(" ")
    Console(stderr=True, highlight=False).print(Text.assemble((word, "bold red"), " ", rest), soft_wrap=True)


def _version(on: bool) -> None:
    if on:
        typer.echo(f"finlora {__version__}")
        raise typer.Exit()
