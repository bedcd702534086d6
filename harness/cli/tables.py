"""What the commands share that show finished runs: options, and how tables and what was passed over are printed."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dskd.config import ConfigError, suggest
from harness.cli.common import console, listed

if TYPE_CHECKING:
    from harness.leaderboard.frame import Found
    from harness.leaderboard.sections import Section

WhereOption = Annotated[
    list[str] | None,
    typer.Option(
        metavar="KEY=VALUE",
        help="Only these: method=dskd, category!=tile, 'latency_p50_ms<20'; may be given again.",
    ),
]
MetricOption = Annotated[
    str | None,
    typer.Option(
        help="Metrics, as records name them: image_auroc,pixel_ap,aupro_0.05; and what inspection costs: "
        "latency_p50_ms, latency_p99_ms, peak_host_memory_mib, parameters_students, gmac."
    ),
]
PublishedOption = Annotated[bool, typer.Option("--published", help="Add published values and the distance from them.")]
PublishedFileOption = Annotated[
    Path | None, typer.Option(help="A CSV of published values of your own, added to those that ship.")
]
WhyOption = Annotated[bool, typer.Option("--why", help="All that the verdict rests on, and every caution.")]
FormatOption = Annotated[str, typer.Option("--format", help="table, markdown, csv, latex or json.")]


def metrics_of(option: str | None) -> Sequence[str]:
    """Those that were asked for, else the usual ones."""
    from harness.leaderboard.frame import SHOWN

    return SHOWN if option is None else listed(option)


def check_format(output: str) -> None:
    """Raises ConfigError for a `--format` that there is not."""
    from harness.leaderboard.render import FORMATS

    formats = ["table", *FORMATS]
    if output not in formats:
        raise ConfigError(f"--format: {output!r} is not possible; {suggest(output, formats)}")


def print_tables(sections: Sequence["Section"], output: str, found: "Found | None" = None, why: bool = False) -> None:
    """In the format asked for; the terminal is told of failures, too. `why`: and all of the verdict."""
    from harness.leaderboard.frame import names_in
    from harness.leaderboard.render import FORMATS, print_failures, print_sections

    if output == "table":
        print_sections(console(), sections, why)
        if found is not None and found.failures:
            print_failures(console(), found.failures, names_in(found))
    else:
        typer.echo(FORMATS[output](sections), nl=False)


def print_remarks(*selections: "Found") -> None:
    """What was passed over while loading, on standard error."""
    from harness.leaderboard.render import remarks

    notes = console(stderr=True)
    for remark in (line for found in selections for line in remarks(found)):
        notes.print(remark, soft_wrap=True)
