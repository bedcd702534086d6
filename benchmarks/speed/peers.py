"""STFPM end to end against anomalib's Engine, side by side: same images, teacher file, batch, epochs and size.

    python benchmarks/speed/peers.py [--weights RESNET18.safetensors] [--images 224] [--epochs 10] [--seeds 0,1,2]

Each run is a process of its own, from start to metrics, with nothing cached: `harness run` on one side, Engine.fit and
Engine.test on the other, in two precisions. They take turns, a seed after the other. Learning rate and weight decay of
our side are those that anomalib's loss amounts to, and its map is ours here, so that the AUROCs may be compared.
anomalib validates once, for its thresholds (by default it would after every epoch), and draws no pictures.
What was measured is kept in --json; a call goes on with what is missing there.
"""

import argparse
import json
import statistics
import time
from itertools import product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import common
import numpy as np
import yaml
from scipy import stats

from harness.data import surfaces
from harness.records import Record, Results

SIDES = {"harness": "", "anomalib 32-true": "32-true", "anomalib bf16-mixed": "bf16-mixed"}
CATEGORY = "granite"
BATCH = 32
# anomalib's loss is B/2 times ours (benchmarks/results/anomalib-stfpm.md): its lr 0.4 and weight decay 0.001.
THEIR_RECIPE = {"train.lr": 0.4 * BATCH / 2, "train.weight_decay": 0.001 / (BATCH / 2), "train.select": "last"}
THEIR_MAP = {"discrepancy": "pixel_cos", "scale_fuse": "mul", "fuse_at": "image", "align_corners": False, "sigma": 0}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--weights", type=Path, help="of the teacher, in timm's names; random ones are made if not given"
    )
    parser.add_argument("--images", type=int, default=224, help="normal images to train on, a multiple of the batch")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--sides", default=",".join(SIDES), help="of: " + ", ".join(SIDES))
    parser.add_argument("--most", type=int, default=0, help="stop after so many runs; the next call goes on")
    common.add_json(parser)
    options = parser.parse_args()
    if options.images % BATCH:
        parser.error(
            f"--images {options.images}: write a multiple of {BATCH}, since anomalib's loss grows with the batch"
        )
    runs: list[dict[str, Any]] = []
    if options.json and options.json.exists():
        runs = json.loads(options.json.read_text())["runs"]
    setting = {"images": options.images, "epochs": options.epochs, "size": options.size, "batch": BATCH}
    setting["weights"] = options.weights.name if options.weights else "random"
    runs = [run for run in runs if run["setting"] == setting]
    missing = [
        (seed, side)
        for seed, side in product(map(int, options.seeds.split(",")), options.sides.split(","))
        if (seed, side) not in {(run["seed"], run["side"]) for run in runs}
    ]
    common.anomalib_python()
    with TemporaryDirectory() as folder:
        root, weights = Path(folder), prepare(Path(folder), options)
        for seed, side in missing[: options.most or None]:
            started = time.perf_counter()
            if side == "harness":
                found = ours(root, weights, seed, options)
            else:
                given = {"root": str(root / "data"), "category": CATEGORY, "weights": str(weights), "batch": BATCH}
                given |= {"seed": seed, "epochs": options.epochs, "every": options.epochs}
                found = common.anomalib("stfpm", precision=SIDES[side], **given)
            runs.append(
                {"side": side, "seed": seed, "wall_s": time.perf_counter() - started, "setting": setting, **found}
            )
            last = runs[-1]
            print(f"seed {seed} {side:20} {last['wall_s']:7.1f} s  image AUROC {last['image_auroc']:.4f}", flush=True)
            common.save(options.json, {"runs": runs} | summary(runs))
    print(json.dumps(summary(runs), indent=1))


def prepare(root: Path, options: argparse.Namespace) -> Path:
    """The images in MVTec AD's layout under root/data, of the size that is run; returns the teacher's file."""
    counts = {"train": options.images, "test_good": 40, "test_per_defect": 12}
    surfaces.write_tree(root / "data", [CATEGORY], size=options.size, **counts)
    if options.weights:
        return options.weights.resolve()
    from safetensors.torch import save_file

    from dskd import Teacher

    save_file(Teacher("resnet18").trunk.state_dict(), root / "teacher.safetensors")
    return root / "teacher.safetensors"


def ours(root: Path, weights: Path, seed: int, options: argparse.Namespace) -> dict[str, Any]:
    grid = {
        "name": "peers",
        "axes": {
            "method": ["stfpm"],
            "backbone": ["resnet18"],
            "dataset": [{"name": "mvtec_ad", "root": str(root / "data"), "categories": [CATEGORY]}],
            "seed": [seed],
        },
        "defaults": {
            "image_size": options.size,
            "weights": str(weights),
            "train.epochs": options.epochs,
            "train.batch_size": BATCH,
            **THEIR_RECIPE,
            **{f"map.{key}": value for key, value in THEIR_MAP.items()},
        },
        "save": {"scores": False},
    }
    with TemporaryDirectory() as folder:
        path = Path(folder) / "grid.yaml"
        path.write_text(yaml.safe_dump(grid))
        common.harness("run", "--grid", str(path), "--out", f"{folder}/runs", HARNESS_CACHE=f"{folder}/cache")
        records = [record for record in Results(Path(folder) / "runs" / "peers") if isinstance(record, Record)]
    by_kind = {record.kind: record.result for record in records}
    keys = ("image_auroc", "pixel_auroc", "precision")
    return {key: by_kind["evaluate"][key] for key in keys} | {
        "train_s": by_kind["train"]["train_s"],
        "peak_host_memory_mib": by_kind["train"]["peak_host_memory_mib"],
    }


def summary(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Medians, ratios of the pairs of one seed, and the paired difference of the AUROC with its 95 % interval."""
    sides = {side: {run["seed"]: run for run in runs if run["side"] == side} for side in SIDES}
    mine = sides.pop("harness")
    found: dict[str, Any] = {"median_s": {"harness": _median(mine.values())}}
    for side, theirs in sides.items():
        both = sorted(mine.keys() & theirs.keys())
        if not both:
            continue
        found["median_s"][side] = _median(theirs.values())
        ratios = [theirs[seed]["wall_s"] / mine[seed]["wall_s"] for seed in both]
        found.setdefault("ratio", {})[side] = statistics.median(ratios)
        for metric in ("image_auroc", "pixel_auroc"):
            differences = [mine[seed][metric] - theirs[seed][metric] for seed in both]
            half = float("nan")
            if len(both) > 1:
                half = float(stats.t.ppf(0.975, len(both) - 1) * np.std(differences, ddof=1) / len(both) ** 0.5)
            found.setdefault(f"{metric}_difference", {})[side] = [statistics.mean(differences), half]
    return found


def _median(runs: Any) -> float | None:
    seconds = [run["wall_s"] for run in runs]
    return statistics.median(seconds) if seconds else None


if __name__ == "__main__":
    main()
