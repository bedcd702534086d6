"""`harness report`"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dskd.config import ConfigError, require
from harness.cli.common import console, listed
from harness.cli.outputs import check_file
from harness.cli.tables import PublishedFileOption, PublishedOption, WhereOption, metrics_of, print_remarks
from harness.files import write_atomic

if TYPE_CHECKING:
    from harness.leaderboard.frame import Found
    from harness.leaderboard.report import Part


def report(
    runs: Annotated[list[Path], typer.Argument(help="Results folders (runs/NAME).", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write; one that is there is replaced.")] = Path(
        "report.html"
    ),
    by: Annotated[
        str, typer.Option(help="Row keys: method, backbone, seed or a setting (train.epochs).")
    ] = "method,backbone",
    where: WhereOption = None,
    metric: Annotated[
        str | None, typer.Option(help="Metrics, as records name them: image_auroc,pixel_ap; the first one leads.")
    ] = None,
    title: Annotated[str, typer.Option(help="Of the page; the names of the folders by default.")] = "",
    pictures: Annotated[int, typer.Option(help="Anomaly maps in the gallery at most; 0 for none.")] = 200,
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write every chart as SVG and PDF into this folder too.")
    ] = None,
    published: PublishedOption = False,
    published_file: PublishedFileOption = None,
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Several protocols (sizes, weights, test images): a part for each.")
    ] = False,
) -> None:
    """Write one self-contained HTML page of finished runs, from their records and the files beside them.

    It holds scores with intervals, accuracy over throughput, categories, learning curves, paired differences, ranks,
    pictures of the best and worst cases, failures, protocol and provenance; it opens from disk and makes no request.

    Pictures are those that `save: {maps: 8}` in the grid left; curves of a metric need `evaluate.at: log`. The
    page names no host and holds no traceback.
    """
    from harness.leaderboard.frame import load
    from harness.leaderboard.published import read
    from harness.leaderboard.table import boards

    require(pictures >= 0, f"--pictures: {pictures} is not possible; write 0 or more")
    check_file("--out", out)
    try:
        for folder in (out.parent, figures or out.parent):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written ({error.strerror}); name another folder") from None
    try:
        from harness.leaderboard.report import gather
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed; pip install 'dskd-harness[report]' brings it") from None
    keys = listed(by)
    require("category" not in keys, "--by: the page has every category apart already; leave category out")
    found = load(runs)
    made, fine = (
        boards(found, wanted, metrics_of(metric), where or (), allow_mixed) for wanted in (keys, [*keys, "category"])
    )
    values = read(published_file) if published or published_file else None
    _write(gather(made, fine, values, pictures), found, runs, title, out, figures)
    print_remarks(found)


def _write(
    parts: "Sequence[Part]", found: "Found", runs: Sequence[Path], title: str, out: Path, figures: Path | None
) -> None:
    """The page, and the charts where a folder for them was named; says what was written."""
    from harness.leaderboard.report import render, save_figures

    try:  # a disk that is full
        write_atomic(out, render(parts, found, runs, title))
        drawn = save_figures(figures, parts) if figures else []
    except OSError as error:
        where = error.filename or out
        raise ConfigError(f"{where} cannot be written ({error.strerror or error}); name another folder") from None
    terminal = console()
    for part in parts:
        where = f"{part.protocol}: " if len(parts) > 1 else ""
        for line in part.verdict.lines:
            terminal.print(f"{where}{line}", soft_wrap=True)
    terminal.print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, open it in a browser", soft_wrap=True)
    if drawn:
        terminal.print(f"{figures}: {len(drawn)} figures, each as SVG and PDF", soft_wrap=True)
