"""`harness best`"""

from pathlib import Path
from typing import Annotated

import typer

from harness.cli.common import OutOption, listed, results_folder
from harness.cli.tables import FormatOption, WhereOption, check_format, print_remarks, print_tables

_LIMIT = "; may be given again."


def best(
    runs: Annotated[list[Path], typer.Argument(help="Results folders (runs/NAME), or grid files.", show_default=False)],
    most: Annotated[
        list[str] | None,
        typer.Option(
            "--max", metavar="KEY=NUMBER", help="No more than: latency_p95_ms=20, peak_device_memory_mib=500" + _LIMIT
        ),
    ] = None,
    least: Annotated[
        list[str] | None,
        typer.Option("--min", metavar="KEY=NUMBER", help="No less than: images_per_s=100, image_ap=0.9" + _LIMIT),
    ] = None,
    device: Annotated[
        str | None,
        typer.Option(help="Where latency, throughput and memory count, by a part of its name, if several measured."),
    ] = None,
    metric: Annotated[str, typer.Option(help="The metric by which models lead.")] = "image_auroc",
    by: Annotated[
        str, typer.Option(help="What makes a model: method, backbone or a setting (image_size).")
    ] = "method,backbone",
    where: WhereOption = None,
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Several protocols (sizes, weights, test images): a table for each.")
    ] = False,
    output: FormatOption = "table",
    out: OutOption = "runs",
) -> None:
    """Choose a model under limits: the cheapest of those that are not told apart from the best within them.

    KEY is a metric (a share: 0.9) or what inspection costs, as `harness leaderboard --metric` names them, or
    images_per_s; memory also in MB, as peak_device_mb and peak_host_mb. What leads is told from noise as the
    leaderboard does it, among the models within the limits alone; *cheapest* is the lowest latency (the one that is
    limited, else p50), or the fewest GMAC where no latency is known. The table says of each other model why it is not
    the one. Exit codes: 0, 1 if no model is within the limits, 2 wrong usage or input.
    """
    from harness.leaderboard import best as library
    from harness.leaderboard.frame import load

    check_format(output)
    found = load([results_folder(path, Path(out)) for path in runs])
    sections = library.best(found, metric, most or (), least or (), device, listed(by), where or (), allow_mixed)
    print_tables(sections, output)
    print_remarks(found)
    raise typer.Exit(0 if all(section.about["chosen"] for section in sections) else 1)
