"""`harness leaderboard`"""

from pathlib import Path
from typing import Annotated

import typer

from dskd.config import ConfigError, suggest
from harness.cli.common import OutOption, console, listed, results_folder


def leaderboard(
    runs: Annotated[list[Path], typer.Argument(help="Results folders (runs/NAME), or grid files.", show_default=False)],
    by: Annotated[
        str, typer.Option(help="Row keys: method, backbone, category, seed or a setting (train.epochs).")
    ] = "method,backbone",
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Only these: method=dskd, category!=tile; may be given again."),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Metrics, as records name them: image_auroc,pixel_ap,aupro_0.05.")
    ] = None,
    sort: Annotated[str, typer.Option(help="A column, a metric or a row key; the first column by default.")] = "",
    table: Annotated[
        str, typer.Option(help="scores, aggregate, stability, differences, tests, several of them, or all.")
    ] = "scores",
    against: Annotated[
        str | None, typer.Option(help="The row that `differences` compares with the others: dskd; else the best.")
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Add published values and the distance from them.")
    ] = False,
    published_file: Annotated[
        Path | None, typer.Option(help="A CSV of published values of your own, added to those that ship.")
    ] = None,
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Several protocols (sizes, weights, test images): a table for each.")
    ] = False,
    output: Annotated[str, typer.Option("--format", help="table, markdown, csv, latex or json.")] = "table",
    out: OutOption = "runs",
) -> None:
    """Print the comparison of finished runs, from their records alone.

    A score is the mean over categories and seeds, ± its 95 % interval over seeds; what is missing is counted, never a
    zero. Runs that differ in a setting are rows of their own. Further tables (`--table`): *aggregate* has
    interquartile means, ranks and which methods cannot be told apart; *stability* what seeds and epochs do;
    *differences* paired differences from one row, with intervals; *tests* Wilcoxon tests over categories.

    How each number is made, and the schema of CSV and JSON: docs/leaderboard.md.
    """
    from harness.leaderboard.frame import SHOWN, load
    from harness.leaderboard.published import read
    from harness.leaderboard.render import FORMATS, print_failures, print_sections, remarks
    from harness.leaderboard.sections import NAMES, make_sections
    from harness.leaderboard.table import boards

    formats = ["table", *FORMATS]
    if output not in formats:
        raise ConfigError(f"--format: {output!r} is not possible; {suggest(output, formats)}")
    names = list(NAMES) if table == "all" else listed(table)
    for name in names:
        if name not in NAMES:
            raise ConfigError(f"--table: unknown table {name!r}; {suggest(name, [*NAMES, 'all'])}")
    found = load([results_folder(path, Path(out)) for path in runs])
    made = boards(found, listed(by), listed(metric) if metric is not None else SHOWN, where or (), allow_mixed)
    values = read(published_file) if published or published_file else None
    sections = make_sections(made, names, sort, against, values)
    if output == "table":
        print_sections(console(), sections)
        print_failures(console(), found.failures)
    else:
        typer.echo(FORMATS[output](sections), nl=False)
    notes = console(stderr=True)
    for remark in remarks(found):
        notes.print(remark, soft_wrap=True)
