"""One row of a published table, trained again from nothing and laid beside its records' interval.

    MTD=/data/mtd python benchmarks/checks/reproduce.py ablation "STFPM's own" surfaces [--devices cpu:2]

Unpacks benchmarks/results/records/NAME.tar.xz, runs that row of that data set (all its categories and seeds) of the
grid in it, and prints for each metric the recorded mean over seeds with its 95 % interval, and what came out now. Exit
codes: 0 all within the interval, 1 some are not.
"""

import argparse
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

from harness.leaderboard.frame import load
from harness.leaderboard.table import Cell, boards, scores

RECORDS = Path(__file__).resolve().parents[1] / "results" / "records"
METRICS = ("image_auroc", "pixel_auroc")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("name", help=f"one of {', '.join(sorted(path.name[:-7] for path in RECORDS.glob('*.tar.xz')))}")
    parser.add_argument("row", help="the method, as the table calls it")
    parser.add_argument("dataset", help="as the table calls it")
    parser.add_argument("--devices", default="auto", help="as of harness run")
    parser.add_argument("--keep", type=Path, help="a folder for the new runs; else they are deleted")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        unpacked, runs = Path(temporary), given.keep or Path(temporary) / "again"
        with tarfile.open(RECORDS / f"{given.name}.tar.xz") as archive:
            archive.extractall(unpacked, filter="data")
        recorded = unpacked / given.name
        only = ["--only", f"method={given.row}", "--only", f"dataset={given.dataset}"]
        command = ["-m", "harness", "run", recorded / "grid.yaml", "--out", runs, "--devices", given.devices, *only]
        subprocess.run([sys.executable, *command], check=True)
        before, after = (cells(folder, given.row, given.dataset) for folder in (recorded, runs / given.name))
    within = [said(metric, before[metric], after[metric]) for metric in METRICS]
    sys.exit(0 if all(within) else 1)


def cells(folder: Path, row: str, dataset: str) -> dict[str, Cell]:
    """Of one row by metric the mean over categories and seeds, by the method's own map and score."""
    (board,) = boards(load([folder]), ["method"], METRICS, [f"method={row}", f"dataset={dataset}"])
    ((_, found),) = scores(board).rows
    return {metric: next(cell for key, cell in found.items() if key.endswith(metric)) for metric in METRICS}


def said(metric: str, before: Cell, after: Cell) -> bool:
    """Print a line; whether the new mean lies within the recorded interval."""
    low, high = (before.low or 0.0, before.high if before.high is not None else 1.0)
    within = low <= float(after.value or 0) <= high
    print(
        f"{metric}: recorded {100 * float(before.value or 0):.1f} [{100 * low:.1f}, {100 * high:.1f}], now "
        f"{100 * float(after.value or 0):.1f}: {'within' if within else 'OUTSIDE'}"
    )
    return within


if __name__ == "__main__":
    main()
