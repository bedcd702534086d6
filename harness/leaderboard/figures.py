"""Every chart of one board: what is in it (from records and the files beside them), or why it cannot be drawn."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd

from harness.leaderboard import plots, quality, statistics
from harness.leaderboard.evidence import trainings
from harness.leaderboard.frame import LOWER, SPEED, metric_title
from harness.leaderboard.render import cell_text
from harness.leaderboard.table import Board, Cell, Column, Table, measured
from harness.run_folder import read_curve

EPOCHS = 60  # points of a curve at most
LOSS = "loss, relative to the first epoch"
SHARE = Column("", "", "share")

Key = tuple[str, ...]
Names = dict[Key, str]  # of each row its short name


@dataclass(frozen=True)
class Figure:
    """`metric` is empty for a chart of none. Without a chart, `missing` says why."""

    kind: str
    dataset: str
    metric: str
    chart: plots.Chart | None
    missing: str = ""


def figures(board: Board, names: Names, differences: Table) -> Iterator[Figure]:
    """Of every data set and metric.

    Args:
        names: of the board's rows, in the order of charts; differences: as by `evidence.differences`.
    """
    order = list(names.values())
    curves = _curves(board, names)
    for dataset in board.datasets:
        losses = curves[(curves["dataset"] == dataset) & (curves["metric"] == LOSS)]
        chart = plots.learning(_over_seeds(losses), LOSS, order, share=False) if len(losses) else None
        yield Figure("loss", dataset, "", chart, "No learning curve is beside the records.")
        for metric in board.metrics:
            title = metric_title(metric)
            grids = _grids(board, names, dataset, metric)

            points = _points(board, names, dataset, metric)
            own = curves[(curves["dataset"] == dataset) & (curves["metric"] == metric)]
            pairs = _pairs(differences, dataset, metric)
            made = {
                "scatter": (
                    plots.scatter(points, title, order, metric in LOWER) if len(points) else None,
                    "No throughput was measured for these models; `bench:` in the grid does.",
                ),
                "heatmap": (
                    plots.heatmap(_cells(board, names, dataset, metric), title, list(grids)) if grids else None,
                    f"No run has {title} here.",
                ),
                **_along(_over_seeds(own), title, order),
                "differences": (
                    plots.differences(pairs, title) if len(pairs) else None,
                    "There are no two models with runs of the same category and seed.",
                ),
                "ranks": _ranks(grids, title, metric in LOWER),
            }
            for kind, (chart, missing) in made.items():
                yield Figure(kind, dataset, metric, chart, missing)


def _along(curves: pd.DataFrame, title: str, order: list[str]) -> dict[str, tuple[plots.Chart | None, str]]:
    """A metric by epoch, over images seen and over seconds; curves: as by `_over_seeds`."""
    made = {}
    for kind, scale in (("learning", "epoch"), ("images", "images"), ("seconds", "seconds")):
        known = curves.dropna(subset=scale)
        chart = plots.learning(known, title, order, share=True, over=scale) if len(known) else None
        unsaid = f"The records do not say how many {scale} their trainings took."
        made[kind] = (chart, unsaid if len(curves) else f"Not recorded; {quality.RECORD_IT}.")
    return made


def _grids(board: Board, names: Names, dataset: str, metric: str) -> dict[str, pd.DataFrame]:
    """Seeds × categories by name, of the rows that have any value."""
    parts = board.parts()
    grids = {}
    for key, name in names.items():
        grid = board.values(parts[key][parts[key]["dataset"] == dataset], metric)
        if grid.notna().to_numpy().any():
            grids[name] = grid
    return grids


def _points(board: Board, names: Names, dataset: str, metric: str) -> pd.DataFrame:
    """For `plots.scatter`."""
    lines = []
    everything = board.lines[board.lines["dataset"] == dataset]
    for key, part in board.parts().items():
        own = part[part["dataset"] == dataset]
        cell = measured(board, own, metric, everything) if len(own) else None
        speeds = board.speeds[board.speeds["model"].isin(part["model"])].groupby("device")[[SPEED, "disturbed"]].first()
        if cell is not None:
            accuracy = cell.value, cell.low, cell.high
            lines += [(names[key], device, *speed, *accuracy) for device, *speed in speeds.itertuples(name=None)]
    return _floats(pd.DataFrame(lines, columns=["name", "device", "speed", "disturbed", "value", "low", "high"]))


def _cells(board: Board, names: Names, dataset: str, metric: str) -> pd.DataFrame:
    """For `plots.heatmap`; every row and category, holes too."""
    everything = board.lines[board.lines["dataset"] == dataset]
    expected = everything["seed"].nunique()
    lines = []
    for key, part in everything.groupby("row", sort=False):
        for category in everything["category"].unique():
            own = part[(part["category"] == category) & part[metric].notna()]
            value = float(own[metric].mean()) if len(own) else None
            cell = Cell(value, runs=len(own), expected=expected, degenerate=int(own["degenerate"].sum()))
            note = f"{len(own)} of {expected}" + (f", {cell.degenerate} collapsed" if cell.degenerate else "")
            lines.append((names[key], category, value, cell_text(SHARE, cell), note))
    return _floats(pd.DataFrame(lines, columns=["name", "category", "value", "text", "note"]))


def _pairs(differences: Table, dataset: str, metric: str) -> pd.DataFrame:
    """For `plots.differences`."""
    lines = []
    for (of, by, first, second), cells in differences.rows:
        cell = cells.get("difference")
        if (of, by) == (dataset, metric) and cell is not None and cell.value is not None:
            lines.append((f"{first} − {second}", cell.value, cell.low, cell.high, cell.sign))
    return _floats(pd.DataFrame(lines, columns=["pair", "value", "low", "high", "sign"]))


def _floats(table: pd.DataFrame) -> pd.DataFrame:
    """None becomes NaN."""
    return table.astype({key: float for key in ("value", "low", "high") if key in table})


def _ranks(grids: dict[str, pd.DataFrame], metric: str, lower: bool) -> tuple[plots.Chart | None, str]:
    """The diagram over the categories that all rows have, or why there is none."""
    shared = pd.DataFrame({name: grid.mean(axis=0) for name, grid in grids.items()}).dropna()
    least = statistics.LEAST_CATEGORIES
    if len(grids) < 3 or len(shared) < least:
        said = f"{len(grids)} and {len(shared)}"
        return None, f"It takes 3 models or more and {least} categories or more that all of them have; here are {said}."
    values = shared.to_numpy().T
    ranks = pd.Series(statistics.average_ranks(-values if lower else values), index=shared.columns)
    limit = statistics.critical_difference(len(ranks), len(shared))
    groups = [[str(ranks.index[i]) for i in group] for group in statistics.cliques(ranks.to_numpy(), limit)]
    return plots.ranks(ranks, groups, limit, metric), ""


def _curves(board: Board, names: Names) -> pd.DataFrame:
    """One line for each recorded epoch: `name`, and all of `quality.along` but `row`; `metric` may be LOSS."""
    known = trainings(board)
    lines: list[tuple[object, ...]] = []
    keys = ("row", "dataset", "category", "seed", "id")
    for row, dataset, category, seed, run_id in zip(*(board.lines[key] for key in keys), strict=True):
        if run_id not in known:
            continue
        folder = board.found.folders[known[run_id].id]
        about = row, dataset, category, seed
        losses = read_curve(folder, board.found.skipped)
        first = losses[0]["loss"] if losses else 0  # of a loss that begins with 0 no share can be told
        for place in np.unique(np.linspace(0, len(losses) - 1, min(EPOCHS, len(losses))).astype(int)) if first else ():
            lines.append((*about, LOSS, losses[place]["epoch"], losses[place]["loss"] / first, np.nan, np.nan))
    measured = quality.along(board)
    both = pd.DataFrame([*lines, *measured.itertuples(index=False, name=None)], columns=measured.columns)
    return both.assign(name=both.pop("row").map(names))


def _over_seeds(curves: pd.DataFrame) -> pd.DataFrame:
    """For `plots.learning`: each category, and (category "") the mean over those that a model has throughout."""
    both = pd.concat([quality.over_categories(curves, ["name"]).assign(category=""), curves])
    keys = ["name", "category", "epoch"]
    groups = both.groupby(keys, sort=False)
    table = groups["value"].agg(["mean", "min", "max"]).join(groups[["images", "seconds"]].mean()).reset_index()
    return table.rename(columns={"mean": "value", "min": "low", "max": "high"})
