"""Each row of an ablation, and each variant of fusion and score, against the whole method: paired, with Holm's p.

    python benchmarks/checks/ablation.py RUNS/ablation --against dskd

The differences and intervals are those of `harness leaderboard --table differences`. p values are two-sided: where the
interval is over seeds (pixel AUROC), by the same Student's t; where it is a bootstrap's over images and seeds (image
AUROC), by the normal distribution with that 95 % interval, which is rough, and low rather than high for three seeds.
They are corrected by Holm's method over all rows of one data set and metric, variants apart. Prints Markdown. Trains
nothing.
"""

import argparse
from dataclasses import dataclass
from pathlib import Path

from scipy import special

from harness.environment import describe_environment
from harness.leaderboard.evidence import differences, labels, paired
from harness.leaderboard.frame import load
from harness.leaderboard.statistics import holm, stratified_mean
from harness.leaderboard.table import Board, Cell, boards

METRICS = {"image_auroc": "image AUROC", "pixel_auroc": "pixel AUROC"}
NORMAL_95 = 1.959964


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, help="a results folder")
    parser.add_argument("--against", default="dskd", help="the row that the others are compared with")
    given = parser.parse_args()
    found = load([given.runs])
    print(f"commit {describe_environment().get('commit', '')}")
    for dataset in sorted({record.spec["train"]["data"]["name"] for record in found.evaluations}):
        for variants in (False, True):
            (board,) = boards(found, metrics=tuple(METRICS), where=[f"dataset={dataset}"], open_variants=variants)
            cells = compared(board, given.against)
            if variants:
                prefix = f"{given.against} "
                cells = {name.removeprefix(prefix): own for name, own in cells.items() if name.startswith(prefix)}
            print(f"\n### {dataset}: {given.against} minus {'its variants' if variants else 'each row'}\n")
            print(table(cells))


@dataclass(frozen=True)
class Compared:
    """A row's difference, how many pairs it is of, and its p before any correction; None where there is none."""

    cell: Cell
    pairs: int
    p: float | None


Cells = dict[str, dict[str, Compared]]  # by row and metric


def compared(board: Board, against: str) -> Cells:
    names = labels(list(board.parts()))
    cells: Cells = {}
    for (dataset, metric, first, second), row in differences(board, against).rows:
        over_seeds = None
        if row["over"].value == "seeds":
            own = {
                names[key]: board.values(part[part["dataset"] == dataset], metric)
                for key, part in board.parts().items()
                if names[key] in (first, second)
            }
            pairs = paired(own[first], own[second], None, None, metric, None)
            over_seeds = stratified_mean([pair.first - pair.second for pair in pairs])
        cell = row["difference"]
        cells.setdefault(second, {})[metric] = Compared(cell, int(row["pairs"].value or 0), p_value(cell, over_seeds))
    return cells


def table(cells: Cells) -> str:
    """A line for each row, the largest difference of the first metric first."""
    corrected = {metric: adjusted(cells, metric) for metric in METRICS}
    lines = ["| minus | pairs | " + " | ".join(f"{title} [95 %] | p (Holm)" for title in METRICS.values()) + " |"]
    lines.append("| --- | ---: |" + " ---: | ---: |" * len(METRICS))
    first = next(iter(METRICS))
    for name in sorted(cells, key=lambda name: -(cells[name][first].cell.value or 0)):
        told = [str(cells[name][first].pairs)]
        for metric in METRICS:
            told += [shown(cells[name][metric].cell), small(corrected[metric].get(name))]
        lines.append(f"| {name} | " + " | ".join(told) + " |")
    return "\n".join(lines)


def adjusted(cells: Cells, metric: str) -> dict[str, float]:
    """By row its p value, corrected for their number."""
    known = {name: own[metric].p for name, own in cells.items() if own[metric].p is not None}
    return dict(zip(known, holm(list(known.values())), strict=True))


def p_value(cell: Cell, over_seeds: tuple[float, float, float] | None = None) -> float | None:
    """Two-sided; None without an interval or where all is equal.

    Args:
        over_seeds: mean, standard error and degrees of freedom, where the interval is Student's.
    """
    if cell.low is None or cell.high is None or cell.high <= cell.low:
        return None
    if over_seeds:
        middle, error, freedom = over_seeds
        return float(2 * special.stdtr(freedom, -abs(middle) / error))
    return float(2 * special.ndtr(-abs(float(cell.value)) * 2 * NORMAL_95 / (cell.high - cell.low)))


def shown(cell: Cell) -> str:
    mark = " ▲" if cell.sign > 0 else " ▼" if cell.sign < 0 else ""
    interval = "" if cell.low is None else f" [{100 * cell.low:+.1f}, {100 * cell.high:+.1f}]"
    return f"{100 * cell.value:+.1f}{interval}{mark}"


def small(p: float | None) -> str:
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


if __name__ == "__main__":
    main()
