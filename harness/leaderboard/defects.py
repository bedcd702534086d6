"""How well each type of defect is found, from the scores of the test images."""

from collections.abc import Iterator

import numpy as np
import pandas as pd

from harness.leaderboard.evidence import Scores, folders_of
from harness.leaderboard.statistics import comparisons, cut, deviation, t_interval
from harness.leaderboard.table import MEASURED, Board, Cell, Column, Table, mean_of, seed_means, with_interval

FALSE_ALARMS = 0.05  # of the good test images, at the threshold of recall: our choice

COLUMNS = [
    Column("image_auroc", "image AUROC", "share", MEASURED, best=True),
    Column("recall", f"recall at {100 * FALSE_ALARMS:g} %\nfalse alarms", "share", MEASURED, best=True),
    Column("images", "images", "number"),
]


def by_defect(board: Board) -> Table:
    """Of each type of defect, data set and row: image AUROC of its images against all good ones of their category, and
    the share of them that scores above at least 95 % of the good ones; means over seeds, then over the categories that
    have the type, with 95 % intervals over seeds.
    """
    read = Scores(board.found.skipped)
    rows: list[tuple[tuple[str, ...], dict[str, Cell]]] = []
    for dataset in board.datasets:
        found = [
            (key, category, seed, *each)
            for key, part in board.parts().items()
            if (part["dataset"] == dataset).any()
            for (category, seed), folder in folders_of(board, key, dataset).items()
            for each in _of_run(read[folder])
        ]
        names = ["row", "category", "seed", "defect", "image_auroc", "recall", "images"]
        lines = pd.DataFrame(found, columns=names)
        for defect, own in lines.groupby("defect", sort=True):
            expected = own["category"].nunique() * board.lines.loc[board.lines["dataset"] == dataset, "seed"].nunique()
            made = {key: _cells(part, expected) for key, part in own.groupby("row", sort=False)}
            order = sorted(made, key=lambda key: -float(made[key]["image_auroc"].value or 0))
            rows += [((dataset, str(defect), *key), made[key]) for key in order]
    notes = [
        "AUROC of the images of one type against all good ones of their category; recall: the share of them that "
        f"scores above at least {100 * (1 - FALSE_ALARMS):g} % of the good test images"
    ]
    if not rows:
        notes.append("no evaluation saved its scores (`save: {scores: true}` in the grid)")
    return Table("defects", "Types of defect", ["dataset", "defect", *board.by], COLUMNS, rows, notes)


def _of_run(scores: pd.DataFrame | None) -> Iterator[tuple[str, float, float, int]]:
    """Defect, image AUROC, recall, and how many images of it there are."""
    if scores is None or scores["anomalous"].nunique() < 2:
        return
    normal = scores.loc[~scores["anomalous"], "score"].to_numpy()
    for defect, own in scores[scores["anomalous"]].groupby("defect"):
        values = own["score"].to_numpy()
        above = (values > normal[:, None]).mean(axis=0)
        yield (
            str(defect),
            float(comparisons(normal, values).mean()),
            float(np.mean(above >= 1 - FALSE_ALARMS)),
            len(own),
        )


def _cells(lines: pd.DataFrame, expected: int) -> dict[str, Cell]:
    cells = {"images": Cell(int(lines.groupby("category")["images"].first().sum()))}
    for metric in ("image_auroc", "recall"):
        grid = lines.pivot(index="seed", columns="category", values=metric)
        by_seed, runs = seed_means(grid), int(grid.notna().to_numpy().sum())
        spread = {"sd": deviation(by_seed), "runs": runs, "expected": expected}
        cells[metric] = with_interval(mean_of(grid), cut(t_interval(by_seed)), **spread)
    return cells
