"""The study of recipes as a page of Markdown: metrics, paired differences, their split, steadiness, single seeds."""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

from dskd.methods import METHODS as KNOWN
from dskd.size import sides, size_text
from harness.leaderboard.frame import METRICS as TITLES
from harness.leaderboard.frame import SHOWN, provenance
from harness.leaderboard.recipes import IMAGE, PIXEL, Comparer, Key, Study, place_of, recipe_of
from harness.leaderboard.render import cell_text, markdown_table
from harness.leaderboard.statistics import Difference, deviation, deviation_factors, mean
from harness.leaderboard.table import HOLE, Cell, Column, Table
from harness.text import markdown, markdown_note

METRICS = {metric: TITLES[metric] for metric in SHOWN}
WIDTH = 120  # of a line of prose
ROUGH = (
    "An SD over {} seeds is rough: its 95 % interval is {:.2f} to {:.2f} times the value (chi-square), and two of them"
    " differ at 5 % only from a ratio of {:.1f} on (F), for seeds that scatter normally."
)
SHARE, POINTS = Column("", "", "share", digits=2), Column("", "", "points", digits=2)


def percent(value: float | None) -> str:
    return cell_text(SHARE, Cell(value))


def points(value: float | None) -> str:
    return cell_text(POINTS, Cell(value))


def with_spread(values: Sequence[float | None]) -> str:
    """Mean ± standard deviation of shares, in %."""
    known = [value for value in values if value is not None]
    return f"{percent(mean(known))} ± {percent(deviation(known))}" if known else HOLE


def above(difference: Difference | None) -> str:
    """The share of draws above 0."""
    return HOLE if difference is None or difference.above is None else f"{difference.above:.1%}"


def interval(difference: Difference | None) -> str:
    if difference is None or difference.interval is None:
        return HOLE
    low, high = difference.interval
    return f"[{points(low)}, {points(high)}]"


def with_interval(difference: Difference | None) -> str:
    return f"{points(difference.mean)} {interval(difference)}" if difference else HOLE


def by_seed(difference: Difference | None) -> str:
    return f"{points(difference.mean)} ± {percent(difference.spread)}" if difference else HOLE


def collected(values: Iterable[float]) -> str:
    """`200`, or `195 to 200` where the seeds differ."""
    found = sorted(set(values))
    return HOLE if not found else f"{found[0]}" + (f" to {found[-1]}" if len(found) > 1 else "")


def table_of(title: str, header: Sequence[str], rows: Iterable[Sequence[str]], notes: Sequence[str]) -> Table:
    """A table of texts, the first two of each row being its key."""
    columns = [Column(str(place), text, "number") for place, text in enumerate(header[2:])]
    keys = [column.key for column in columns]
    made = [((key, rest), dict(zip(keys, map(Cell, texts), strict=True))) for key, rest, *texts in rows]
    return Table("", title, list(header[:2]), columns, made, list(notes))


def bullet(text: str) -> str:
    """An item of a list."""
    return textwrap.fill(
        markdown_note(text), WIDTH, initial_indent="- ", subsequent_indent="  ", break_on_hyphens=False
    )


