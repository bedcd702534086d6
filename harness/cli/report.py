"""`harness report`"""

from pathlib import Path
from typing import Annotated

import typer

from dskd.config import ConfigError, require
from harness.cli.common import console, listed
from harness.cli.outputs import check_file
from harness.files import write_atomic


def report(
    runs: Annotated[list[Path], typer.Argument(help="Results folders (runs/NAME).", show_default=False)],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write; one that is there is replaced.")] = Path(
        "report.html"
    ),
    by: Annotated[
        str, typer.Option(help="Row keys: method, backbone, seed or a setting (train.epochs).")
    ] = "method,backbone",
    where: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="Only these: method=dskd, category!=tile; may be given again."),
    ] = None,
    metric: Annotated[
        str | None, typer.Option(help="Metrics, as records name them: image_auroc,pixel_ap; the first one leads.")
    ] = None,
    title: Annotated[str, typer.Option(help="Of the page; the names of the folders by default.")] = "",
    pictures: Annotated[int, typer.Option(help="Anomaly maps in the gallery at most; 0 for none.")] = 200,
    figures: Annotated[
        Path | None, typer.Option(metavar="DIR", help="Write every chart as SVG and PDF into this folder too.")
    ] = None,
    published: Annotated[
        bool, typer.Option("--published", help="Add published values and the distance from them.")
    ] = False,
    published_file: Annotated[
        Path | None, typer.Option(help="A CSV of published values of your own, added to those that ship.")
    ] = None,
    allow_mixed: Annotated[
        bool, typer.Option("--allow-mixed", help="Several protocols (sizes, weights, test images): a part for each.")
    ] = False,
) -> None:
    """Write one self-contained HTML page of finished runs, from their records and the files beside them.

    It holds scores with intervals, accuracy over throughput, categories, learning curves, paired differences, ranks,
    pictures of the best and worst cases, failures, protocol and provenance; it opens from disk and makes no request.

    Pictures are those that `save: {maps: 8}` in the grid left; curves of a metric need `evaluate.at`. The page names
    no host and holds no traceback.
    """
    from harness.leaderboard.frame import SHOWN, load
    from harness.leaderboard.published import read
    from harness.leaderboard.render import remarks
    from harness.leaderboard.table import boards

    require(pictures >= 0, f"--pictures: {pictures} is not possible; write 0 or more")
    check_file("--out", out)
    try:
        for folder in (out.parent, figures or out.parent):
            folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{folder} cannot be written ({error.strerror}); name another folder") from None
    try:
        from harness.leaderboard.report import gather, render, save_figures
    except ModuleNotFoundError as error:
        raise ConfigError(f"{error.name} is not installed; pip install 'dskd-harness[report]' brings it") from None
    keys = listed(by)
    require("category" not in keys, "--by: the page has every category apart already; leave category out")
    found = load(runs)
    metrics = listed(metric) if metric is not None else SHOWN
    made, fine = (boards(found, wanted, metrics, where or (), allow_mixed) for wanted in (keys, [*keys, "category"]))
    values = read(published_file) if published or published_file else None
    parts = gather(made, fine, values, pictures)
    try:  # a disk that is full
        write_atomic(out, render(parts, found, runs, title))
        drawn = save_figures(figures, parts) if figures else []
    except OSError as error:
        where = error.filename or out
        raise ConfigError(f"{where} cannot be written ({error.strerror or error}); name another folder") from None
    terminal = console()
    terminal.print(f"{out}: {out.stat().st_size / 1e6:.1f} MB, open it in a browser", soft_wrap=True)
    if drawn:
        terminal.print(f"{figures}: {len(drawn)} figures, each as SVG and PDF", soft_wrap=True)
    notes = console(stderr=True)
    for remark in remarks(found):
        notes.print(remark, soft_wrap=True)
