"""How much two students disagree, on normal and on defective pictures, and whether they make the same errors.

    MTD=... python benchmarks/checks/disagreement.py benchmarks/grids/ablation.yaml RUNS/ablation

Of every training of the grid that is done and has two students, each student's own anomaly map of the test pictures:
the model of `dskd.load`, once with each student's weight in the map set to 0. Prints Markdown, means over categories of
each seed, then over seeds, with Student's 95 % interval over seeds. Trains and downloads nothing.

- *disagreement*: |a - b| / (a + b) of the two maps a and b, each divided by its mean over the normal test pictures,
  over the pixels of normal pictures, the good pixels of defective ones, and the defective pixels.
- *same errors*: correlation over pictures of how wrong each student ranks them: of a normal picture the share of
  defective ones that score lower, of a defective one the share of normal ones that score higher (ties half). These are
  the placements whose covariance is that of the two AUROCs (DeLong et al., 1988): at 1 two students are worth one, at 0
  their errors are independent.
- *maps*: correlation of the two maps over the pixels of each picture, the mean over normal and over defective pictures.
"""

import argparse
import functools
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

import dskd
from dskd.anomaly_map import image_scores
from dskd.config import ConfigError
from dskd.switches import Map
from harness.data import images
from harness.environment import cpu_name, describe_environment
from harness.grid import Plan, Training, expand, resolve
from harness.gridfile import read_grid
from harness.leaderboard.statistics import comparisons, t_interval
from harness.predict.model import Model
from harness.records import Record, Results
from harness.run.metrics import ranking

COLUMNS = {
    "disagreement, normal": "normal",
    "good pixels of defective": "beside",
    "defective pixels": "defect",
    "same errors, normal": "errors_normal",
    "defective": "errors_defective",
    "maps, normal": "maps_normal",
    "defective pictures": "maps_defective",
    "image AUROC encoder": "image_encoder",
    "decoder": "image_decoder",
    "both": "image_both",
    "pixel AUROC encoder": "pixel_encoder",
    "its decoder": "pixel_decoder",
    "of both": "pixel_both",
}
Row = tuple[str, str]  # method as the grid calls it, data set
Found = dict[int, list[dict[str, float]]]  # by seed, a dictionary for each category


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("grid", type=Path)
    parser.add_argument("runs", type=Path, help="the grid's results folder")
    given = parser.parse_args()
    grid = read_grid(given.grid)
    rows = measured(expand(grid, resolve(grid)), Results(given.runs))
    print(f"{cpu_name()}, torch {torch.__version__}, commit {describe_environment().get('commit', '')}\n")
    print("| method | data set | categories × seeds | " + " | ".join(COLUMNS) + " |")
    print("| --- | --- | ---: |" + " ---: |" * len(COLUMNS))
    for (method, data), seeds in rows.items():
        counts = sorted({len(found) for found in seeds.values()})
        counted = f"{'-'.join(map(str, counts))} × {len(seeds)}"
        print(f"| {method} | {data} | {counted} | " + " | ".join(told(seeds, key) for key in COLUMNS.values()) + " |")


def measured(plan: Plan, results: Results) -> dict[Row, Found]:
    rows: dict[Row, Found] = {}
    load = functools.lru_cache(maxsize=8)(images.load)
    for training, folder in done(plan, results):
        spec = training.spec
        category = load(training.source, spec.data, spec.image_size)
        known = dict(spec.called)
        row = known.get("method", spec.method.name), known.get("dataset", spec.data.name)
        found = of_students(dskd.load(folder, device="cpu"), category)
        rows.setdefault(row, {}).setdefault(spec.seed, []).append(found)
    return rows


def done(plan: Plan, results: Results) -> Iterator[tuple[Training, Path]]:
    """Trainings of two students, each with the folder of its evaluation by the method's own map."""
    for training in plan.trainings:
        own = [each for each in training.evaluations if each.map == training.spec.method.map]
        if training.spec.method.students != ("encoder", "decoder") or not own:
            continue
        folder = results.run_folder(own[0].id).path
        weights = results.run_folder(training.spec.id).students
        if isinstance(results.record(own[0].id), Record) and weights.is_file():
            yield training, folder