class Page:
    """The sections, of one study against one method that runs under the common recipe.

    Args:
        draws: of each bootstrap.

    Raises:
        ValueError: the method is not there under one recipe.
    """

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
        self.groups, self.by_image = study.groups, Comparer(study, draws)
        self.by_group = None if self.groups is None else Comparer(study, draws, self.groups)

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

    def text(self) -> str:
        lines = self.head()
        for table in (self.metrics(), self.differences(), self.parts(), self.steadiness(), self.seeds()):
            lines += ["", f"## {markdown(table.title)}", "", *markdown_table(table), "", *map(bullet, table.notes)]
        return "\n".join(lines) + "\n"

    def head(self) -> list[str]:
        """What was measured, and what of it is missing."""
        study = self.study
        runs = {(key, seed): study.runs[key][seed] for key in self.keys for seed in sorted(study.runs[key])}
        evaluations = [run.evaluation for run in runs.values()]
        train, result = evaluations[0].spec["train"], evaluations[0].result
        size = size_text(sides(train.get("crop") or train["image_size"]))
        measured = provenance(evaluations)
        test = f"{result['test_normal']} normal and {result['test_anomalous']} anomalous images to test"
        wanted = [(key, seed) for key in self.keys for seed in study.seeds]
        named = {
            "Missing evaluations": [self.label(*each) + self._reason(*each) for each in wanted if each not in runs],
            "Trainings without a record": [self.label(*each) for each, run in runs.items() if run.training is None],
            "Runs without scores.csv": [self.label(*each) for each, run in runs.items() if run.scores is None],
            "Runs without metrics.csv": [self.label(*each) for each, run in runs.items() if run.along is None],
            "Records that cannot be read": [str(damaged.folder) for damaged in study.damaged],
            f"Rows called common that differ from {self.subject[0]}'s recipe": [f"{m} ({r})" for m, r in self.unlike],
        }
        title = f"Architecture and recipe: {train['data']['name']}, {train['backbone']}, {size}"
        return [
            f"# {markdown(title)}",
            "",
            textwrap.fill(markdown_note(f"{measured[0].upper()}{measured[1:]}. {test}."), WIDTH),
            "",
            bullet(f"{len(runs)} of {len(wanted)} evaluations are there"),
            *(bullet(f"{what} ({len(names)}): {'; '.join(names)}") for what, names in named.items() if names),
        ]

    def _reason(self, key: Key, seed: int) -> str:
        mine = [failure for failure in self.study.failures if place_of(failure) == (key, seed)]
        return f" (failed: {', '.join(sorted({failure.reason for failure in mine}))})" if mine else ""

    def metrics(self) -> Table:
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
        return table_of("Metrics", header, rows, notes)

    def differences(self) -> Table:
        name = self.subject[0]
        header = [f"{name} minus", "recipe", "seeds", "image AUROC [95 %]", "draws above 0"]
        header += ["by group [95 %]", "draws above 0"] * (self.by_group is not None) + ["pixel AUROC", "AUPRO 0.3"]
        rows = []
        for key in self.keys[1:]:
            pair = self.subject, key
            seeds = self.by_image.seeds(*pair)
            image, pixel, aupro = (self.by_image.difference(metric, *pair, seeds) for metric in METRICS)
            row = [*self.words(key), str(len(seeds)), with_interval(image), above(image)]
            if self.by_group:
                grouped = self.by_group.difference(IMAGE, *pair, seeds)
                row += [interval(grouped), above(grouped)]
            rows.append([*row, by_seed(pixel), by_seed(aupro)])
        notes = [
            "In points (%), of means over the paired seeds.",
            f"Image AUROC: 95 % percentile bootstrap, {self.draws} draws of seeds and of test images (normal and"
            " anomalous apart), the same for both sides. A bootstrap of few seeds is rather too narrow, and the"
            " intervals are not corrected for their number.",
            *self._about_groups(),
            "Pixel AUROC and AUPRO: ± is the standard deviation (n - 1) of the seeds' differences. There are no maps"
            " to resample, so it is over seeds only and says nothing about other images.",
        ]
        return table_of(f"{name} minus the others", header, rows, notes)

    def _about_groups(self) -> list[str]:
        if self.groups is None:
            return []
        anomalous = self.study.tables[0]["anomalous"].to_numpy()
        normal, defective = (len(np.unique(self.groups[part])) for part in (~anomalous, anomalous))
        return [
            f"By group: the same, but whole groups are drawn ({normal} of normal and {defective} of anomalous images)."
            " Images of one group (exposures of one tile) are near copies: the interval by image takes them as"
            " independent and is too narrow."
        ]

    def parts(self) -> Table:
        """Of each baseline that has two recipes."""
        name = self.subject[0]
        lines = [(self.by_image, metric, title) for metric, title in METRICS.items()]
        if self.by_group:
            lines.insert(1, (self.by_group, IMAGE, f"{METRICS[IMAGE]}, by group"))
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
        return table_of("Architecture and recipe", header, rows, notes)

    def steadiness(self) -> Table:
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
        return table_of("Steadiness", header, [self._steadiness(key) for key in self.keys], notes)

    def _steadiness(self, key: Key) -> list[str]:
        group = self.study.runs[key]
        final = [
            deviation(value for value in self.values(key, metric) if value is not None) for metric in (IMAGE, PIXEL)
        ]
        along = {seed: run.along[IMAGE] for seed, run in group.items() if run.along is not None and len(run.along)}
        spreads = {seed: deviation(values) for seed, values in along.items() if len(values) > 1}
        ranges = [along[seed].max() - along[seed].min() for seed in spreads]
        row = [*self.words(key), str(len(group)), *map(percent, final), collected(map(len, along.values()))]
        row += [percent(mean(spreads.values())), " · ".join(percent(spreads.get(seed)) for seed in self.study.seeds)]
        row += [percent(mean(ranges)), percent(mean(values.mean() for values in along.values()))]
        return [*row, percent(min((values.min() for values in along.values()), default=None))]

    def _roughness(self) -> list[str]:
        sizes = sorted({len(group) for group in self.study.runs.values()} - {0, 1})
        return [ROUGH.format(n, *deviation_factors(n)) for n in sizes]

    def seeds(self) -> Table:
        header = ["method", "recipe", *(f"seed {seed}" for seed in self.study.seeds)]
        rows = [[*self.words(key), *map(percent, self.values(key, IMAGE))] for key in self.keys]
        return table_of("Image AUROC by seed", header, rows, ["In %, of the kept students."])
