"""False alarm rate on unseen normal images of thresholds that are made by folds (`calibrate: {folds: K}`).

    PYTHONPATH=. python benchmarks/checks/false_alarms_folds.py --mtd MTD --weights RESNET18.safetensors --out FOLDER

For each split some tiles of the normal images of Magnetic Tile Defects are drawn, written to a table, and the harness
trains on all of them and by folds; the images of all other tiles are its test images. Each split has trainings of its
own, since what is in question is the difference between those by folds and the run's own. A split whose records are
in FOLDER is not done again. Prints Markdown. Downloads nothing.
"""

import argparse
import csv
from pathlib import Path

import numpy as np
import torch

from dskd.conformal import unit_weights
from harness.data.catalog import Sample, get_source
from harness.data.manifest import look
from harness.environment import cpu_name, describe_environment
from harness.grid import Plan, expand, resolve
from harness.gridfile import parse
from harness.launch.schedule import remaining
from harness.records import Results
from harness.run.execute import execute
from harness.run_folder import read_scores
from harness.spec import Save

RATES = (0.05, 0.1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mtd", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--method", default="stfpm")
    parser.add_argument("--folds", type=int, default=5)
    parser.add_argument("--tiles", type=int, default=40)
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--splits", type=int, default=20)
    given = parser.parse_args()
    samples = look(get_source({"name": "mtd", "root": given.mtd}), "magnetic_tile").samples
    normal = [one for one in samples if not one.anomalous]
    print(f"{cpu_name()}, torch {torch.__version__}, commit {describe_environment().get('commit', '')}\n")
    shares = np.array(
        [alarms(given, normal, split) for split in range(given.splits)]
    )  # (splits, images or pixels, rates)
    print("| promised | images above | of single splits | pixels above | of single splits |")
    print("| ---: | ---: | ---: | ---: | ---: |")
    for place, rate in enumerate(RATES):
        print(f"| {100 * rate:g} % | {' | '.join(told(shares[:, kind, place]) for kind in (0, 1))} |")


def alarms(given: argparse.Namespace, normal: list[Sample], split: int) -> list[list[float]]:
    """Shares of unseen images, in the mean over their tiles, and of their pixels above the thresholds of each rate."""
    plan, results = done(given, normal, split)
    (training,) = plan.trainings
    found = []
    for evaluation in training.evaluations:
        record = results.record(evaluation.id)
        assert record is not None
        scores = read_scores(results.run_folder(evaluation.id), [])
        above = np.array([one.score > record.result["threshold"] for one in scores])
        images = float(np.average(above, weights=unit_weights([one.group or one.path for one in scores])))
        found.append([images, record.result["pixel_fpr_at_threshold"]])
    return np.array(found).T.tolist()


def done(given: argparse.Namespace, normal: list[Sample], split: int) -> tuple[Plan, Results]:
    """The plan of a split, with what is missing of it done."""
    names = np.unique([one.group for one in normal])
    chosen = set(np.random.default_rng(split).permutation(names)[: given.tiles])
    given.out.mkdir(parents=True, exist_ok=True)
    with open(given.out / f"{split}.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("path", "split", "label", "group"))
        for one in normal:
            table.writerow((one.path, "train" if one.group in chosen else "test", "good", one.group))
    grid = parse(
        {
            "name": f"split-{split}",
            "calibrate": {"folds": given.folds},
            "axes": {
                "method": [given.method],
                "backbone": ["resnet18"],
                "dataset": [{"name": "table", "file": str(given.out / f"{split}.csv"), "root": given.mtd}],
            },
            "defaults": {
                "image_size": given.size,
                "weights": given.weights,
                "train.epochs": given.epochs,
                "train.batch_size": 16,
                "train.select": "last",
                "precision": "fp32",
            },
            "evaluate": [{"false_alarm_rate": rate} for rate in RATES],
        }
    )
    plan, results = expand(grid, resolve(grid)), Results(given.out / "runs")
    options = {"save": Save(weights=False), "device": "cpu", "force": False, "grid": grid.name}
    for job in remaining(plan, results.done(), results=str(results.folder), checkpoint_every_s=600.0, **options).jobs:
        execute(job, lambda *_: None)
    return plan, results


def told(shares: np.ndarray) -> str:
    """The mean over splits with its 95 % interval, and what 90 % of single splits give, in %."""
    mean, error = 100 * shares.mean(), 196 * shares.std(ddof=1) / len(shares) ** 0.5
    low, high = np.percentile(100 * shares, (5, 95))
    return f"{mean:.2f} [{mean - error:.2f}, {mean + error:.2f}] % | {low:.1f} to {high:.1f} %"


if __name__ == "__main__":
    main()
