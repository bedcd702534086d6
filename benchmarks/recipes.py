"""How much of a method's lead is architecture, how much is recipe, and how steady it is: from the records of one grid.

    python benchmarks/recipes.py runs/recipes-mtd [--draws 10000] [--against dskd] > table.md

Reads the results folder of a grid that runs methods under `recipe: [own, common]` on one category and backbone (such as
benchmarks/grids/recipes-mtd.yaml) and trains nothing. Prints Markdown: metrics, paired differences with a bootstrap
over images and seeds, their split into architecture and recipe, steadiness, and the seeds one by one. What is not there
is printed as – and listed. Draws are seeded: the same records give the same text.
"""

import argparse
import json
import re
import sys
import textwrap
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from dskd.methods import METHODS as KNOWN
from harness.data.layouts import MagneticTile
from harness.leaderboard.evidence import last_quarter
from harness.leaderboard.frame import METRICS as TITLES
from harness.leaderboard.frame import SHOWN, provenance, training_key
from harness.leaderboard.statistics import (
    comparisons,
    deviation,
    deviation_factors,
    mean,
    percentile_interval,
    resample,
    resampled_auroc,
    resampled_difference,
)
from harness.records import Damaged, Failure, Record, Results

METRICS = {metric: TITLES[metric] for metric in SHOWN}
IMAGE, PIXEL, AUPRO = METRICS  # keys of a record's result
HOLE = "–"
# Normal images, anomalous images and seeds are drawn apart; every comparison sees the same draws of each.
NORMALS, ANOMALIES, SEEDS = np.random.SeedSequence(0).spawn(3)

Key = tuple[str, str]  # method, recipe


# Records


@dataclass(frozen=True, eq=False)
class Run:
    """One seed. scores: columns anomalous and score by image; along: metrics by epoch, of the last quarter only."""

    evaluation: Record
    training: Record | None
    scores: pd.DataFrame | None
    along: pd.DataFrame | None

    def __getitem__(self, metric: str) -> float | None:
        return self.evaluation.result.get(metric)


