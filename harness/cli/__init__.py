"""The command `harness`: one file per command; each parses, calls the library and prints."""

import gc
import sys

import typer

from dskd.config import ConfigError
from harness.cli.backbones import backbones
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

app = typer.Typer(
    help="Benchmark student-teacher anomaly detection: a grid file becomes runs, runs become records, "
    "records become a leaderboard.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (run, plan, show, leaderboard, compare, report, submit, status, profile, methods, backbones, init):
    app.command()(command)


def main() -> None:
    """Exit codes: 0 all done, 1 some failed, 2 wrong usage or input, 130 interrupted."""
    # Plans and records of 10,000 runs are trees without cycles, which Python would search again and again as they grow.
    gc.set_threshold(5_000_000)
    try:
        app()
    except ConfigError as error:
        typer.echo(f"error: {error}", err=True)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # `harness plan | head`
        sys.stderr.close()
        sys.exit(0)
