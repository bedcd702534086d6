"""A results folder as runs leave it, without running any: records, curves, scores and pictures of made-up numbers."""

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from dskd.config import replace, to_mapping
from dskd.methods import METHODS, get_method
from dskd.size import Size, sides
from harness.records import Failure, Record, Results
from harness.spec import BenchSpec, Data, EvaluateSpec, TrainSpec, Weights

ENVIRONMENT = {"packages": {"torch": "2.13.0", "dskd-harness": "0.1.0"}, "commit": "0123456789ab", "python": "3.11.7"}
DEVICE = {"device": "a processor", "device_type": "cpu", "threads": 2, "precision": "fp32"}
AT = "2026-01-01T00:00:00+00:00"
NORMAL, DEFECTIVE = 10, 14  # test images of a category
EPOCHS = 8


def write_results(
    folder: Path,
    methods: Sequence[str] = tuple(METHODS)[:3],
    categories: Sequence[str] = ("cloth", "metal"),
    seeds: int = 3,
    *,
    maps: int = 0,
    side: Size = 64,
    epochs: int = EPOCHS,
    image_size: Size = 64,
) -> Results:
    """One evaluation with its training for each combination, and one bench for each method.

    maps: pictures of each evaluation, whose panels are of `side` pixels.
    """
    results = Results(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "grid.yaml").write_text(f"name: {folder.name}\n")
    draw = np.random.default_rng(0)
    for place, method in enumerate(methods):
        config = replace(get_method(method), {"train.epochs": epochs})
        for category in categories:
            for seed in range(seeds):
                spec = TrainSpec(
                    config, "resnet18", Weights(), Data("set", category, f"hash-{category}"), seed, image_size
                )
                _train(results, spec, draw)
                _evaluate(results, spec, 1.5 - 0.2 * place, draw, maps, side)
        bench = BenchSpec(config, "resnet18", image_size, "auto", "cpu", 2)
        publish(results, bench, {"images_per_s": 50.0 + 30 * place, "best_batch_size": 8, **DEVICE})
    return results


def publish(results: Results, spec: Any, result: dict[str, Any], at: str = AT) -> None:
    results.publish(Record(spec.kind, spec.id, to_mapping(spec), result, ENVIRONMENT, at, 1.0))


def fail(results: Results, method: str = "stfpm", message: str = "the loss became <nan>") -> None:
    spec = TrainSpec(get_method(method), "resnet18", Weights(), Data("set", "cloth", "m"), 99, 64)
    results.fail(Failure("train", spec.id, to_mapping(spec), "diverged", message, "Traceback: <b>here</b>", AT, {}))


def _train(results: Results, spec: TrainSpec, draw: np.random.Generator) -> None:
    epochs = spec.method.train.epochs
    result = {
        "epochs": epochs,
        "train_images": 20,
        "train_s": 12.5,
        "images_per_s": 80.0,
        "peak_host_memory_mib": 900.0,
        **DEVICE,
    }
    publish(results, spec, {**result, "parameters_students": 11_000_000})
    folder = results.run_folder(spec.id).path
    losses = np.exp(-np.arange(epochs) / 4) * draw.uniform(0.9, 1.1, epochs)
    _rows(folder / "curve.csv", [{"epoch": 1 + i, "loss": loss} for i, loss in enumerate(losses)])
    values = 0.9 - 0.3 * np.exp(-np.arange(epochs) / 2)
    _rows(
        folder / "metrics.csv",
        [{"epoch": 1 + i, "image_auroc": v, "pixel_auroc": v, "aupro_0.30": v} for i, v in enumerate(values)][1::2],
    )


def _evaluate(
    results: Results, train: TrainSpec, lead: float, draw: np.random.Generator, maps: int, side: Size
) -> None:
    spec = EvaluateSpec(train, train.method.map, train.method.score)
    scores = np.concatenate([draw.normal(0, 1, NORMAL), draw.normal(lead, 1, DEFECTIVE)])
    anomalous = np.arange(NORMAL + DEFECTIVE) >= NORMAL
    auroc = float((scores[anomalous][None] > scores[~anomalous][:, None]).mean())
    result = {"image_auroc": auroc, "pixel_auroc": 0.9 + draw.normal(0, 0.01), "aupro_0.30": 0.7 + draw.normal(0, 0.02)}
    publish(results, spec, {**result, "degenerate": auroc <= 0.5, **DEVICE})
    folder = results.run_folder(spec.id).path
    images = [("good" if i < NORMAL else "torn_edge", f"test/{i:03d}.png") for i in range(NORMAL + DEFECTIVE)]
    _rows(
        folder / "scores.csv",
        [
            {"path": path, "defect": defect, "anomalous": int(defect != "good"), "score": repr(float(score))}
            for (defect, path), score in zip(images, scores, strict=True)
        ],
    )
    height, width = sides(side)
    for position in np.linspace(0, len(images) - 1, maps).astype(int) if maps else ():
        defect, path = images[position]
        target = folder / "maps" / f"{position:04d}_{defect}_{Path(path).stem}.png"
        target.parent.mkdir(exist_ok=True)
        coarse = Image.fromarray(draw.integers(0, 255, (height // 8, 3 * width // 8, 3), dtype=np.uint8))
        noise = draw.normal(0, 6, (height, 3 * width, 3))
        pixels = np.asarray(coarse.resize((3 * width, height))) + noise
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(target)


def _rows(path: Path, rows: list[dict[str, Any]]) -> None:
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, fieldnames=list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
