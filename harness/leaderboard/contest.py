"""From a board and its table of scores to what `verdict` speaks of, and back: which cells lead."""

from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from harness.leaderboard import evidence, statistics
from harness.leaderboard.frame import LOWER, metric_title, model_key
from harness.leaderboard.table import Board, Cell, Table
from harness.leaderboard.verdict import Contest, Doubts, Rival, Verdict, verdict

NO_FOLDERS = pd.Series(dtype=object)
MOST_SCORED = 600  # evaluations whose scores by image are read for a verdict: of more the interval is over seeds
HOW = (
    "beyond noise: the 95 % interval of the paired difference from every other method excludes 0; it is over images × "
    "seeds where scores by image are there (image AUROC), else over seeds"
)

Key = tuple[str, ...]


def contests(board: Board, table: Table) -> list[Contest]:
    """One for each data set and metric of which any row has all runs, in the order of `table`, the board's scores; none
    where rows are no methods (`--by seed`, `--by category`).
    """
    if {"seed", "category"} & set(board.by):
        return []
    names = evidence.labels([key for key, _ in table.rows])
    few = board.lines[["row", "dataset", "category", "seed", *board.metrics]]  # of 60 columns these are enough
    parts = {tuple(key): part for key, part in few.groupby("row", sort=False)}
    read = evidence.Scores(board.found.skipped) if len(board.lines) <= MOST_SCORED else None
    made = []
    for dataset in board.datasets:
        own = {key: part[part["dataset"] == dataset] for key, part in parts.items()}
        about = board.lines[board.lines["dataset"] == dataset]
        for metric in board.metrics:
            cells = {key: row[place] for key, row in table.rows if (place := f"{dataset}.{metric}") in row}
            lower = metric in LOWER
            ranked = sorted(
                (key for key in cells if cells[key].whole),
                key=lambda key: float(cells[key].value or 0),
                reverse=not lower,
            )
            left_out = tuple(names[key] for key in cells if not cells[key].whole)
            if not ranked:
                if left_out:
                    made.append(_undecided(about, dataset, metric, left_out))
                continue
            values = {key: board.values(own[key], metric) for key in ranked}
            scored = read is not None and metric == "image_auroc"
            folders = {key: evidence.folders_of(board, key, dataset) if scored else NO_FOLDERS for key in ranked}
            rivals = []
            for key in ranked[1:]:
                pairs = evidence.paired(values[ranked[0]], values[key], folders[ranked[0]], folders[key], metric, read)
                found = statistics.paired_difference(pairs) if pairs else None
                told = (None, None) if found is None else (found.mean, found.interval)
                rivals.append(Rival(names[key], float(cells[key].value or 0), *told, lower=lower))
            made.append(
                Contest(
                    dataset=dataset,
                    metric=metric_title(metric),
                    first=names[ranked[0]],
                    value=float(cells[ranked[0]].value or 0),
                    rivals=tuple(rivals),
                    categories=about["category"].nunique(),
                    seeds=about["seed"].nunique(),
                    runs=len(about),
                    collapsed=int(about["degenerate"].sum()),
                    left_out=left_out,
                )
            )
    return made


def _undecided(about: pd.DataFrame, dataset: str, metric: str, left_out: tuple[str, ...]) -> Contest:
    counts = about[["category", "seed"]].nunique()
    return Contest(
        dataset, metric_title(metric), "", 0.0, (), counts["category"], counts["seed"], len(about), left_out=left_out
    )


def doubts(board: Board) -> Doubts:
    """What weighs against the board's verdict."""
    lines = board.lines
    expected = 0
    for _, own in lines.groupby("dataset", sort=False):
        expected += own["row"].nunique() * own["category"].nunique() * own["seed"].nunique()
    models = set(lines["model"])
    benches = [bench for bench in board.found.benches if model_key(bench.spec, bench.result) in models]
    random = lines[lines["weights"] == "random"]
    least = lines.groupby("dataset")[["seed", "category"]].nunique().min()
    return Doubts(
        rows=lines["row"].nunique(),
        random=random["row"].nunique(),
        expected=max(expected, len(lines)),
        missing=max(0, expected - len(lines)),
        failed=sum(each.kind != "bench" and each.reason != "interrupted" for each in board.found.failures),
        collapsed=int(lines["degenerate"].sum()),
        measured=len(benches),
        disturbed=sum(bench.result.get("disturbed") is True for bench in benches),
        seeds=int(least["seed"]),
        categories=int(least["category"]),
    )


def judge(board: Board, made: Sequence[Contest]) -> Verdict:
    """The verdict on a board, from its `contests`."""
    notes = [f"{HOW[0].upper()}{HOW[1:]}."] if any(contest.rivals for contest in made) else []
    return verdict(made, doubts(board), notes)


def marked(table: Table, made: Sequence[Contest], board: Board) -> Table:
    """The table of scores with the standing of its cells: who leads beyond noise, or who is not told apart."""
    names = evidence.labels([key for key, _ in table.rows])
    standing: dict[tuple[str, str], str] = {}
    metrics = {metric_title(metric): metric for metric in board.metrics}
    for contest in made:
        column = f"{contest.dataset}.{metrics[contest.metric]}"
        if contest.leader:
            standing[contest.leader, column] = "leads"
        elif contest.rivals and not contest.says_nothing:
            group = (contest.first, *(rival.name for rival in contest.tied))
            standing |= {(name, column): "tied" for name in group}
    rows: list[tuple[Key, dict[str, Cell]]] = [
        (
            key,
            {
                place: replace(cell, standing=mark) if (mark := standing.get((names[key], place))) else cell
                for place, cell in row.items()
            },
        )
        for key, row in table.rows
    ]
    return replace(table, rows=rows)
