"""How much of a method's lead is architecture and how much is recipe: the runs of one grid, and their differences.

The grid runs methods under `recipe: [own, common]` on one category and backbone, as benchmarks/grids/recipes-mtd.yaml.
Draws are seeded: the same records give the same numbers.
"""

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from harness.foreign import Damaged
from harness.leaderboard.evidence import Scores, groups_of, last_quarter
from harness.leaderboard.frame import SHOWN, training_key
from harness.leaderboard.statistics import (
    Difference,
    comparisons,
    deviation,
    percentile_interval,
    resample,
    resample_classes,
    resampled_auroc,
    resampled_difference,
)
from harness.naming import labels_of
from harness.records import Failure, Record, Results

IMAGE, PIXEL = SHOWN[:2]  # keys of a record's result
SHARED = ("backbone", "weights", "data", "image_size", "crop")  # settings that all runs have in common
# Normal images, anomalous ones, groups that have both, and seeds are drawn apart, the same for every comparison.
NORMALS, ANOMALIES, SEEDS, BOTH = np.random.SeedSequence(0).spawn(4)

Key = tuple[str, str]  # method, recipe


@dataclass(frozen=True, eq=False)
class Run:
    """One seed of a method under a recipe.

    Attributes:
        scores: as by `evidence.Scores`; along: metrics by epoch, of the last quarter only. None where not recorded.
    """

    evaluation: Record
    training: Record | None
    scores: pd.DataFrame | None
    along: pd.DataFrame | None

    def __getitem__(self, metric: str) -> float | None:
        return self.evaluation.result.get(metric)


@dataclass
class Study:
    """All runs of a folder.

    Attributes:
        runs: by method and recipe, then by seed; one without runs failed as a whole.
        seeds: of all runs and failures, ascending.
    """

    runs: dict[Key, dict[int, Run]] = field(default_factory=dict)
    seeds: list[int] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    damaged: list[Damaged] = field(default_factory=list)

    def each(self) -> Iterator[tuple[Key, int, Run]]:
        return ((key, seed, run) for key, group in self.runs.items() for seed, run in group.items())

    @property
    def tables(self) -> list[pd.DataFrame]:
        """The scores of all runs that have them: of the same images, in the same order."""
        return [run.scores for _, _, run in self.each() if run.scores is not None]

    @property
    def groups(self) -> np.ndarray | None:
        """(n,) labels of the images in `tables`: those of equal label show one object. None where that is not known."""
        return groups_of(self.tables)


def place_of(item: Record | Failure) -> tuple[Key, int]:
    """Method and recipe, and the seed, of a training or an evaluation."""
    labels = labels_of(item.spec)
    return (labels["method"], labels["recipe"]), labels["seed"]


def recipe_of(evaluation: Record) -> str:
    """Loss, map, score and training: what the common recipe makes equal."""
    method = evaluation.spec["train"]["method"]
    parts = [method["loss"], evaluation.spec["map"], evaluation.spec["score"], method["train"]]
    return json.dumps(parts, sort_keys=True)


def read(folder: Path) -> Study:
    """The study that a results folder holds. Raises ValueError for records that cannot be compared, or none."""
    study, results, scores = Study(), Results(folder), Scores()
    items = list(results)
    study.damaged = [item for item in items if isinstance(item, Damaged)]
    study.failures = [item for item in items if isinstance(item, Failure) and item.kind != "bench"]
    records = [item for item in items if isinstance(item, Record)]
    trainings = {training_key(record.spec): record for record in records if record.kind == "train"}
    evaluations = [record for record in records if record.kind == "evaluate"]
    for record in evaluations:
        (key, seed), train = place_of(record), record.spec["train"]
        group = study.runs.setdefault(key, {})
        if seed in group:
            raise ValueError(f"{key}, seed {seed}, has two evaluations; expected one setting of all")
        training, along = trainings.get(training_key(train)), None
        if training is not None:
            along = last_quarter(results.run_folder(training.id), train["method"]["train"]["epochs"])
        table = scores[results.run_folder(record.id)]
        group[seed] = Run(record, training, table, along if along is None else along.dropna(subset=[IMAGE]))
        _check_scores(results.run_folder(record.id).path, group[seed], scores.skipped)
    if not evaluations:
        raise ValueError(f"{folder} holds no finished evaluation")
    settings = {json.dumps([r.spec["train"].get(name) for name in SHARED], sort_keys=True) for r in evaluations}
    if len(settings) > 1:
        raise ValueError(f"the evaluations differ in one of {', '.join(SHARED)}")
    for failure in study.failures:
        study.runs.setdefault(place_of(failure)[0], {})
    study.seeds = sorted({place_of(item)[1] for item in (*evaluations, *study.failures)})
    if any(not table["anomalous"].equals(study.tables[0]["anomalous"]) for table in study.tables):
        raise ValueError("the scores.csv are not of the same images")
    return study


def _check_scores(folder: Path, run: Run, skipped: Sequence[Damaged]) -> None:
    """Raises ValueError for scores that cannot be read, or are not those that the record's image AUROC is of."""
    if skipped:
        raise ValueError(f"{skipped[0].folder}: {skipped[0].message}")
    if run.scores is not None:
        anomalous = run.scores["anomalous"]
        auroc = comparisons(
            run.scores["score"][~anomalous].to_numpy(), run.scores["score"][anomalous].to_numpy()
        ).mean()
        if run[IMAGE] is None or abs(auroc - run[IMAGE]) > 1e-6:
            raise ValueError(f"{folder}: scores.csv gives an image AUROC of {auroc}, the record {run[IMAGE]}")


class Comparer:
    """Differences between groups of runs, all from the same draws of images (or of `units`, groups of them)."""

    def __init__(self, study: Study, draws: int, units: np.ndarray | None = None) -> None:
        self.study, self.draws = study, draws
        self.resampled: dict[tuple[Key, int], np.ndarray] = {}  # (draws,) image AUROC
        if not study.tables:
            return
        anomalous = study.tables[0]["anomalous"].to_numpy()  # the images are the same in all runs
        units = np.arange(len(anomalous)) if units is None else units
        shares = resample_classes(units[~anomalous], units[anomalous], draws, (NORMALS, ANOMALIES, BOTH))
        for key, seed, run in study.each():
            if run.scores is not None:
                score = run.scores["score"].to_numpy()
                self.resampled[key, seed] = resampled_auroc(comparisons(score[~anomalous], score[anomalous]), *shares)

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
            return Difference(middle, None, "", spread)
        shares = resample(np.arange(len(seeds)), self.draws, SEEDS)
        draws = resampled_difference(*(np.stack(values, axis=1) for values in drawn), shares)
        return Difference(middle, percentile_interval(draws), "images × seeds", spread, float((draws > 0).mean()))
