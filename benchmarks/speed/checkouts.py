"""What a change to the harness costs where nothing is wrong: the same commands by two checkouts, in turn.

    python benchmarks/speed/checkouts.py --before CHECKOUT [--repeats 7] [--parts plan,finished,leaderboard,runs]

*plan*: of 10,000 runs, nothing done; *finished*: of 5,000 trainings and 5,000 evaluations, all done; *leaderboard*: of
these 10,000 records; *runs*: `harness run` of --runs trivial trainings with one worker. Each side has a cache of its
own, warm after a call that is not counted. Prints seconds of processor time (user and system, of children too) and of
wall clock: medians, and the median of the ratios pair by pair.
"""

import argparse
import os
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import yaml

HERE = Path(__file__).resolve().parents[2]
METHODS = ["dskd", "stfpm", "reverse_distillation", "two_students", "student_ensemble"]
WRITE = """
import sys
from pathlib import Path
from dskd.config import to_mapping
from harness.cli.common import make_plan
from harness.records import Record, Results
grid, plan = make_plan(Path(sys.argv[1]), "cpu", None)
results = Results(Path(sys.argv[2]) / grid.name)
names = ("image_auroc", "image_ap", "image_f1_max", "pixel_auroc", "pixel_ap", "pixel_f1_max", "aupro_0.30")
facts = {"precision": "bf16", "device": "a GPU", "device_type": "cpu", "threads": 2, "degenerate": False, "train_s": 9}
for number, spec in enumerate(plan.works()):
    values = {name: 0.5 + number % 97 / 200 for name in names} if spec.kind == "evaluate" else {}
    results.publish(
        Record(spec.kind, spec.id, to_mapping(spec), facts | values, {}, "2026-01-01T00:00:00+00:00", 1.0)
    )
(results.folder / "grid.yaml").write_bytes(Path(sys.argv[1]).read_bytes())
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--before", type=Path, required=True, metavar="CHECKOUT")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--parts", default="plan,finished,leaderboard,runs")
    options = parser.parse_args()
    with TemporaryDirectory() as scratch:
        work = Path(scratch)
        sides = {"before": options.before.resolve(), "after": HERE}
        large = write_grid(work / "large.yaml", seeds=2000)
        half = write_grid(work / "half.yaml", seeds=1000)
        trivial = write_grid(work / "trivial.yaml", seeds=options.runs, methods=["stfpm"])
        finished = work / "finished"
        if {"finished", "leaderboard"} & set(options.parts.split(",")):
            run(HERE, work / "cache-after", [sys.executable, "-c", WRITE, str(half), str(finished)])
        commands = {
            "plan": lambda _: harness("plan", "--grid", large, "--out", work / "nothing"),
            "finished": lambda _: harness("plan", "--grid", half, "--out", finished),
            "leaderboard": lambda _: harness("leaderboard", finished / "half"),
            "runs": lambda name: harness("run", "--grid", trivial, "--out", work / name, "--devices", "cpu"),
        }
        print("| what | before: CPU s | after: CPU s | ratio | before: wall s | after: wall s | ratio |")
        print("| --- | ---: | ---: | ---: | ---: | ---: | ---: |")
        for part in options.parts.split(","):
            measured: dict[str, list[tuple[float, float]]] = {name: [] for name in sides}
            for turn in range(options.repeats + 1):
                for name, checkout in sides.items():
                    took = run(checkout, work / f"cache-{name}", commands[part](f"out-{name}-{turn}"))
                    measured[name] += [took] if turn else []
            print(line(part, measured), flush=True)


def write_grid(path: Path, seeds: int, methods: list[str] = METHODS) -> Path:
    dataset = {"name": "surfaces", "categories": ["granite"], "side": 64, "train": 16, "test_good": 4}
    axes = {"method": methods, "backbone": ["resnet18"], "dataset": [dataset | {"test_per_defect": 1}]}
    document = {
        "name": path.stem,
        "axes": axes | {"seed": list(range(seeds))},
        "defaults": {"image_size": 64, "weights": "random", "train.epochs": 1, "train.select": "last"},
        "save": {"weights": False},
    }
    path.write_text(yaml.safe_dump(document))
    return path


def harness(*words: object) -> list[str]:
    return [sys.executable, "-m", "harness", *map(str, words)]


def run(checkout: Path, cache: Path, command: list[str]) -> tuple[float, float]:
    """Seconds of processor time and of wall clock."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "HARNESS_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(command, check=True, cwd=checkout, env=environment, stdout=subprocess.DEVNULL)
    wall = time.perf_counter() - started
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, wall


def line(part: str, measured: dict[str, list[tuple[float, float]]]) -> str:
    cells = []
    for place in (0, 1):
        before, after = ([took[place] for took in measured[name]] for name in ("before", "after"))
        ratio = statistics.median(b / a for a, b in zip(before, after, strict=True))
        cells += [f"{statistics.median(before):.2f}", f"{statistics.median(after):.2f}", f"{ratio:.3f}"]
    return f"| {part} | {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
