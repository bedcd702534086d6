"""How the supervisor fills a machine: rates of 1, 2 and 4 workers on one grid, what the supervisor itself takes, how
well it tells the time that is left, and what 10,000 finished runs cost.

    python benchmarks/speed/devices.py [--runs 40] [--finished 10000] [--repeats 3]

Prints Markdown. Workers compute with one thread each (OMP_NUM_THREADS=1) on the CPU. Rates are counted from the first
record to the last, so that the start of the workers (imports) is not in them; medians of `--repeats` grids in turn.
"""

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from datetime import datetime
from pathlib import Path

import yaml

from harness.environment import describe_environment
from harness.records import Record, Results

EPOCHS = 30
TRAIN = 16


def write_grid(folder: Path, runs: int, epochs: int = EPOCHS) -> Path:
    """A grid of equal small runs: STFPM on 64x64 textures."""
    data = {"name": "surfaces", "categories": ["granite"], "train": TRAIN, "test_good": 4, "test_per_defect": 1}
    axes = {"seed": list(range(runs)), "method": ["stfpm"], "backbone": ["resnet18"], "dataset": [data]}
    defaults = {"image_size": 64, "weights": "random", "train.epochs": epochs, "train.select": "last"}
    document = {"name": "equal", "axes": axes, "defaults": defaults | {"precision": "fp32"}}
    path = folder / "grid.yaml"
    path.write_text(yaml.safe_dump(document | {"save": {"weights": False, "scores": False}}))
    return path


def command(grid: Path, out: Path, *options: str) -> list[str]:
    return [sys.executable, "-m", "harness", "run", "--grid", str(grid), "--out", str(out), *options]


def run(grid: Path, out: Path, *options: str) -> float:
    """Wall seconds of `harness run`."""
    started = time.perf_counter()
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    subprocess.run(command(grid, out, *options), check=True, capture_output=True, env=environment)
    return time.perf_counter() - started


def rate(folder: Path, workers: int) -> float:
    """Runs per second while all workers are at it: the slope of the trainings' ends over time, since ends come in
    groups of as many as there are workers.
    """
    ends = sorted(
        path.stat().st_mtime for path in folder.glob("*/record.json") if '"kind": "train"' in path.read_text()
    )
    kept = ends[: len(ends) - workers + 1]
    return statistics.linear_regression(kept, range(len(kept))).slope


def rates(runs: int, repeats: int) -> dict[int, float]:
    found: dict[int, list[float]] = {1: [], 2: [], 4: []}
    for _ in range(repeats):
        for workers, values in found.items():
            with tempfile.TemporaryDirectory() as scratch:
                folder = Path(scratch)
                run(write_grid(folder, runs), folder, "--devices", f"cpu:{workers}")
                values.append(rate(folder / "equal", workers))
    return {workers: statistics.median(values) for workers, values in found.items()}


def mixed(folder: Path) -> Path:
    """A grid of unequal runs: three methods on two sizes."""
    path = write_grid(folder, 2)
    document = yaml.safe_load(path.read_text())
    document["axes"] |= {"method": ["stfpm", "dskd", "reverse_distillation"], "image_size": [64, 96]}
    del document["defaults"]["image_size"]
    path.write_text(yaml.safe_dump(document))
    return path


def watched(workers: int) -> tuple[float, float, float]:
    """Of a mixed grid: the share of a core that the supervisor took once its workers had started, and the seconds that
    it said were left after a third of the runs, and those that were.
    """
    with tempfile.TemporaryDirectory() as scratch:
        line = command(mixed(Path(scratch)), Path(scratch), "--devices", f"cpu:{workers}")
        environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen(line, stdout=subprocess.PIPE, text=True, env=environment)
        seen: list[tuple[float, float]] = []  # (when, CPU seconds of the supervisor)
        at_a_third = said = 0.0
        for text in process.stdout:
            if found := re.search(r"(\d+)/(\d+) runs  about (\d+) (s|min) left", text):
                seen.append((time.perf_counter(), cpu_seconds(process.pid)))
                if not at_a_third and int(found[1]) >= int(found[2]) / 3:
                    at_a_third, said = seen[-1][0], float(found[3]) * (60 if found[4] == "min" else 1)
        ended = time.perf_counter()
        process.wait()
        (first, before), (last, after) = seen[0], seen[-1]
        return (after - before) / (last - first), said, ended - at_a_third


def cpu_seconds(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def finished(count: int, keep: str = "") -> tuple[float, float]:
    """Seconds and peak MiB of a call that has nothing left to do."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        run(write_grid(folder, 1, epochs=1), folder)
        first = {item.kind: item for item in Results(folder / "equal") if isinstance(item, Record)}
        from harness.cli.common import make_plan

        grid = write_grid(folder, count, epochs=1)
        _, plan = make_plan(grid, "cpu", None)
        for training in plan.trainings:
            for spec in (training.spec, *training.evaluations):
                content = json.loads((folder / "equal" / first[spec.kind].id / "record.json").read_text())
                content["id"] = spec.id
                trained = content["spec"] if spec.kind == "train" else content["spec"]["train"]
                trained["seed"] = training.spec.seed
                path = folder / "equal" / spec.id / "record.json"
                path.parent.mkdir(exist_ok=True)
                path.write_text(json.dumps(content))
        if keep:
            subprocess.run(["cp", "-r", str(folder), keep], check=True)
        seconds = statistics.median(run(grid, folder) for _ in range(3))
        process = subprocess.Popen(command(grid, folder), stdout=subprocess.DEVNULL)
        _, _, usage = os.wait4(process.pid, 0)
        return seconds, usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=40)
    parser.add_argument("--finished", type=int, default=10_000)
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    about = describe_environment()
    print(f"{datetime.now():%Y-%m-%d}, {about['cpu']}, {about['cores']} cores, torch {about['packages']['torch']}\n")
    print("| workers (one thread each) | runs/s | ratio |\n| ---: | ---: | ---: |")
    found = rates(options.runs, options.repeats)
    for workers, value in found.items():
        against = {1: "", 2: f"{value / found[1]:.2f} of one worker's", 4: f"{value / found[2]:.2f} of two workers'"}
        print(f"| {workers} | {value:.2f} | {against[workers]} |")
    share, said, left = watched(2)
    print(f"\nA grid of 12 unequal runs on 2 workers: the supervisor takes {100 * share:.2f} % of a core; ", end="")
    print(f"after a third it says {said:.0f} s are left, {left:.0f} s are ({100 * (said / left - 1):+.0f} %)")
    seconds, peak = finished(options.finished)
    print(
        f"\n`harness run` on {options.finished} finished trainings and as many evaluations: {seconds:.1f} s, ", end=""
    )
    print(f"peak {peak:.0f} MiB")


if __name__ == "__main__":
    main()
