"""What a run costs as the number of runs, of images and of pixels grows, and where the fixed part of it goes.

    python benchmarks/speed/scaling.py [--runs 10,100,1000] [--images 100,1000,10000] [--sizes 64,256]

A trivial run is STFPM of one epoch on 16 images of 64x64. Its computing (teacher, forward, backward, optimizer, passes
of the evaluation, maps, metrics) is taken from profiles of runs in a warm process, by `harness profile`'s sections; the
rest is what a run costs beside. Grids are run by `harness run` with one worker, start to leaderboard.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import common
import yaml

from harness import events
from harness.cli.common import make_plan
from harness.launch import schedule
from harness.records import Record, Results

STEP = ("batch", "forward", "backward", "optimizer")
BESIDE_STEP = ("teacher", "inspect", "maps", "metrics")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=numbers, default=[10, 100, 1000])
    parser.add_argument("--images", type=numbers, default=[100, 1000, 10_000])
    parser.add_argument("--sizes", type=numbers, default=[64, 256])
    parser.add_argument("--parts", default="fixed,runs,images,sizes,memory", help="which of these to measure")
    common.add_json(parser)
    options = parser.parse_args()
    parts: dict[str, Callable[[], Any]] = {
        "fixed": fixed_cost,
        "runs": lambda: [grid_of(count) for count in options.runs],
        "images": lambda: [one_run(images=count, size=64, test=count // 10) for count in options.images],
        "sizes": lambda: [one_run(images=64, size=size, test=64) for size in options.sizes],
        "memory": lambda: [one_run(images=400, size=256, test=100, precision=kind) for kind in ("fp32", "bf16")],
    }
    found = {}
    for name in options.parts.split(","):
        found[name] = parts[name]()
        for line in found[name] if isinstance(found[name], list) else [found[name]]:
            print(f"{name:7}", ", ".join(f"{key} {value}" for key, value in line.items()), flush=True)
    common.save(options.json, found)


def numbers(text: str) -> list[int]:
    return [int(part) for part in text.split(",")]


def write_grid(
    folder: str, seeds: int, images: int = 16, size: int = 64, test: int = 16, precision: str = "auto"
) -> Path:
    """One category of `surfaces`; `test`: about so many images."""
    kinds = 5  # of defects that granite has
    dataset = {"name": "surfaces", "categories": ["granite"], "side": size, "train": images}
    dataset |= {"test_good": max(1, test // 2), "test_per_defect": max(1, test // 2 // kinds)}
    axes = {"method": ["stfpm"], "backbone": ["resnet18"], "dataset": [dataset], "seed": list(range(seeds))}
    defaults = {"image_size": size, "weights": "random", "train.epochs": 1, "train.select": "last"}
    defaults["precision"] = precision
    path = Path(folder) / "grid.yaml"
    path.write_text(yaml.safe_dump({"name": "scaling", "axes": axes, "defaults": defaults}))
    return path


def fixed_cost(runs: int = 6) -> dict[str, Any]:
    """Of trivial runs in a warm process, the one with the least beside computing; the first is left out."""
    from harness.run.execute import execute
    from harness.run.sections import take_sections
    from harness.run.warm import Warm

    measured, warm = [], Warm()
    with TemporaryDirectory() as folder:
        grid, plan = make_plan(write_grid(folder, runs), "cpu", None, None)
        options = {"save": grid.save, "device": "cpu", "force": False, "grid": grid.name, "checkpoint_every_s": 600}
        jobs = list(schedule.remaining(plan, (), results=folder, **options).jobs)
        for job in jobs:
            marks: dict[type, float] = {}

            def emit(event: events.FromWorker, marks: dict[type, float] = marks) -> None:
                assert not isinstance(event, events.Failed), event
                marks.setdefault(type(event), time.perf_counter())

            started = time.perf_counter()
            sections, wall_s = take_sections(lambda job=job, emit=emit: execute(job, emit, warm=warm))
            seconds = dict(sections.seconds)
            computing = sum(seconds.pop(name, 0) for name in BESIDE_STEP)
            step = sum(seconds.pop(name) for name in STEP)
            found = {"run": wall_s, "computing": computing + step}
            found |= {"to_first_step": marks[events.Step] - started - step, **seconds}
            measured.append({f"{name}_s": value for name, value in found.items()})
    best = min(measured[1:], key=lambda found: found["run_s"] - found["computing_s"])
    return {key: round(value, 3) for key, value in best.items()}


def grid_of(seeds: int) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        path = write_grid(folder, seeds)
        wall_s = timed_run(path, folder)
        started = time.perf_counter()
        common.harness("run", "--grid", str(path), "--out", folder, "--devices", "cpu")
        return {"runs": seeds, "wall_s": wall_s, "s_per_run": wall_s / seeds, "again_s": time.perf_counter() - started}


def one_run(images: int, size: int, test: int, precision: str = "auto") -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        path = write_grid(folder, 1, images, size, test, precision)
        common.harness("plan", "--grid", str(path))  # writes the images, which is no part of a run
        wall_s = timed_run(path, folder)
        results = Results(Path(folder) / "scaling")
        found = {record.kind: record.result for record in results if isinstance(record, Record)}
        return {
            "images": images,
            "size": size,
            "precision": found["train"]["precision"],
            "test_images": found["evaluate"]["test_normal"] + found["evaluate"]["test_anomalous"],
            "wall_s": wall_s,
            "train_s": found["train"]["train_s"],
            "inspect_s": found["evaluate"]["inspect_s"],
            "peak_host_memory_mib": found["train"]["peak_host_memory_mib"],
        }


def timed_run(path: Path, folder: str) -> float:
    started = time.perf_counter()
    common.harness("run", "--grid", str(path), "--out", folder, "--devices", "cpu")
    return time.perf_counter() - started


if __name__ == "__main__":
    main()
