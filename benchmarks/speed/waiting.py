"""Training on a machine that others keep busy: `harness run` of this checkout and of another one, in turn.

    python benchmarks/speed/waiting.py --before CHECKOUT [--busy 0,1,2] [--repeats 10] [--repeats-busy 3]

Each call trains STFPM and DSKD (ResNet-18, 128x128, fp32) beside so many processes that do nothing but compute. Prints
Markdown: images per second of each side, medians, and the median of the ratios pair by pair.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import common
import yaml

METHODS = {"stfpm": 7, "dskd": 3}  # and the epochs that they train


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, metavar="CHECKOUT")
    parser.add_argument("--busy", default="0,1,2", help="numbers of busy processes")
    parser.add_argument("--repeats", type=int, default=10, help="on an idle machine")
    parser.add_argument("--repeats-busy", type=int, default=3)
    common.add_json(parser)
    options = parser.parse_args()
    sides = {"before": options.before.resolve(), "after": common.ROOT}
    found: dict[str, dict[str, list[dict[str, float]]]] = {}
    print(f"{common.machine()}\n")
    print("| busy processes | method | before: images/s | after: images/s | ratio | ratios | waiting |")
    print("| ---: | --- | ---: | ---: | ---: | ---: | --- |")
    for count in map(int, options.busy.split(",")):
        measured: dict[str, list[dict[str, float]]] = {name: [] for name in sides}
        with busy(count):
            for _ in range(options.repeats_busy if count else options.repeats):
                for name, checkout in sides.items():
                    measured[name].append(rates(checkout))
        found[str(count)] = measured
        for method in METHODS:
            print(line(count, method, measured), flush=True)
    common.save(options.json, {"rates": found})


@contextmanager
def busy(count: int) -> Iterator[None]:
    loads = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(count)]
    try:
        yield
    finally:
        for load in loads:
            load.kill()


def rates(checkout: Path) -> dict[str, float]:
    """Images per second by method, and under `waiting` how the worker's threads waited, where its records say so."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch)
        dataset = {"name": "surfaces", "categories": ["granite"], "train": 64, "test_good": 1, "test_per_defect": 1}
        document = {
            "name": "waiting",
            "axes": {"seed": [0], "method": list(METHODS), "backbone": ["resnet18"], "dataset": [dataset]},
            "defaults": {"image_size": 128, "weights": "random", "train.select": "last", "precision": "fp32"},
            "overrides": [{"when": {"method": name}, "set": {"train.epochs": n}} for name, n in METHODS.items()],
        }
        (folder / "grid.yaml").write_text(yaml.safe_dump(document))
        command = [sys.executable, "-m", "harness", "run", "--grid", "grid.yaml", "--out", "out", "--devices", "cpu"]
        environment = os.environ | {"PYTHONPATH": str(checkout)}
        subprocess.run(command, check=True, cwd=folder, env=environment, stdout=subprocess.DEVNULL)
        records = [json.loads(path.read_text()) for path in folder.glob("out/waiting/*/record.json")]
        trained = [record for record in records if record["kind"] == "train"]
        values = {record["spec"]["method"]["name"]: record["result"]["images_per_s"] for record in trained}
        return values | {"waiting": ", ".join(sorted({record["result"].get("waiting", "spin") for record in trained}))}


def line(count: int, method: str, measured: dict[str, list[dict[str, float]]]) -> str:
    before, after = ([each[method] for each in measured[name]] for name in ("before", "after"))
    ratios = [b / a for a, b in zip(before, after, strict=True)]
    shown = [f"{statistics.median(values):.3g}" for values in (before, after)]
    spread = f"{min(ratios):.2f} to {max(ratios):.2f}"
    ways = ", ".join(sorted({str(each["waiting"]) for each in measured["after"]}))
    return f"| {count} | {method} | {' | '.join(shown)} | {statistics.median(ratios):.3f} | {spread} | {ways} |"


if __name__ == "__main__":
    main()
