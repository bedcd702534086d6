"""`harness compare`"""

from dataclasses import replace
from typing import Annotated

import typer

from dskd.config import require
from harness.cli.common import console, listed
from harness.cli.tables import FormatOption, MetricOption, check_format, metrics_of, print_remarks, print_tables


def compare(
    before: Annotated[str, typer.Argument(metavar="A", help="A results folder, or RUNS@COMMIT.", show_default=False)],
    after: Annotated[str, typer.Argument(metavar="B", help="The one that is compared with it.", show_default=False)],
    metric: MetricOption = None,
    ignore: Annotated[
        str, typer.Option(metavar="SETTINGS", help="Settings in which matched runs may differ: precision,train.lr.")
    ] = "",
    fail_on: Annotated[
        float | None,
        typer.Option(metavar="POINTS", help="Exit with 1 if a metric fell by more, beyond noise: -0.5."),
    ] = None,
    output: FormatOption = "table",
) -> None:
    """Compare two results folders, or two commits in one (RUNS@0123abc RUNS@4567def), run by run.

    Runs are matched by their content: method with all its settings, backbone, weights, images, seed, size and
    precision. Differences are B minus A in points, paired by category, seed and test images, with a 95 % interval; ▲
    and ▼ mark what is beyond noise. Throughput is compared on the same device only. Exit codes: 0, 1 if --fail-on
    found a regression, 2 wrong usage or input.
    """
    from harness.leaderboard import compare as library

    check_format(output)
    require(
        fail_on is None or fail_on <= 0,
        f"--fail-on: {fail_on} is not possible; write the points that a metric may fall by, such as -0.5",
    )
    sides = [library.read_side(text) for text in (before, after)]
    section, _ = library.compare(*sides, metrics_of(metric), listed(ignore))
    shown = section if output != "csv" else replace(section, tables=section.tables[:1])  # CSV is one table
    if output in ("table", "markdown") and all(cells["equal"] == cells["pairs"] for _, cells in section.tables[0].rows):
        shown = replace(section, tables=section.tables[1:])  # rows of +0.0 would say nothing
    print_tables([shown], output)
    print_remarks(*(side.found for side in sides))
    failed = [] if fail_on is None else library.regressions(section.tables[0], fail_on)
    for line in failed:
        console(stderr=True).print(f"regression: {line}", soft_wrap=True)
    raise typer.Exit(1 if failed else 0)
