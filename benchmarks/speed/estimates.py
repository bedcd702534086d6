"""How well the records of one grid foretell another: predicted against measured seconds of every run.

    python benchmarks/speed/estimates.py runs/FIRST runs/SECOND [--device cpu]

`harness plan`, the order of runs, shards and time limits use the same estimates. What is measured is what records hold:
the training with the teacher's features, and its evaluations; not the start of a worker and the first decoding. Beside
stands what one rate of multiply-adds for everything would have said (the median of the first grid's records).
"""

import argparse
import statistics
import sys
from collections import defaultdict
from pathlib import Path

from dskd.config import from_mapping
from harness.data.catalog import get_source
from harness.grid import Training
from harness.launch import pace
from harness.naming import title
from harness.records import Record, Results
from harness.spec import EvaluateSpec, TrainSpec


def runs_of(folder: Path) -> list[tuple[Training, float, float]]:
    """The runs of a results folder, each with its measured seconds, and those of its training's steps alone."""
    trainings: dict[str, tuple[TrainSpec, Record]] = {}
    evaluations: dict[str, list[tuple[EvaluateSpec, Record]]] = defaultdict(list)
    for record in Results(folder):
        if isinstance(record, Record) and record.kind == "train":
            trainings[record.id] = from_mapping(TrainSpec, record.spec), record
        elif isinstance(record, Record) and record.kind == "evaluate":
            spec = from_mapping(EvaluateSpec, record.spec)
            evaluations[spec.train.id].append((spec, record))
    source, found = get_source({"name": "surfaces"}), []
    for run_id, (spec, record) in trainings.items():
        own = evaluations[run_id]
        seconds = record.wall_s + sum(one.result["inspect_s"] + one.wall_s for _, one in own)
        run = Training(spec, tuple(one for one, _ in own), source, None)
        found.append((run, seconds, record.result["train_s"]))
    return found


def by_one_rate(first: list[tuple[Training, float, float]], run: Training) -> float:
    """Multiply-adds of the training and of its evaluations over the median rate of the first grid's trainings."""
    rate = statistics.median(pace.training(one.spec).gmac / train_s for one, _, train_s in first)
    amount = pace.training(run.spec) + pace.features(run.spec) + pace.inspection(run.spec)
    return amount.gmac / rate


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("first", type=Path)
    parser.add_argument("second", type=Path)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options = parser.parse_args()
    first, second = runs_of(options.first), runs_of(options.second)
    if not first or not second:
        sys.exit("there are no records of trainings in one of the two folders")
    paces = pace.learn(Results(options.first), options.device)
    print("| run | measured | predicted | | by one rate | |\n| --- | ---: | ---: | ---: | ---: | ---: |")
    errors: list[tuple[float, float]] = []
    for run, seconds, _ in sorted(second, key=lambda item: title(item[0].spec)):
        predicted, plain = pace.estimate_s(run, paces) - pace.FIXED_S, by_one_rate(first, run)
        errors.append((predicted / seconds - 1, plain / seconds - 1))
        cells = f"{seconds:.1f} s | {predicted:.1f} s | {errors[-1][0]:+.0%} | {plain:.1f} s | {errors[-1][1]:+.0%}"
        print(f"| {title(run.spec)}, {run.spec.image_size} | {cells} |")
    for name, found in zip(("predicted", "by one rate"), zip(*errors, strict=True), strict=True):
        sizes = [abs(error) for error in found]
        within = sum(size <= 0.3 for size in sizes)
        worst = f"at most {max(sizes):.0%}, {within} of {len(sizes)} within 30 %"
        print(f"{name}: median error {statistics.median(sizes):.0%}, {worst}")


if __name__ == "__main__":
    main()
