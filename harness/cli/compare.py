"""`harness compare`"""

from typing import Annotated

import typer

from dskd.config import ConfigError, require, suggest
from harness.cli.common import console, listed


def compare(
    before: Annotated[str, typer.Argument(metavar="A", help="A results folder, or RUNS@COMMIT.", show_default=False)],
    after: Annotated[str, typer.Argument(metavar="B", help="The one that is compared with it.", show_default=False)],
    metric: Annotated[
        str | None, typer.Option(help="Metrics, as records name them: image_auroc,pixel_ap,aupro_0.05.")
    ] = None,
    ignore: Annotated[
        str, typer.Option(metavar="SETTINGS", help="Settings in which matched runs may differ: precision,train.lr.")
    ] = "",
    fail_on: Annotated[
        float | None,
        typer.Option(metavar="POINTS", help="Exit with 1 if a metric fell by more, beyond noise: -0.5."),
    ] = None,
    output: Annotated[str, typer.Option("--format", help="table, markdown, csv, latex or json.")] = "table",
) -> None:
    """Compare two results folders, or two commits in one (RUNS@0123abc RUNS@4567def), run by run.

    Runs are matched by their content: method with all its settings, backbone, weights, images, seed, size and
    precision. Differences are B minus A in points, paired by category, seed and test images, with a 95 % interval; ▲
    and ▼ mark what is beyond noise. Throughput is compared on the same device only. Exit codes: 0, 1 if --fail-on
    found a regression, 2 wrong usage or input.
    """
    from harness.leaderboard import compare as library
    from harness.leaderboard.frame import SHOWN
    from harness.leaderboard.render import FORMATS, print_sections, remarks

    formats = ["table", *FORMATS]
    if output not in formats:
        raise ConfigError(f"--format: {output!r} is not possible; {suggest(output, formats)}")
    require(
        fail_on is None or fail_on <= 0,
        f"--fail-on: {fail_on} is not possible; write the points that a metric may fall by, such as -0.5",
    )
    sides = [library.read_side(text) for text in (before, after)]
    section, _ = library.compare(*sides, SHOWN if metric is None else listed(metric), listed(ignore))
    differences = section.tables[0]
    if output == "table":
        print_sections(console(), [section])
    else:
        del section.tables[1 if output == "csv" else len(section.tables) :]  # CSV is one table
        typer.echo(FORMATS[output]([section]), nl=False)
    notes = console(stderr=True)
    for remark in (line for side in sides for line in remarks(side.found)):
        notes.print(remark, soft_wrap=True)
    failed = [] if fail_on is None else library.regressions(differences, fail_on)
    for line in failed:
        notes.print(f"regression: {line}", soft_wrap=True)
    raise typer.Exit(1 if failed else 0)
