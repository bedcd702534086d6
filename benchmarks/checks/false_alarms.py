"""False alarm rate on normal images that nothing has seen, beside what was promised: images and pixels.

    PYTHONPATH=. python benchmarks/checks/false_alarms.py --mtd MTD --weights RESNET18.safetensors

Each method is trained once, by the harness, on a tenth of the normal images of Magnetic Tile Defects (whole tiles
together). All other normal images, those that `calibrate` holds out and those of the test set, are inspected by its
students. Then their tiles are split at random, again and again: thresholds are made of some, and the false alarms are
counted on the others. Prints Markdown. Downloads nothing.
"""

import argparse
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from dskd.conformal import least_rate, thresholds, unit_weights, units_needed
from dskd.distiller import Distiller
from dskd.teacher import Teacher
from harness.data import held_out, images
from harness.data.catalog import get_source
from harness.environment import cpu_name, describe_environment
from harness.grid import expand, resolve
from harness.gridfile import parse
from harness.job import TrainJob
from harness.launch.schedule import remaining
from harness.records import Results
from harness.run.device import open_device
from harness.run.evaluate import inspect
from harness.run.execute import execute
from harness.spec import Save

RATES = (0.01, 0.05, 0.1)
CALIBRATION_TILES = (100, 20)


@dataclass(frozen=True)
class Unseen:
    """Normal images as one model sees them: scores (n,), maps (n, H, W), and the tile of each."""

    scores: np.ndarray
    maps: np.ndarray
    tiles: np.ndarray


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mtd", required=True)
    parser.add_argument("--weights", required=True)
    parser.add_argument("--methods", default="stfpm,dskd")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--splits", type=int, default=200)
    given = parser.parse_args()
    print(f"{cpu_name()}, torch {torch.__version__}, commit {describe_environment().get('commit', '')}\n")
    print("| method | tiles | promised | counted | images above | of single splits | pixels above | of single splits |")
    print("| --- | ---: | ---: | --- | ---: | ---: | ---: | ---: |", flush=True)
    notes = []
    with tempfile.TemporaryDirectory() as name:
        for job in jobs(given, folder := Path(name)):
            seen = trained(job)
            for tiles in CALIBRATION_TILES:
                for line in lines(seen, tiles, given.splits):
                    print(f"| {job.spec.method.name} | {line}", flush=True)
            counted = f"{len(seen.scores)} unseen normal images of {len(set(seen.tiles))} tiles"
            record = Results(folder).record(job.spec.id)
            notes.append(f"{job.spec.method.name}: trained on {record.result['train_images']} images, {counted}")
    print("\n" + "\n".join(notes))


def jobs(given: argparse.Namespace, folder: Path) -> list[TrainJob]:
    """One training a method, which `calibrate` leaves a tenth of the normal images."""
    grid = parse(
        {
            "name": "false-alarms",
            "calibrate": 0.9,
            "axes": {
                "method": given.methods.split(","),
                "backbone": ["resnet18"],
                "dataset": [{"name": "mtd", "root": given.mtd}],
            },
            "defaults": {
                "image_size": given.size,
                "weights": given.weights,
                "train.epochs": given.epochs,
                "train.batch_size": 8,
                "train.select": "last",
                "precision": "fp32",
            },
        }
    )
    options = {"results": str(folder), "save": Save(), "device": "cpu", "force": False, "grid": grid.name}
    return list(remaining(expand(grid, resolve(grid)), (), checkpoint_every_s=600.0, **options).jobs)


def trained(job: TrainJob) -> Unseen:
    """Train, then look at all normal images that were not trained on."""
    execute(job, lambda *_: None)
    spec, device = job.spec, open_device("cpu", "fp32")
    folder = Results(Path(job.results)).run_folder(spec.id)
    model = Distiller(spec.method, spec.backbone, Teacher(spec.backbone, job.weights_path or "random"))
    model.to(memory_format=torch.channels_last).students.load_state_dict(load_file(folder.students))
    category = images.load(get_source(job.source), spec.data, spec.image_size)
    held = held_out.divide(category.train.samples, spec).calibration
    good = np.array([place for place, one in enumerate(category.test.samples) if not one.anomalous])
    samples = [category.train.samples[i] for i in held] + [category.test.samples[i] for i in good]
    pixels = np.concatenate([category.train.images[held], category.test.images[good]])
    _, (seen,) = inspect(model, pixels, job.evaluations, spec.eval_batch_size, device, lambda *_: None, pixels)
    return Unseen(seen.scores, seen.maps, np.array([held_out.unit_of(one) for one in samples]))


def lines(seen: Unseen, tiles: int, splits: int) -> Iterator[str]:
    """Rows of the table, from the second column on: as the product counts, and as if each image were of a tile of its
    own, which is wrong.
    """
    found = {grouped: alarms(seen, tiles, splits, grouped) for grouped in (True, False)}
    for place, rate in enumerate(RATES):
        for grouped, shares in found.items():
            what = "tiles" if grouped else "(images)"
            cells = " | ".join(told(each) for each in shares[:, :, place])
            if grouped and units_needed(rate) > tiles:
                cells = f"none: needs {units_needed(rate)}, lowest is {100 * least_rate(tiles):.1f} % | – | – | –"
            yield f"{tiles} | {100 * rate:g} % | {what} | {cells} |"


def alarms(seen: Unseen, tiles: int, splits: int, grouped: bool) -> np.ndarray:
    """(2, splits, rates): shares of images, and of pixels, above the thresholds, in the mean over unseen tiles."""
    draw, names = np.random.default_rng(0), np.unique(seen.tiles)
    found = np.full((2, splits, len(RATES)), np.nan)
    for split in range(splits):
        known = np.isin(seen.tiles, draw.permutation(names)[:tiles])
        own = seen.tiles[known] if grouped else np.arange(known.sum())
        weights = unit_weights(seen.tiles[~known])
        for kind, values in enumerate((seen.scores, seen.maps)):
            limits = thresholds(values[known], unit_weights(own), RATES)
            new = values[~known].reshape(len(weights), -1)
            for place, limit in enumerate(limits):
                if limit is not None:
                    found[kind, split, place] = np.average((new > limit).mean(axis=1), weights=weights)
    return found


def told(shares: np.ndarray) -> str:
    """The mean over splits with its 95 % interval, and what 90 % of single splits give, in %."""
    if np.isnan(shares).any():
        return "– | –"
    mean, error = 100 * shares.mean(), 196 * shares.std(ddof=1) / len(shares) ** 0.5
    low, high = np.percentile(100 * shares, (5, 95))
    return f"{mean:.2f} [{mean - error:.2f}, {mean + error:.2f}] % | {low:.1f} to {high:.1f} %"


if __name__ == "__main__":
    main()
