"""`harness migrate`"""

from pathlib import Path
from typing import Annotated

import typer

from dskd.config import ConfigError, require
from harness.cli.common import PluginOption, console, make_plan


def migrate(
    runs: Annotated[Path, typer.Argument(metavar="RUNS", help="A results folder, such as runs/NAME.")],
    grid: Annotated[
        Path | None, typer.Option(help="The grid file that says where the images are; by default the folder's own.")
    ] = None,
    plugin: PluginOption = None,
) -> None:
    """Bring the records of an earlier version to the ids of today, so that nothing that is done is done again.

    Until 2026-11-26 a training's id was of all images of its category; now it is of those that it trains on and holds
    out, and an evaluation's of the test images too. Records hold one hash for both halves, so the images must be there,
    unchanged, where the grid says: they are read, hashed and compared. What cannot be brought over stays as it is, is
    counted with its reason, and is still read by `leaderboard`, `compare`, `report` and `show`. An unfinished training
    begins anew. Exit codes: 0 all were brought over, 1 some stayed, 2 wrong usage or input.
    """
    from harness.launch.progress import planned, write_plan
    from harness.migration import claimed, known_data
    from harness.migration import migrate as bring_over
    from harness.records import Results
    from harness.run_folder import ResultsFolder

    require(runs.is_dir(), f"{runs} is not a folder; write a results folder such as runs/NAME")
    path = grid or ResultsFolder(runs).grid
    require(path.is_file(), f"{path} is not there; name the grid that says where the images are by --grid")
    results = Results(runs)
    if busy := claimed(results):
        raise ConfigError(f"{busy} has a claim.json: wait until `harness run` has ended, or remove what it left")
    _, plan = make_plan(path, "auto", None, plugin)
    moved, left = bring_over(results, known_data(plan))
    write_plan(runs, planned(plan))  # what `harness status` counts
    terminal = console()
    terminal.print(f"{moved} records brought to the ids of today", soft_wrap=True)
    for reason, count in left.items():
        terminal.print(f"{count} stayed: {reason}", soft_wrap=True, style="yellow")
    raise typer.Exit(1 if left else 0)