@dataclass
class Study:
    """All runs of a folder by (method, recipe) and seed; a key without runs failed as a whole."""

    runs: dict[Key, dict[int, Run]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    damaged: list[Damaged] = field(default_factory=list)

    @property
    def tables(self) -> list[pd.DataFrame]:
        """The scores of all runs that have them: of the same images, in the same order."""
        return [run.scores for group in self.runs.values() for run in group.values() if run.scores is not None]


def key_of(train: dict[str, Any]) -> Key:
    return train["method"]["name"], train["method"].get("recipe", "own")


def train_of(item: Record | Failure) -> dict[str, Any]:
    return item.spec["train"] if item.kind == "evaluate" else item.spec


def recipe_of(evaluation: Record) -> str:
    """Loss, map, score and training: what the common recipe makes equal."""
    method = evaluation.spec["train"]["method"]
    parts = [method["loss"], evaluation.spec["map"], evaluation.spec["score"], method["train"]]
    return json.dumps(parts, sort_keys=True)


def read(folder: Path) -> Study:
    """Raises ValueError for records that cannot be compared, or none."""
    study, results = Study(), Results(folder)
    items = list(results)
    study.damaged = [item for item in items if isinstance(item, Damaged)]
    study.failures = [item for item in items if isinstance(item, Failure) and item.kind != "bench"]
    records = [item for item in items if isinstance(item, Record)]
    trainings = {training_key(record.spec): record for record in records if record.kind == "train"}
    for record in records:
        if record.kind != "evaluate":
            continue
        train = record.spec["train"]
        training = trainings.get(training_key(train))
        along = None
        if training is not None:
            along = last_quarter(results.run_folder(training.id), train["method"]["train"]["epochs"])
        group = study.runs.setdefault(key_of(train), {})
        if train["seed"] in group:
            raise ValueError(f"{key_of(train)}, seed {train['seed']}, has two evaluations; expected one setting of all")
        group[train["seed"]] = Run(
            record,
            training,
            _scores(results.run_folder(record.id).path, record),
            along if along is None else along.dropna(subset=[IMAGE]),
        )
    evaluations = [run.evaluation for group in study.runs.values() for run in group.values()]
    if not evaluations:
        raise ValueError(f"{folder} holds no finished evaluation")
    shared = ("backbone", "weights", "data", "image_size", "crop")
    if len({json.dumps([train_of(each).get(name) for name in shared], sort_keys=True) for each in evaluations}) > 1:
        raise ValueError(f"the evaluations differ in one of {', '.join(shared)}")
    for failure in study.failures:
        study.runs.setdefault(key_of(train_of(failure)), {})
    study.seeds = sorted({train_of(item)["seed"] for item in (*evaluations, *study.failures)})
    if any(not table["anomalous"].equals(study.tables[0]["anomalous"]) for table in study.tables):
        raise ValueError("the scores.csv are not of the same images")
    return study


def _scores(folder: Path, record: Record) -> pd.DataFrame | None:
    if not (folder / "scores.csv").exists():
        return None
    table = pd.read_csv(folder / "scores.csv", index_col="path").sort_index()
    anomalous = table["anomalous"] == 1
    auroc = comparisons(table["score"][~anomalous].to_numpy(), table["score"][anomalous].to_numpy()).mean()
    if record.result[IMAGE] is None or abs(auroc - record.result[IMAGE]) > 1e-6:
        raise ValueError(f"{folder}: scores.csv gives an image AUROC of {auroc}, the record {record.result[IMAGE]}")
    return table


def tiles_of(images: Iterable[str]) -> np.ndarray | None:
    """(n,) int, the tile of each image of Magnetic Tile Defects by its path; None for images of other data.

    Exposures of one tile have neighbouring numbers: a tile is a run of numbers without a large gap, as for the split.
    """
    matches = [re.search(r"exp\d+_num_(\d+)", image) for image in images]
    if not matches or None in matches:
        return None
    numbers, place = np.unique([int(match[1]) for match in matches], return_inverse=True)
    return np.cumsum(np.diff(numbers, prepend=numbers[0]) > MagneticTile.largest_step)[place]


# Comparisons


@dataclass(frozen=True)
class Difference:
    """Of means over `seeds` paired seeds, as shares. spread: deviation of the seeds' differences; low, high: 95 %
    interval over images and seeds; above: share of draws above 0.
    """

    seeds: int
    mean: float
    spread: float | None
    low: float | None = None
    high: float | None = None
    above: float | None = None


class Comparer:
    """Differences between groups of runs, all from the same draws of images (or of `units`, groups of them)."""

    def __init__(self, study: Study, draws: int, units: np.ndarray | None = None) -> None:
        self.study, self.draws = study, draws
        self.resampled: dict[tuple[Key, int], np.ndarray] = {}  # (draws,) image AUROC
        shares = None
        for key, group in study.runs.items():
            for seed, run in group.items():
                if run.scores is None:
                    continue
                score, anomalous = run.scores["score"].to_numpy(), run.scores["anomalous"].to_numpy() == 1
                if shares is None:  # the images are the same in all runs
                    units = np.arange(len(score)) if units is None else units
                    shares = resample(units[~anomalous], draws, NORMALS), resample(units[anomalous], draws, ANOMALIES)
                pairs = comparisons(score[~anomalous], score[anomalous])
                self.resampled[key, seed] = resampled_auroc(pairs, *shares)

    def seeds(self, *keys: Key) -> list[int]:
        """Seeds that all groups have."""
        return sorted(set.intersection(*(set(self.study.runs.get(key, ())) for key in keys)))

    def difference(self, metric: str, first: Key, second: Key, seeds: Sequence[int]) -> Difference | None:
        """First minus second; None without seeds or where a value is undefined. Only the image AUROC has an interval:
        the other metrics would need the maps.
        """
        groups = [[self.study.runs[key][seed][metric] for seed in seeds] for key in (first, second)]
        if not seeds or None in groups[0] + groups[1]:
            return None
        by_seed = np.subtract(*groups)
        middle, spread = float(by_seed.mean()), deviation(by_seed)
        drawn = [[self.resampled.get((key, seed)) for seed in seeds] for key in (first, second)]
        if metric != IMAGE or any(values is None for values in drawn[0] + drawn[1]):
            return Difference(len(seeds), middle, spread)
        shares = resample(np.arange(len(seeds)), self.draws, SEEDS)
        draws = resampled_difference(*(np.stack(values, axis=1) for values in drawn), shares)
        return Difference(len(seeds), middle, spread, *percentile_interval(draws), float((draws > 0).mean()))


# Text


def percent(value: float | None, sign: str = "") -> str:
    return HOLE if value is None else f"{100 * value:{sign}.2f}"


def above(difference: Difference | None) -> str:
    """The share of draws above 0."""
    return HOLE if difference is None or difference.above is None else f"{difference.above:.1%}"


def with_spread(values: Sequence[float | None]) -> str:
    """Mean ± standard deviation of shares, in %."""
    known = [value for value in values if value is not None]
    return f"{percent(mean(known))} ± {percent(deviation(known))}" if known else HOLE


def interval(difference: Difference | None) -> str:
    if difference is None or difference.low is None:
        return HOLE
    return f"[{percent(difference.low, '+')}, {percent(difference.high, '+')}]"


def with_interval(difference: Difference | None) -> str:
    return f"{percent(difference.mean, '+')} {interval(difference)}" if difference else HOLE


def by_seed(difference: Difference | None) -> str:
    return f"{percent(difference.mean, '+')} ± {percent(difference.spread)}" if difference else HOLE


def show(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], notes: Sequence[str]) -> None:
    """Print a section: a table whose first two columns are words, and a list."""
    print(f"\n## {title}\n")
    print(f"| {' | '.join(header)} |\n| {' | '.join(['---'] * 2 + ['---:'] * (len(header) - 2))} |")
    for row in rows:
        print(f"| {' | '.join(row)} |")
    print()
    for note in notes:
        bullet(note)


