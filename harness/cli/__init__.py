"""The command `harness`: one file per command; each parses, calls the library and prints."""

import gc
import io
import os
import sys
from typing import TextIO

import typer

from dskd.config import ConfigError
from harness.cli.backbones import backbones
from harness.cli.cache import cache
from harness.cli.common import silence
from harness.cli.compare import compare
from harness.cli.init import init
from harness.cli.leaderboard import leaderboard
from harness.cli.methods import methods
from harness.cli.plan import plan
from harness.cli.profile import profile
from harness.cli.report import report
from harness.cli.run import run
from harness.cli.show import show
from harness.cli.status import status
from harness.cli.submit import submit
from harness.text import one_line

app = typer.Typer(
    help="Benchmark student-teacher anomaly detection: a grid file becomes runs, runs become records, "
    "records become a leaderboard.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
COMMANDS = (run, plan, show, leaderboard, compare, report, submit, status, profile, methods, backbones, cache, init)
for command in COMMANDS:
    app.command()(command)


def main() -> None:
    """Exit codes: 0 all done, 1 some failed, 2 wrong usage or input, 130 interrupted."""
    # Plans and records of 10,000 runs are trees without cycles, which Python would search again and again as they grow.
    gc.set_threshold(5_000_000)
    _prepare_streams()
    try:
        code = _call()
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:  # `harness plan | head`
        silence(sys.stdout)
        code = 0
    except OSError as error:
        if not _is_lost(sys.stdout):
            raise
        silence(sys.stdout)
        typer.echo(f"error: the output cannot be written ({error.strerror})", err=True)
        code = 1
    sys.exit(code)


def _call() -> int:
    try:
        app(standalone_mode=True)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except ConfigError as error:
        typer.echo(f"error: {one_line(str(error))}", err=True)
        return 2
    except KeyboardInterrupt:
        return 130
    return 0


def _prepare_streams() -> None:
    """A descriptor that the caller closed would be taken by the next file that is opened, and printed into."""
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # what an encoding has no sign for is written as an escape
            stream.reconfigure(errors="backslashreplace")


def _is_lost(stream: TextIO | None) -> bool:
    """Whether it was this stream that raised: it would again."""
    try:
        if stream is not None:
            stream.write("\n")
            stream.flush()
    except (OSError, ValueError):
        return True
    return False
