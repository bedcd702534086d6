"""How sure a lead is: tables of aggregates and ranks, of stability, of paired differences and of tests."""

import itertools
import re
from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from dskd.config import ConfigError, suggest
from harness.foreign import Damaged
from harness.leaderboard import statistics
from harness.leaderboard.frame import LOWER, training_key
from harness.leaderboard.statistics import LEAST_CATEGORIES, STEADY_SEEDS, Pair
from harness.leaderboard.table import HOLE, SPREAD, Board, Cell, Column, Table, label, seed_means, with_interval
from harness.records import Record
from harness.run_folder import RunFolder, Score, read_metrics, read_scores

LETTERS = "abcdefghijklmnopqrstuvwxyz"

Key = tuple[str, ...]
Values = dict[Key, pd.DataFrame]  # of each row its seeds × categories
Rows = list[tuple[Key, dict[str, Cell]]]


def _each(board: Board) -> Iterable[tuple[str, str, Values]]:
    """Data set, metric, and the values of each row that has any."""
    parts = board.parts()
    for dataset, metric in itertools.product(board.datasets, board.metrics):
        own = {key: part[part["dataset"] == dataset] for key, part in parts.items()}
        values = {key: board.values(part, metric).dropna(how="all") for key, part in own.items() if len(part)}
        yield dataset, metric, {key: grid for key, grid in values.items() if not grid.empty}


def aggregate(board: Board) -> Table:
    """Interquartile mean with its bootstrap interval over seeds within categories; average rank over the categories
    that all rows have; and letters: rows that share one are not told apart by the critical difference.
    """
    rows: Rows = []
    notes = []
    for dataset, metric, values in _each(board):
        found: dict[Key, dict[str, Cell]] = {}
        for key, grid in values.items():
            strata = [grid[category].dropna().to_numpy() for category in grid if grid[category].notna().any()]
            middle = float(statistics.interquartile_mean(np.concatenate(strata)))
            drawn = statistics.bootstrap_over_seeds(strata, statistics.DRAWS, np.random.SeedSequence(0))
            interval = statistics.percentile_interval(statistics.interquartile_mean(drawn))
            repeated = any(len(stratum) > 1 for stratum in strata)
            found[key] = {"iqm": with_interval(middle, interval if repeated else None)}
        shared = _by_category(list(values.values()))
        if len(values) > 1 and shared.shape[1]:
            ranks = statistics.average_ranks(-shared if metric in LOWER else shared)
            for key, rank in zip(found, ranks, strict=True):
                found[key]["rank"] = Cell(float(rank), runs=shared.shape[1])
            if shared.shape[1] >= LEAST_CATEGORIES:
                limit = statistics.critical_difference(len(ranks), shared.shape[1])
                groups = statistics.cliques(ranks, limit)
                for place, key in enumerate(found):
                    letters = (LETTERS[i % len(LETTERS)] for i, group in enumerate(groups) if place in group)
                    found[key]["alike"] = Cell("".join(letters))
                notes.append(
                    f"{dataset} {metric}: average ranks over {shared.shape[1]} categories differ at 5 % from "
                    f"{limit:.2f} on (Nemenyi); rows that share a letter do not"
                )
        order = sorted(found, key=lambda key: float(found[key]["iqm"].value or 0), reverse=metric not in LOWER)
        rows += [((dataset, metric, *key), found[key]) for key in order]
    columns = [
        Column("iqm", "IQM [95 %]", "share", SPREAD),
        Column("rank", "average\nrank", "number"),
        Column("alike", "not told\napart", "text"),
    ]
    columns = [column for column in columns if any(column.key in cells for _, cells in rows)]
    said = "IQM: mean of the middle half of all runs; bootstrap over seeds within categories"
    return Table("aggregate", "Aggregates and ranks", ["dataset", "metric", *board.by], columns, rows, [said, *notes])


def _by_category(grids: Sequence[pd.DataFrame]) -> np.ndarray:
    """(M, C) means over seeds, of the categories that all M have."""
    means = pd.DataFrame([grid.mean(axis=0) for grid in grids])
    return means.dropna(axis=1).to_numpy()


