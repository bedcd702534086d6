"""Each row of an ablation, and each variant of fusion and score, against the whole method: paired, with Holm's p.

    python benchmarks/checks/ablation.py RUNS/ablation --against dskd

The differences and intervals are those of `harness leaderboard --table differences`. Their p values are two-sided and
by a normal distribution whose 95 % interval is that one (rough for a bootstrap over three seeds), corrected by Holm's
method over all rows of one data set and metric, variants apart. Prints Markdown. Trains nothing.
"""

import argparse
from pathlib import Path

from scipy import special

from harness.environment import describe_environment
from harness.leaderboard.evidence import differences
from harness.leaderboard.frame import load
from harness.leaderboard.statistics import holm
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


Cells = dict[str, dict[str, tuple[Cell, int]]]  # by row and metric the difference, and how many pairs it is of


def compared(board: Board, against: str) -> Cells:
    cells: Cells = {}
    for (_, metric, _, name), row in differences(board, against).rows:
        cells.setdefault(name, {})[metric] = row["difference"], int(row["pairs"].value or 0)
    return cells


def table(cells: Cells) -> str:
    """A line for each row, the largest difference of the first metric first."""
    corrected = {metric: adjusted(cells, metric) for metric in METRICS}
    lines = ["| minus | pairs | " + " | ".join(f"{title} [95 %] | p (Holm)" for title in METRICS.values()) + " |"]
    lines.append("| --- | ---: |" + " ---: | ---: |" * len(METRICS))
    first = next(iter(METRICS))
    for name in sorted(cells, key=lambda name: -(cells[name][first][0].value or 0)):
        told = [str(cells[name][first][1])]
        for metric in METRICS:
            told += [shown(cells[name][metric][0]), small(corrected[metric].get(name))]
        lines.append(f"| {name} | " + " | ".join(told) + " |")
    return "\n".join(lines)


def adjusted(cells: Cells, metric: str) -> dict[str, float]:
    """By row its p value, corrected for their number."""
    known = {name: p for name, own in cells.items() if (p := p_value(own[metric][0])) is not None}
    return dict(zip(known, holm(list(known.values())), strict=True))


def p_value(cell: Cell) -> float | None:
    """Two-sided, from a difference and its 95 % interval; None without one or where all is equal."""
    if cell.low is None or cell.high is None or cell.high <= cell.low:
        return None
    deviation = (cell.high - cell.low) / (2 * NORMAL_95)
    return float(2 * special.ndtr(-abs(float(cell.value)) / deviation))


def shown(cell: Cell) -> str:
    mark = " ▲" if cell.sign > 0 else " ▼" if cell.sign < 0 else ""
    interval = "" if cell.low is None else f" [{100 * cell.low:+.1f}, {100 * cell.high:+.1f}]"
    return f"{100 * cell.value:+.1f}{interval}{mark}"


def small(p: float | None) -> str:
    return "–" if p is None else "< 0.001" if p < 0.001 else f"{p:.3f}"


if __name__ == "__main__":
    main()