def bullet(text: str) -> None:
    """Print an item of a list."""
    print(textwrap.fill(text, 120, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False))


def collected(values: Iterable[float]) -> str:
    """`200`, or `195 to 200` where the seeds differ."""
    found = sorted(set(values))
    return HOLE if not found else f"{found[0]}" + (f" to {found[-1]}" if len(found) > 1 else "")


class Report:
    """The sections, of one study against one method that runs under the common recipe."""

    def __init__(self, study: Study, against: str, draws: int) -> None:
        found = [key for key, group in study.runs.items() if key[0] == against and group]
        if len(found) != 1:
            names = ", ".join(recipe for _, recipe in found) or "none"
            raise ValueError(f"{against} must be there under one recipe, which is the common one; found: {names}")
        self.study, self.draws, self.subject = study, draws, found[0]
        groups = {key: next(iter(group.values())) for key, group in study.runs.items() if group}
        recipe = recipe_of(groups[self.subject].evaluation)
        self.common = {key for key, run in groups.items() if recipe_of(run.evaluation) == recipe}
        self.unlike = [key for key in groups if key[1] == "common" and key not in self.common]
        for key in groups:  # a method that has two recipes: a side that never ran is a hole
            if key[1] == "common" or key not in self.common:
                study.runs.setdefault((key[0], "own"), {})
                study.runs.setdefault((key[0], "common"), {})
        self.keys = sorted(study.runs, key=self._place)
        self.tiles = tiles_of(study.tables[0].index if study.tables else ())
        self.by_image = Comparer(study, draws)
        self.by_tile = None if self.tiles is None else Comparer(study, draws, self.tiles)

    def _place(self, key: Key) -> tuple[Any, ...]:
        """The subject first, then as `dskd.methods` lists them, own before common."""
        method, recipe = key
        names = list(KNOWN)
        return key != self.subject, names.index(method) if method in names else len(names), method, recipe == "common"

    def words(self, key: Key) -> list[str]:
        """Method and recipe as a table names them; an own recipe that is the common one says so."""
        return [key[0], "own = common" if key[1] == "own" and key in self.common else key[1]]

    def label(self, key: Key, seed: int) -> str:
        return f"{key[0]} ({key[1]}), seed {seed}"

    def values(self, key: Key, metric: str) -> list[float | None]:
        """Of each seed of the study, None where it is missing."""
        group = self.study.runs[key]
        return [group[seed][metric] if seed in group else None for seed in self.study.seeds]

    def print(self) -> None:
        self.head()
        self.metrics()
        self.differences()
        self.parts()
        self.steadiness()
        self.seeds()

    def head(self) -> None:
        study = self.study
        runs = {(key, seed): study.runs[key][seed] for key in self.keys for seed in sorted(study.runs[key])}
        evaluations = [run.evaluation for run in runs.values()]
        train, result = train_of(evaluations[0]), evaluations[0].result
        size = train.get("crop") or train["image_size"]
        print(f"# Architecture and recipe: {train['data']['name']}, {train['backbone']}, {size}x{size}\n")
        measured = provenance(evaluations)
        test = f"{result['test_normal']} normal and {result['test_anomalous']} anomalous images to test"
        print(textwrap.fill(f"{measured[0].upper()}{measured[1:]}. {test}.", 120) + "\n")
        wanted = [(key, seed) for key in self.keys for seed in study.seeds]
        missing = [self.label(*each) + self._reason(*each) for each in wanted if each not in runs]
        bullet(f"{len(runs)} of {len(wanted)} evaluations are there")
        self._count("Missing evaluations", missing)
        self._count("Trainings without a record", [self.label(*each) for each, run in runs.items() if not run.training])
        for name, lost in (("scores", lambda run: run.scores is None), ("metrics", lambda run: run.along is None)):
            self._count(f"Runs without {name}.csv", [self.label(*each) for each, run in runs.items() if lost(run)])
        self._count("Records that cannot be read", [str(damaged.folder) for damaged in study.damaged])
        differ = [f"{method} ({recipe})" for method, recipe in self.unlike]
        self._count(f"Rows called common that differ from {self.subject[0]}'s recipe", differ)

    def _reason(self, key: Key, seed: int) -> str:
        mine = [f for f in self.study.failures if (key_of(train_of(f)), train_of(f)["seed"]) == (key, seed)]
        return f" (failed: {', '.join(sorted({failure.reason for failure in mine}))})" if mine else ""

    @staticmethod
    def _count(what: str, names: Sequence[str]) -> None:
        if names:
            bullet(f"{what} ({len(names)}): {'; '.join(names)}")

    def metrics(self) -> None:
        names = [f"{name}, %" for name in METRICS.values()]
        header = ["method", "recipe", *names, "seeds", "training images/s", "epochs"]
        rows = []
        for key in self.keys:
            group = self.study.runs[key]
            trainings = [run.training.result for run in group.values() if run.training]
            speeds = [result["images_per_s"] for result in trainings if result.get("images_per_s")]
            collapsed = sum(bool(run.evaluation.result.get("degenerate")) for run in group.values())
            rows.append(
                self.words(key)
                + [with_spread(self.values(key, metric)) for metric in METRICS]
                + [f"{len(group)}" + (f" †{collapsed}" if collapsed else "")]
                + [f"{np.median(speeds):.0f}" if speeds else HOLE]
                + [collected(result["epochs"] for result in trainings)]
            )
        notes = [
            "Mean ± standard deviation (n - 1) over seeds, of the students that the recipe keeps: after the last epoch,"
            " or (`val_normal`) of the epoch with the lowest mean map on held-out normal images. †n: n collapsed.",
            "Speed: median over seeds, as it came; no benchmark.",
        ]
        show("Metrics", header, rows, notes)

    def differences(self) -> None:
        name = self.subject[0]
        header = [f"{name} minus", "recipe", "seeds", "image AUROC [95 %]", "draws above 0"]
        header += ["by tile [95 %]", "draws above 0"] * (self.by_tile is not None) + ["pixel AUROC", "AUPRO 0.3"]
        rows = []
        for key in self.keys[1:]:
            pair = self.subject, key
            seeds = self.by_image.seeds(*pair)
            image, pixel, aupro = (self.by_image.difference(metric, *pair, seeds) for metric in METRICS)
            row = [*self.words(key), str(len(seeds)), with_interval(image), above(image)]
            if self.by_tile:
                tile = self.by_tile.difference(IMAGE, *pair, seeds)
                row += [interval(tile), above(tile)]
            rows.append([*row, by_seed(pixel), by_seed(aupro)])
        notes = [
            "In points (%), of means over the paired seeds.",
            f"Image AUROC: 95 % percentile bootstrap, {self.draws} draws of seeds and of test images (normal and"
            " anomalous apart), the same for both sides. A bootstrap of few seeds is rather too narrow, and the"
            " intervals are not corrected for their number.",
        ]
        if self.by_tile:
            anomalous = self.study.tables[0]["anomalous"].to_numpy() == 1
            normal, defective = (len(np.unique(self.tiles[part])) for part in (~anomalous, anomalous))
            notes.append(
                f"By tile: the same, but whole tiles are drawn ({normal} of normal and {defective} of anomalous"
                " images). Exposures of one tile are near copies: the interval by image takes them as independent and"
                " is too narrow."
            )
        notes.append(
            "Pixel AUROC and AUPRO: ± is the standard deviation (n - 1) of the seeds' differences. There are no maps"
            " to resample, so it is over seeds only and says nothing about other images."
        )
        show(f"{name} minus the others", header, rows, notes)

    def parts(self) -> None:
        """Of each baseline that has two recipes."""
        name = self.subject[0]
        lines = [(self.by_image, metric, title) for metric, title in METRICS.items()]
        if self.by_tile:
            lines.insert(1, (self.by_tile, IMAGE, f"{METRICS[IMAGE]}, by tile"))
        rows = []
        for method in (key[0] for key in self.keys if key[1] == "common"):
            own, common = (method, "own"), (method, "common")
            pairs = (self.subject, own), (self.subject, common), (common, own)
            seeds = self.by_image.seeds(self.subject, own, common)
            for comparer, metric, title in lines:
                found = (comparer.difference(metric, *pair, seeds) for pair in pairs)
                rows.append(
                    [method, title, str(len(seeds)), *map(with_interval if metric == IMAGE else by_seed, found)]
                )
        header = ["baseline", "metric", "seeds", "total", "architecture", "recipe"]
        notes = [
            f"total = {name} - baseline (own); architecture = {name} - baseline (common); recipe = baseline (common)"
            " - baseline (own); total = architecture + recipe. In points, [95 %] and ± as above.",
            f"The common recipe is {name}'s and was not tuned for the baselines: architecture includes how badly it"
            " suits them. Recipe is loss, fusion, smoothing, score, optimizer, epochs and selection together.",
            "Where own = common there is nothing to split: the difference above is architecture's.",
        ]
        show("Architecture and recipe", header, rows, notes)

    def steadiness(self) -> None:
        header = ["method", "recipe", "seeds", "SD over seeds, image AUROC", "pixel AUROC", "recorded epochs"]
        header += ["SD over epochs", "by seed", "range", "mean", "lowest"]
        notes = [
            "In points, mean and lowest in %. SD: standard deviation (n - 1). Over seeds: of the image and pixel AUROC"
            " of the kept students.",
            "Over epochs: image AUROC after the recorded epochs of the last quarter (beyond 0.75 of all) of one"
            " training; SD, range (highest - lowest) and mean are averaged over seeds, lowest is of all. A range grows"
            " with the number of epochs, and epochs follow each other: compare rows with the same epochs.",
            *self._roughness(),
        ]
        show("Steadiness", header, [self._steadiness(key) for key in self.keys], notes)

    def _steadiness(self, key: Key) -> list[str]:
        group = self.study.runs[key]
        final = [
            deviation(value for value in self.values(key, metric) if value is not None) for metric in (IMAGE, PIXEL)
        ]
        along = {seed: run.along[IMAGE] for seed, run in group.items() if run.along is not None and len(run.along)}
        spreads = {seed: deviation(values) for seed, values in along.items() if len(values) > 1}
        ranges = [along[seed].max() - along[seed].min() for seed in spreads]
        row = [*self.words(key), str(len(group)), *map(percent, final), collected(map(len, along.values()))]
        row.append(percent(mean(spreads.values())))
        row.append(" · ".join(percent(spreads.get(seed)) for seed in self.study.seeds))
        row.append(percent(mean(ranges)))
        row.append(percent(mean(values.mean() for values in along.values())))
        row.append(percent(min((values.min() for values in along.values()), default=None)))
        return row

    def _roughness(self) -> list[str]:
        notes = []
        for n in sorted({len(group) for group in self.study.runs.values()} - {0, 1}):
            low, high, ratio = deviation_factors(n)
            notes.append(
                f"An SD over {n} seeds is rough: its 95 % interval is {low:.2f} to {high:.2f} times the value"
                f" (chi-square), and two of them differ at 5 % only from a ratio of {ratio:.1f} on (F), for seeds that"
                " scatter normally."
            )
        return notes

    def seeds(self) -> None:
        header = ["method", "recipe", *(f"seed {seed}" for seed in self.study.seeds)]
        rows = [[*self.words(key), *map(percent, self.values(key, IMAGE))] for key in self.keys]
        show("Image AUROC by seed", header, rows, ["In %, of the kept students."])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="a results folder, runs/NAME")
    parser.add_argument("--draws", type=int, default=10_000)
    parser.add_argument("--against", default="dskd", help="the method whose lead is taken apart")
    args = parser.parse_args()
    try:
        Report(read(args.folder), args.against, args.draws).print()
    except ValueError as error:
        sys.exit(f"recipes.py: {error}")


if __name__ == "__main__":
    main()