def stability(board: Board) -> Table:
    """Over seeds: standard deviation and worst seed, of means over categories; over the recorded epochs of the last
    quarter of each training: range and standard deviation, averaged over trainings.
    """
    curves = _curves(board)
    rows: Rows = []
    for dataset, metric, values in _each(board):
        for key, grid in values.items():
            by_seed = seed_means(grid)
            cells = {"sd_over_seeds": Cell(statistics.deviation(by_seed), runs=len(by_seed))}
            cells["worst_seed"] = Cell((max if metric in LOWER else min)(by_seed, default=None))
            ids = board.lines.loc[(board.lines["row"] == key) & (board.lines["dataset"] == dataset), "id"]
            found = [curves[each][metric].dropna() for each in ids if each in curves and metric in curves[each]]
            found = [curve for curve in found if len(curve) > 1]
            cells["range_over_epochs"] = Cell(statistics.mean(curve.max() - curve.min() for curve in found))
            cells["sd_over_epochs"] = Cell(statistics.mean(curve.std(ddof=1) for curve in found))
            cells["trainings"] = Cell(len(found))
            rows.append(((dataset, metric, *key), cells))
    columns = [
        Column("sd_over_seeds", "SD over\nseeds", "share"),
        Column("worst_seed", "worst\nseed", "share"),
        Column("range_over_epochs", "range over\nepochs", "share"),
        Column("sd_over_epochs", "SD over\nepochs", "share"),
        Column("trainings", "trainings\nwith epochs", "number"),
    ]
    notes = [
        "SD: standard deviation (n - 1), in points. Over epochs: the recorded epochs of the last quarter of a training "
        "(`evaluate.at` in the grid), mean over trainings; – where fewer than two were recorded"
    ]
    return Table("stability", "Stability", ["dataset", "metric", *board.by], columns, rows, notes)


def last_quarter(training: RunFolder, epochs: int, skipped: list[Damaged] | None = None) -> pd.DataFrame | None:
    """Metrics by epoch, of the recorded epochs beyond three quarters; None where none were recorded. `skipped`: as by
    `run_folder.read_metrics`.
    """
    rows = read_metrics(training, [] if skipped is None else skipped)
    if not rows:
        return None
    table = pd.DataFrame(rows).set_index("epoch").astype(float)
    return table[table.index > 0.75 * epochs]


def trainings(board: Board) -> dict[str, Record]:
    """By evaluation id its training; not of a variant of map or score: what is recorded along a training is by the
    method's own.
    """
    known = {training_key(record.spec): record for record in board.found.trainings}
    found = {}
    ids = set(board.lines["id"])
    for record in board.found.evaluations:
        own = record.spec["train"]["method"]
        if record.id in ids and (record.spec["map"], record.spec["score"]) == (own["map"], own["score"]):
            training = known.get(training_key(record.spec["train"]))
            if training is not None:
                found[record.id] = training
    return found


def _curves(board: Board) -> dict[str, pd.DataFrame]:
    """Of each evaluation whose training has them."""
    found = {}
    for run_id, training in trainings(board).items():
        epochs = training.spec["method"]["train"]["epochs"]
        curve = last_quarter(board.found.folders[training.id], epochs, board.found.skipped)
        if curve is not None:
            found[run_id] = curve
    return found


def differences(board: Board, against: str | None = None) -> Table:
    """One row minus each other one, paired by category and seed, with its interval; and how often a run of the first
    is above one of the second.

    Args:
        against: what names the first row: its label or one value of its key; the best of the first column if None.

    Raises:
        ConfigError: no row, or several, have that name.
    """
    keys = list(board.parts())
    reference = None if against is None else _named(keys, against)
    names = labels(keys)
    read = Scores(board.found.skipped)
    rows: Rows = []
    for dataset, metric, values in _each(board):
        if len(values) < 2 or (reference is not None and reference not in values):
            continue
        if reference is None:
            best = min if metric in LOWER else max
            reference = best(values, key=lambda key: float(values[key].mean(axis=0).mean()))
        folders = {key: folders_of(board, key, dataset) for key in values}
        for key in values:
            if key != reference:
                pairs = paired(values[reference], values[key], folders[reference], folders[key], metric, read)
                if pairs:
                    cells = difference_cells(pairs, metric in LOWER)
                    rows.append(((dataset, metric, names[reference], names[key]), cells))
    notes = [
        "in points; paired by category, seed and test images; 95 % interval over images × seeds (bootstrap) where "
        "scores by image are there (image AUROC), else over seeds (Student's t within categories); ▲ ▼: it excludes 0",
        "above: in so many % of the pairs of seeds within categories a run of the first is above one of the second; it "
        "is of these seeds and images alone, so it can be 100 where the interval beside it, which is of others too, "
        f"holds 0; with its own interval from {STEADY_SEEDS} seeds on",
    ]
    overs = {cells["over"].value for _, cells in rows}
    if "groups × seeds" in overs:
        notes.append("groups: images of one group (exposures of one object) are drawn together")
    if read.unknown:
        notes.append("images are drawn as if each showed another object: scores.csv of earlier versions have no groups")
    return Table(
        "differences", "Paired differences", ["dataset", "metric", "first", "minus"], DIFFERENCE_COLUMNS, rows, notes
    )


