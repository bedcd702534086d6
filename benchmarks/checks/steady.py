"""How steady rows are over seeds: variances pooled over categories, and their ratio to one row's with an F interval.

    python benchmarks/checks/steady.py RUNS... --against "own recipe" [--metric image_auroc]

Of each row the variance over seeds within each category of each data set, pooled by degrees of freedom (seeds - 1 for
each category). A ratio's 95 % interval is that of F: it takes values for normal and categories for equally variable, so
it is a guide. Below 1: steadier than the row it is compared with. Prints Markdown. Trains nothing.
"""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy import special

from harness.leaderboard.evidence import labels
from harness.leaderboard.frame import load
from harness.leaderboard.table import boards


@dataclass(frozen=True)
class Pooled:
    """A variance and its degrees of freedom."""

    variance: float
    freedom: int

    def over(self, other: "Pooled") -> tuple[float, float, float]:
        """The ratio of the variances and its 95 % interval."""
        ratio = self.variance / other.variance
        low, high = (float(special.fdtri(self.freedom, other.freedom, share)) for share in (0.975, 0.025))
        return ratio, ratio / low, ratio / high


def pooled(strata: Sequence[np.ndarray]) -> Pooled:
    """Of values by category; one with a single value says nothing."""
    freedom = sum(len(values) - 1 for values in strata)
    return Pooled(sum(float(np.var(values)) * len(values) for values in strata) / freedom, freedom)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", type=Path, nargs="+", help="results folders")
    parser.add_argument("--against", required=True, help="the row that the others are compared with")
    parser.add_argument("--metric", default="image_auroc")
    given = parser.parse_args()
    (board,) = boards(load(given.runs), metrics=(given.metric,))
    names = labels(list(board.parts()))
    rows = {}
    for key, part in board.parts().items():
        groups = [own[given.metric].to_numpy() for _, own in part.groupby(["dataset", "category"])]
        rows[names[key]] = pooled([values for values in groups if len(values) > 1])
    print(
        f"| row | standard deviation over seeds, points | degrees of freedom | variance over that of {given.against} |"
    )
    print("| --- | ---: | ---: | ---: |")
    for name, own in sorted(rows.items(), key=lambda row: row[1].variance):
        ratio, low, high = own.over(rows[given.against])
        told = "1" if name == given.against else f"{ratio:.2f} [{low:.2f}, {high:.2f}]"
        print(f"| {name} | {100 * own.variance**0.5:.1f} | {own.freedom} | {told} |")


if __name__ == "__main__":
    main()
