"""The command `harness`: one file per command; each parses, calls the library and prints."""

import gc
import importlib
import io
import os
import sys
from typing import Annotated, Any, TextIO

import typer
from typer.core import TyperGroup

from dskd.config import ConfigError
from harness.cli.common import silence
from harness.text import one_line

COMMANDS = [
    "run",
    "plan",
    "search",
    "show",
    "predict",
    "pack",
    "leaderboard",
    "best",
    "compare",
    "report",
    "submit",
    "status",
    "profile",
    "doctor",
    "methods",
    "backbones",
    "datasets",
    "cache",
    "migrate",
    "init",
]
MARKUP: Any = "markdown"


class Commands(TyperGroup):
    """Each is imported when it is called: what one of them needs, the others do not wait for."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.commands = dict.fromkeys(COMMANDS)  # names that are listed and suggested

    def get_command(self, _: Any, name: str) -> Any:
        if name not in COMMANDS:
            return None
        alone = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=MARKUP)
        alone.command(name)(getattr(importlib.import_module(f"harness.cli.{name}"), name))
        return typer.main.get_command(alone)


app = typer.Typer(
    cls=Commands,
    invoke_without_command=True,
    rich_markup_mode=MARKUP,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


@app.callback(
    help="Benchmark student-teacher anomaly detection: a grid file becomes runs, runs become records, "
    "records become a leaderboard."
)
def _harness(
    context: typer.Context,
    version: Annotated[bool, typer.Option("--version", help="Show the versions and exit.")] = False,
) -> None:
    if version:
        from harness.environment import describe_environment

        about = describe_environment()
        commit = f" ({about['commit']})" if about["commit"] else ""
        packages = about["packages"]
        others = f"torch {packages['torch']}, timm {packages['timm']}, Python {about['python']}"
        typer.echo(f"harness {packages['dskd-harness']}{commit}; {others}")
    elif context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)


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
        app(standalone_mode=True, prog_name="harness")  # by which completion knows it, however it was called
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