DIFFERENCE_COLUMNS = [
    Column("difference", "difference\n[95 %]", "points", SPREAD),
    Column("probability", "above\n[% of pairs]", "share", SPREAD),
    Column("pairs", "pairs", "number"),
    Column("over", "interval over", "text"),
]


def difference_cells(pairs: Sequence[Pair], lower: bool = False) -> dict[str, Cell]:
    """Of the categories of one comparison; all holes where there is none.

    Args:
        lower: by a metric of which the lowest is the best, so that less is an improvement.
    """
    if not pairs:
        return {"pairs": Cell(0)}
    found = statistics.paired_difference(pairs)
    above, interval = statistics.probability_of_improvement([(pair.first, pair.second) for pair in pairs])
    if min(len(pair.first) for pair in pairs) < STEADY_SEEDS or (interval and contradicts(found.sign, interval)):
        interval = None
    return {
        "difference": with_interval(found.mean, found.interval, sign=-found.sign if lower else found.sign),
        "probability": with_interval(above, interval),
        "pairs": Cell(sum(len(pair.first) for pair in pairs)),
        "over": Cell(found.over or HOLE),
    }


def contradicts(sign: int, interval: statistics.Interval) -> bool:
    """Whether the interval of a probability of improvement seems to say other than a difference of that sign: a
    bootstrap over seeds alone is narrower than one over images too.
    """
    low, high = interval
    return (int(low > 0.5) - int(high < 0.5)) != sign


Halves = tuple[np.ndarray, np.ndarray]  # of normal and of anomalous images
Folders = pd.Series  # of evaluations, by (category, seed)


def folders_of(board: Board, key: Key, dataset: str) -> Folders:
    part = board.lines[(board.lines["row"] == key) & (board.lines["dataset"] == dataset)]
    return part.set_index(["category", "seed"])["id"].map(board.found.folders)


def paired(
    first: pd.DataFrame,
    second: pd.DataFrame,
    first_folders: Folders,
    second_folders: Folders,
    metric: str,
    read: "Scores | None",
) -> list[Pair]:
    """One pair for each category that both have, of their common seeds; with scores where all have them (image AUROC
    of the same test images). Without `read` none are looked for.
    """
    made = []
    for category in first.columns.intersection(second.columns):
        columns = pd.DataFrame({"first": first[category], "second": second[category]}).dropna()
        if columns.empty:
            continue
        scores, groups = None, None
        if metric == "image_auroc" and read is not None:
            both = (first_folders, second_folders)
            sides = [[folders[category, seed] for seed in columns.index] for folders in both]
            scores, groups = read.together(*sides) or (None, None)
        made.append(Pair(columns["first"].to_numpy(), columns["second"].to_numpy(), scores, groups))
    return made