def seen_by(model: Model, pixels: np.ndarray, **weights: float) -> tuple[np.ndarray, np.ndarray]:
    """Maps and scores with these weights of the students in the map."""
    content = model.content
    spec = replace(content.spec, map=replace(content.spec.map, **weights))
    model.content = replace(content, spec=spec)
    try:
        return model.inspect(pixels)
    finally:
        model.content = content


def of_students(model: Model, category: images.Category) -> dict[str, float]:
    if model.content.spec.map.student_fuse != Map().student_fuse:
        raise ConfigError("the method's own map fuses students otherwise than by their sum")
    pixels, masks = np.asarray(category.test.images), np.asarray(category.test.masks)
    bad = np.array([sample.anomalous for sample in category.test.samples])
    maps, scores = {}, {}
    for name, other in (("encoder", "decoder"), ("decoder", "encoder")):
        maps[name], scores[name] = seen_by(model, pixels, **{f"{other}_weight": 0.0})
    maps["both"] = maps["encoder"] + maps["decoder"]  # smoothed or not, the map is their sum
    scores["both"] = image_scores(torch.from_numpy(maps["both"]), model.content.spec.score).double().numpy()
    return {
        **disagreement(maps["encoder"], maps["decoder"], masks, bad),
        **shared_errors(scores["encoder"], scores["decoder"], bad),
        **alike(maps["encoder"], maps["decoder"], bad),
        **{f"image_{name}": 100 * ranking(one[~bad], one[bad]).auroc for name, one in scores.items()},
        **{f"pixel_{name}": 100 * ranking(one[~masks], one[masks]).auroc for name, one in maps.items()},
    }


def disagreement(first: np.ndarray, second: np.ndarray, masks: np.ndarray, bad: np.ndarray) -> dict[str, float]:
    """Of two maps (N, H, W), in %: 0 where they are equal after scaling, 100 where one alone sees something."""
    first, second = first / first[~bad].mean(), second / second[~bad].mean()
    relative = 100 * np.abs(first - second) / (first + second)
    return {
        "normal": relative[~bad].mean(),
        "beside": relative[bad][~masks[bad]].mean(),
        "defect": relative[bad][masks[bad]].mean(),
    }


def shared_errors(first: np.ndarray, second: np.ndarray, bad: np.ndarray) -> dict[str, float]:
    """Correlations of the two students' placements."""
    wrong = [1 - comparisons(scores[~bad], scores[bad]) for scores in (first, second)]
    return {
        "errors_normal": correlation(*(one.mean(axis=1) for one in wrong)),
        "errors_defective": correlation(*(one.mean(axis=0) for one in wrong)),
    }


def alike(first: np.ndarray, second: np.ndarray, bad: np.ndarray) -> dict[str, float]:
    each = np.array([correlation(a.ravel(), b.ravel()) for a, b in zip(first, second, strict=True)])
    return {"maps_normal": np.nanmean(each[~bad]), "maps_defective": np.nanmean(each[bad])}


def correlation(first: np.ndarray, second: np.ndarray) -> float:
    """Pearson's; NaN where one of them is constant (a student that makes no error)."""
    if np.ptp(first) == 0 or np.ptp(second) == 0:
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


def told(seeds: Found, key: str) -> str:
    """Mean and 95 % interval over seeds; categories without a value are left out."""
    means = [np.nanmean(kept) for found in seeds.values() if not np.isnan(kept := [one[key] for one in found]).all()]
    if not means:
        return "–"
    digits = 2 if key.startswith(("errors", "maps")) else 1
    interval = t_interval(means)
    spread = f" ± {(interval[1] - interval[0]) / 2:.{digits}f}" if interval else ""
    return f"{np.mean(means):.{digits}f}{spread}"


if __name__ == "__main__":
    main()
