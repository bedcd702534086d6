"""Metrics along trainings: by the images that they had seen and the seconds that they had taken, and how much of both
it takes to come near the best (after the time to accuracy of DAWNBench, Coleman et al., 2017). All of it is of test
images, so it selects nothing.
"""

import itertools
from collections.abc import Sequence

import numpy as np
import pandas as pd

from harness.leaderboard.evidence import labels, trainings
from harness.leaderboard.frame import LOWER
from harness.leaderboard.statistics import cut, deviation, t_interval
from harness.leaderboard.table import SPREAD, Board, Cell, Column, Part, Table, with_interval
from harness.records import Record
from harness.run_folder import read_metrics

NEAR = 0.01  # one point: our choice
RECORD_IT = "`evaluate.at: log` in the grid records it"
OWN_MAP = "along a training the method's own map and score are recorded, so its other variants have none"
SELECTS_NOTHING = "on test images, after the epochs of `evaluate.at`: it selects nothing, and may choose no epoch"
COSTS = (
    "images: seen by one training, mean over categories; s: of the training alone, less what was evaluated along it "
    "(`train_s` of its record), spread evenly over its epochs"
)
NEARNESS = (
    "near: the first recorded epoch within 1 point, by the mean over categories of each seed; its best: of that seed; "
    "best of all: the highest mean over seeds of any row with all runs; median over seeds [least, most]; [k/n]: only "
    "k of n seeds get there; –: none"
)
_RUNS: tuple[Part, ...] = (*SPREAD, "runs", "expected")
_SHARE: tuple[Part, ...] = (*_RUNS, "sd")

Key = tuple[str, ...]
Rows = list[tuple[Key, dict[str, Cell]]]


def along(board: Board) -> pd.DataFrame:
    """One line for each metric of each recorded epoch of a training: `row`, `dataset`, `category`, `seed`, `metric`,
    `epoch`, `value` (a share), and how many `images` it had seen and `seconds` it had taken by then (NaN where its
    record does not say).
    """
    known = trainings(board)
    keys = ("row", "dataset", "category", "seed", "id")
    lines = []
    for *about, run_id in zip(*(board.lines[key] for key in keys), strict=True):
        if run_id not in known:
            continue
        images, seconds = _per_epoch(known[run_id])
        for line in read_metrics(board.found.folders[known[run_id].id], board.found.skipped):
            epoch = int(line["epoch"] or 0)
            values = [(metric, value) for metric in board.metrics if (value := line.get(metric)) is not None]
            lines += [(*about, metric, epoch, value, epoch * images, epoch * seconds) for metric, value in values]
    return pd.DataFrame(lines, columns=[*keys[:-1], "metric", "epoch", "value", "images", "seconds"])


def _per_epoch(training: Record) -> tuple[float, float]:
    """Images and seconds of one epoch."""
    epochs = training.spec["method"]["train"]["epochs"]
    return training.result.get("train_images", np.nan), training.result.get("train_s", np.nan) / epochs


def over_categories(curves: pd.DataFrame, of: Sequence[str]) -> pd.DataFrame:
    """Means over the categories of `value`, `images` and `seconds` by `of`, seed and epoch, where all are there that
    the others of the same `of` have; `categories` of them.
    """
    keys = [*of, "seed", "epoch"]
    counts = curves.groupby(keys)["category"].transform("nunique")
    whole = curves[counts == curves.groupby(list(of))["category"].transform("nunique")]
    groups = whole.groupby(keys, sort=False)
    means = groups[["value", "images", "seconds"]].mean()
    return means.join(groups["category"].nunique().rename("categories")).reset_index()


def time_to_quality(board: Board) -> Table:
    """Of each data set, metric and row the best and the last of the recorded epochs (means over categories and seeds),
    and the images and seconds until a seed's curve is within one point of its own best, and of the best that any row
    has: median over seeds, with the least and the most. No rows where nothing was recorded.
    """
    curves = over_categories(along(board), ["row", "dataset", "metric"])
    rows: Rows = []
    for dataset, metric in itertools.product(board.datasets, board.metrics) if len(curves) else ():
        sign = -1 if metric in LOWER else 1
        here = curves[(curves["dataset"] == dataset) & (curves["metric"] == metric)]
        lines = board.lines[board.lines["dataset"] == dataset]
        own = {key: part for key, part in here.groupby("row", sort=False) if len(_means(part))}
        bests = {key: float((sign * _means(part)).max()) for key, part in own.items()}
        expected = {key: _seeds(board, lines, key) for key in lines["row"].unique()}
        compared = [key for key, part in own.items() if not _lacks(board, lines, part)]
        tops: dict[str, float] = {}  # by category where that makes rows
        for key in compared:
            if own[key]["seed"].nunique() == expected[key]:  # a mean with a hole would win by what it lacks
                tops[_category(board, key)] = max(bests[key], tops.get(_category(board, key), -np.inf))
        for key in sorted(expected, key=lambda key: -bests.get(key, -np.inf)):
            top = tops.get(_category(board, key)) if key in compared else None
            cells = _cells(own[key], sign, top, expected[key]) if key in own else {}
            rows.append(((dataset, metric, *key), cells))
    columns = [
        Column("best", "best\nepoch", "share", _SHARE),
        Column("last", "last\nepoch", "share", _SHARE),
        Column("images", "images to near\nits best", "amount", _RUNS),
        Column("seconds", "s to near\nits best", "amount", _RUNS),
        Column("images_to_top", "images to near\nbest of all", "amount", _RUNS),
        Column("seconds_to_top", "s to near\nbest of all", "amount", _RUNS),
    ]
    by = ["dataset", "metric", *board.by]
    return Table("time", "Time to quality", by, columns, rows, _notes(board, curves, [NEARNESS]))