class Scores:
    """Scores by image of evaluations, read once each. `skipped`: as by `run_folder.read_scores`."""

    def __init__(self, skipped: list[Damaged] | None = None) -> None:
        self.tables: dict[RunFolder, pd.DataFrame | None] = {}
        self.skipped = [] if skipped is None else skipped
        self.unknown = False  # whether files were used that do not say which images belong together

    def __getitem__(self, folder: RunFolder) -> pd.DataFrame | None:
        """`anomalous`, `score` and `group` by path, sorted; None where they were not saved."""
        if folder not in self.tables:
            rows = read_scores(folder, self.skipped)
            table = pd.DataFrame.from_records(rows, columns=Score._fields, index="path") if rows else None
            self.tables[folder] = None if table is None else table.sort_index()
        return self.tables[folder]

    def together(self, *sides: Sequence[RunFolder]) -> tuple[tuple[Halves, Halves], Halves | None] | None:
        """For each side the scores of normal (S, N) and anomalous (S, A) images, and the groups of these images as
        `Pair` has them; None unless all are of the same images.
        """
        tables = [[self[folder] for folder in side] for side in sides]
        flat = [table for side in tables for table in side]
        if any(table is None for table in flat):
            return None
        anomalous = flat[0]["anomalous"]
        if any(not table["anomalous"].equals(anomalous) for table in flat) or anomalous.nunique() < 2:
            return None
        chosen = anomalous.to_numpy() == 1
        stacked = [np.stack([table["score"].to_numpy() for table in side]) for side in tables]
        first, second = ((values[:, ~chosen], values[:, chosen]) for values in stacked)
        groups = groups_of(flat)
        self.unknown |= all(table["group"].isna().any() for table in flat)
        return (first, second), None if groups is None else (groups[~chosen], groups[chosen])


def groups_of(tables: Sequence[pd.DataFrame]) -> np.ndarray | None:
    """(n,) labels: images of equal label show one object. None where all differ, or where no table of the same images
    knows it: those of earlier versions do not.
    """
    for table in tables:
        if table["group"].notna().all():
            named = table["group"].where(table["group"] != "", table.index.to_series().radd("\0"))
            return named.to_numpy() if named.duplicated().any() else None
    return None


def tests(board: Board) -> Table:
    """Wilcoxon's signed-rank test between all pairs of rows over categories, seeds averaged first; p corrected for the
    number of pairs (Holm), and the effect size.
    """
    names = labels(list(board.parts()))
    rows: Rows = []
    few = []
    for dataset, metric, values in _each(board):
        found = {}
        for first, second in itertools.combinations(values, 2):
            both = _by_category([values[first], values[second]])
            found[first, second] = statistics.wilcoxon(*(-both if metric in LOWER else both))
        known = {pair: test for pair, test in found.items() if test is not None}
        if len(known) < len(found) or len(values) < 2:
            few.append(f"{dataset} ({max((grid.shape[1] for grid in values.values()), default=0)})")
        corrected = statistics.holm([test.p for test in known.values()])
        for ((first, second), test), p in zip(known.items(), corrected, strict=True):
            cells = {"p": Cell(test.p), "p_holm": Cell(p), "effect": Cell(test.effect)}
            rows.append(((dataset, metric, names[first], names[second]), cells | {"categories": Cell(test.categories)}))
    columns = [
        Column("p", "p", "p"),
        Column("p_holm", "p (Holm)", "p"),
        Column("effect", "effect", "number"),
        Column("categories", "categories", "number"),
    ]
    notes = [
        "Wilcoxon over categories, two-sided, seeds averaged first; effect: rank-biserial, above 0: first is ahead"
    ]
    if few:
        named = ", ".join(dict.fromkeys(few))
        notes.append(f"no test with fewer than {LEAST_CATEGORIES} categories or two rows that share them: {named}")
    return Table("tests", "Tests over categories", ["dataset", "metric", "first", "second"], columns, rows, notes)


def labels(keys: Sequence[Key]) -> dict[Key, str]:
    """A short name of each row: the parts of its key in which rows differ, with a recipe as people write it."""
    differing = [i for i, parts in enumerate(zip(*keys, strict=True)) if len(set(parts)) > 1]
    names = {key: label([key[i] for i in differing]) or label(key) for key in keys}
    return {key: re.sub(r"(^| )recipe=(\S+)", r"\1(\2)", name) for key, name in names.items()}


def _named(keys: Sequence[Key], name: str) -> Key:
    exact = [key for key in keys if name in (label(key), labels(keys)[key])]
    found = exact or [key for key in keys if name in key]
    if len(found) != 1:
        kind = "several rows" if found else "no row"
        raise ConfigError(f"--against: {name!r} names {kind}; {suggest(name, labels(keys).values())}")
    return found[0]
