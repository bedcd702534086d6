"""`harness leaderboard`"""

from pathlib import Path
from typing import Annotated

import typer

from dskd.config import ConfigError, suggest
from harness.cli.common import OutOption, listed, results_folder
from harness.cli.tables import (
    FormatOption,
    MetricOption,
    PublishedFileOption,
    PublishedOption,
    WhereOption,
    WhyOption,
    check_format,
    metrics_of,
    print_remarks,
    print_tables,
)


def leaderboard(
    runs: Annotated[list[Path], typer.Argument(help="Results folders (runs/NAME), or grid files.", show_default=False)],
    by: Annotated[
        str,
        typer.Option(
            help="Row keys: method, backbone, category, seed or a setting (train.epochs); defect: AUROC and recall of "
            "each type of defect."
        ),
    ] = "method,backbone",
    where: WhereOption = None,
    metric: MetricOption = None,
    sort: Annotated[str, typer.Option(help="A column, a metric or a row key; the first column by default.")] = "",
    table: Annotated[
        str, typer.Option(help="scores, aggregate, stability, time, differences, tests or all; defects, curves.")
    ] = "scores",
    against: Annotated[
        str | None, typer.Option(help="The row that `differences` compares with the others: dskd; else the best.")
    ] = None,
    published: PublishedOption = False,
    published_file: PublishedFileOption = None,
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Several protocols (sizes, weights, test images): a table for each.")
    ] = False,
    variants: Annotated[
        bool, typer.Option("--variants", help="A row for each variant of evaluation, not for each method alone.")
    ] = False,
    why: WhyOption = False,
    output: FormatOption = "table",
    out: OutOption = "runs",
) -> None:
    """Print the comparison of finished runs, from their records alone.

    A score is the mean over categories and seeds, ± its 95 % interval over seeds; what is missing is counted, never a
    zero. Runs that differ in a setting are rows of their own; of the evaluations of one training that of its method's
    own map stands for it. Below stand who leads, beyond noise or not, and what speaks against it.

    Further tables (`--table`, several of them too): *aggregate* has interquartile means, ranks and which methods cannot
    be told apart; *stability* what seeds and epochs do; *time* how many images and seconds a training takes to come
    near the best (with `evaluate.at: log`; it selects nothing), *curves* the metrics by epoch behind it; *differences*
    paired differences from one row, with intervals; *tests* Wilcoxon tests over categories; *defects* (the same as
    `--by defect`) how well each type of defect is found.

    How each number is made, and the schema of CSV and JSON: docs/leaderboard.md.
    """
    from harness.leaderboard.frame import load
    from harness.leaderboard.published import read
    from harness.leaderboard.sections import make_sections
    from harness.leaderboard.table import boards

    check_format(output)
    keys, names = _keys_and_tables(listed(by), table)
    found = load([results_folder(path, Path(out)) for path in runs])
    made = boards(found, keys, metrics_of(metric), where or (), allow_mixed, variants)
    values = read(published_file) if published or published_file else None
    print_tables(make_sections(made, names, sort, against, values), output, found, why)
    print_remarks(found)


def _keys_and_tables(keys: list[str], table: str) -> tuple[list[str], list[str]]:
    """The keys of rows and the names of tables; the key `defect` is a table. Raises ConfigError for an unknown one."""
    from harness.leaderboard.sections import DEFECTS, LONG, NAMES

    names = list(NAMES) if table == "all" else listed(table)
    for name in names:
        if name not in (*NAMES, *LONG):
            raise ConfigError(f"--table: unknown table {name!r}; {suggest(name, [*NAMES, *LONG, 'all'])}")
    if "defect" in keys:
        keys = [key for key in keys if key != "defect"] or ["method", "backbone"]
        names = [DEFECTS] if names == ["scores"] else list(dict.fromkeys([*names, DEFECTS]))
    return keys, names