def by_epoch(board: Board) -> Table:
    """Of each data set, metric, row and recorded epoch: images seen, seconds, and the mean over categories and seeds
    with its 95 % interval over seeds.
    """
    curves = over_categories(along(board), ["row", "dataset", "metric"])
    rows: Rows = []
    for dataset, metric in itertools.product(board.datasets, board.metrics):
        lines = board.lines[board.lines["dataset"] == dataset]
        here = curves[(curves["dataset"] == dataset) & (curves["metric"] == metric)]
        for key, own in here.groupby("row", sort=False):
            for epoch, part in own.groupby("epoch"):
                cells = {cost: Cell(_known(part[cost].mean())) for cost in ("images", "seconds")}
                cells["value"] = _share(part["value"], _seeds(board, lines, key))
                rows.append(((dataset, metric, *key, str(epoch)), cells))
    columns = [
        Column("images", "images\nseen", "amount"),
        Column("seconds", "s", "amount"),
        Column("value", "mean", "share", _SHARE),
    ]
    by = ["dataset", "metric", *board.by, "epoch"]
    return Table("curves", "Metrics along the training", by, columns, rows, _notes(board, curves))


def _seeds(board: Board, lines: pd.DataFrame, key: Key) -> int:
    """How many seeds a row of these lines (of one data set) should have."""
    return (lines[lines["row"] == key] if "seed" in board.by else lines)["seed"].nunique()


def _category(board: Board, key: Key) -> str:
    """Of a row; empty where rows are of all categories."""
    return key[board.by.index("category")] if "category" in board.by else ""


def _lacks(board: Board, lines: pd.DataFrame, curves: pd.DataFrame) -> bool:
    """Whether these curves of a row are of fewer categories than its data set, whose lines are given, has here."""
    return "category" not in board.by and curves["categories"].iloc[0] < lines["category"].nunique()


def _means(curves: pd.DataFrame) -> pd.Series:
    """Of one row the mean over its seeds by epoch, of the epochs that all of them have."""
    return curves.pivot(index="epoch", columns="seed", values="value").sort_index().dropna().mean(axis=1)


def _cells(curves: pd.DataFrame, sign: int, top: float | None, expected: int) -> dict[str, Cell]:
    """Of one row. Of values times `sign` the highest is the best; top: that of all rows, None for no comparison."""
    means = _means(curves)
    at = {"best": (sign * means).idxmax(), "last": means.index[-1]}
    cells = {key: _share(curves.loc[curves["epoch"] == epoch, "value"], expected) for key, epoch in at.items()}
    seeds = [part.sort_values("epoch") for _, part in curves.groupby("seed")]
    levels = {"": [float((sign * part["value"]).max()) for part in seeds]}
    levels |= {} if top is None else {"_to_top": [top] * len(seeds)}
    for ending, each in levels.items():
        reached = [_first(part, sign, level) for part, level in zip(seeds, each, strict=True)]
        for cost in ("images", "seconds"):
            values = [float(line[cost]) for line in reached if line is not None and not np.isnan(line[cost])]
            cells[cost + ending] = _median(values, expected)
    return cells


def _first(curve: pd.DataFrame, sign: int, best: float) -> pd.Series | None:
    """The first line of a seed's curve that is within one point of the best; None if none is."""
    near = curve[sign * curve["value"] >= best - NEAR - 1e-9]  # what is one point away is near, however it is rounded
    return None if near.empty else near.iloc[0]


def _median(values: Sequence[float], expected: int) -> Cell:
    if not values:
        return Cell(None, runs=0, expected=expected)
    spread = (min(values), max(values)) if len(values) > 1 else None
    return with_interval(float(np.median(values)), spread, runs=len(values), expected=expected)


def _share(values: pd.Series, expected: int) -> Cell:
    """The mean over seeds with its 95 % interval."""
    own = [float(value) for value in values]
    spread = {"sd": deviation(own), "runs": len(own), "expected": expected}
    return with_interval(float(np.mean(own)), cut(t_interval(own)), **spread)


def _known(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _notes(board: Board, curves: pd.DataFrame, own: Sequence[str] = ()) -> list[str]:
    """How to read a table of these curves (`own`: that one alone), which rows have none or only some, and why, and
    whether the seconds are of one device.
    """
    names = labels(list(board.parts()))
    without = board.lines[~board.lines["row"].isin(curves["row"])].groupby("row", sort=False)["own"].any()
    unrecorded = ", ".join(names[key] for key, is_own in without.items() if is_own)
    notes = [SELECTS_NOTHING, *own, COSTS] if len(curves) else []
    notes += [f"nothing was recorded along the trainings of {unrecorded}; {RECORD_IT}"] if unrecorded else []
    notes += [] if without.all() else [OWN_MAP]
    for (dataset, row), part in curves.groupby(["dataset", "row"], sort=False):
        lines = board.lines[board.lines["dataset"] == dataset]
        if _lacks(board, lines, part):
            count = f"{part['categories'].iloc[0]} of {lines['category'].nunique()} categories"
            notes.append(f"{names[row]} was recorded on {count} of {dataset}: it takes no part in best of all")
    results = [training.result for training in trainings(board).values()]
    known = [f"{each['device']}, {each.get('threads')} threads" for each in results if "device" in each]
    devices = list(dict.fromkeys(known))
    return notes + ([f"seconds are of several devices: {'; '.join(devices)}"] if len(devices) > 1 else [])
