"""How long the leaderboard takes over many records, and how much memory: a fresh process for each table.

    python benchmarks/speed/leaderboard.py [--records 10000]

The records are made up: 5 methods under 2 recipes on 2 data sets of 10 categories each, as many seeds as it takes.
Prints seconds of wall clock (imports included) and the peak memory of the process.
"""

import argparse
import itertools
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from dskd.config import to_mapping
from dskd.methods import METHODS, get_method
from harness.records import Record, Results
from harness.spec import Data, EvaluateSpec, TrainSpec, Weights

ENVIRONMENT = {"packages": {"torch": "2.13.0", "dskd-harness": "0.1.0"}, "commit": "0123456789ab"}
TABLES = ("scores", "aggregate", "stability", "differences", "tests")


def write(folder: Path, count: int) -> int:
    """About `count` records, half of them trainings; how many there are."""
    results, rng = Results(folder), np.random.default_rng(0)
    configs = [get_method(name, recipe) for name in list(METHODS)[:5] for recipe in ("own", "common")]
    places = [(dataset, f"category_{i}") for dataset in ("one", "other") for i in range(10)]
    seeds = range(max(1, count // (2 * len(configs) * len(places))))
    written = 0
    for config, (dataset, category), seed in itertools.product(configs, places, seeds):
        data = Data(dataset, category, f"{dataset}{category}", (("resize", "square"),), 200, 100)
        train = TrainSpec(config, "resnet18", Weights(), data, seed)
        values = dict.fromkeys(("image_ap", "image_f1_max", "pixel_ap", "pixel_f1_max", "aupro_0.05"), 0.5)
        values |= {metric: float(rng.uniform(0.6, 1)) for metric in ("image_auroc", "pixel_auroc", "aupro_0.30")}
        facts = {"precision": "bf16", "device": "a GPU", "device_type": "cuda", "threads": 8, "degenerate": False}
        for spec, result in ((train, facts), (EvaluateSpec(train, config.map, config.score), values | facts)):
            written += results.publish(
                Record(spec.kind, spec.id, to_mapping(spec), result, ENVIRONMENT, "2026-01-01T00:00:00+00:00", 1.0)
            )
    return written


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--records", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        written = write(Path(folder), args.records)
        print(f"{written} records; seconds of {args.repeats} calls, peak memory of all so far")
        for table in TABLES:
            seconds = []
            for _ in range(args.repeats):
                started = time.perf_counter()
                command = [sys.executable, "-m", "harness", "leaderboard", folder, "--table", table]
                subprocess.run(command, check=True, capture_output=True)
                seconds.append(time.perf_counter() - started)
            peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
            print(f"{table:12} {' '.join(f'{value:.2f}' for value in seconds)} s  {peak:.0f} MiB")


if __name__ == "__main__":
    main()
