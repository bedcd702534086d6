"""`harness leaderboard`"""

from pathlib import Path
from typing import Annotated

import typer

from dskd.config import ConfigError, suggest
from harness.cli.common import OutOption, console, results_folder


def leaderboard(
    runs: Annotated[list[Path], typer.Argument(help="Results folders (runs/NAME), or grid files.", show_default=False)],
    by: Annotated[str, typer.Option(help="Row keys: method, backbone, category, seed or a setting (train.epochs).")] = (
        "method,backbone"
    ),
    output: Annotated[str, typer.Option("--format", help="table, markdown, csv, latex or json.")] = "table",
    out: OutOption = "runs",
) -> None:
    """Print the comparison table of finished runs, from their records alone."""
    from harness.leaderboard.render import FORMATS, print_failures, print_table, remarks
    from harness.leaderboard.table import build, load

    formats = ["table", *FORMATS]
    if output not in formats:
        raise ConfigError(f"--format: {output!r} is not possible; {suggest(output, formats)}")
    found = load([results_folder(path, Path(out)) for path in runs])
    table = build(found, [key.strip() for key in by.split(",") if key.strip()])
    notes = console(stderr=True)
    if output == "table":
        print_table(console(), table)
        print_failures(console(), found.failures)
    else:
        typer.echo(FORMATS[output](table), nl=False)
    for remark in remarks(found):
        notes.print(remark, markup=False)
