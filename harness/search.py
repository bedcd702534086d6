"""Search for a recipe under one budget: successive halving (Jamieson & Talwalkar, 2016) over entries of a grid. Pure.

A search file is a grid file with a section `search:`. Each of its methods gets the same number of trials: the method as
the file has it, then settings drawn from `space` by a Sobol sequence, the same draws for every method. A rung is an
ordinary grid of the trials that are left; the best of them go on to the next one, which is `keep` times as long and
trains them anew, since a falling rate depends on the length. All that is read is the records of the rungs.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import stdev
from typing import Any

import numpy as np
from scipy.stats import qmc

from dskd.config import ConfigError, flat, from_mapping, quoted, require, suggest, to_mapping
from dskd.methods import get_method
from harness.gridfile import METHOD_KEYS, Settings, require_mapping
from harness.spec import EvaluateSpec

LENGTH = "train.epochs"  # what the rungs set
WAYS = ("times", "log")
DIGITS = 3  # of a number that is drawn, so that a recipe can be written down


@dataclass(frozen=True)
class Search:
    """The section `search:` of a search file.

    Attributes:
        trials: of each method, in the first rung.
        rungs: how often the trials are compared.
        keep: one in so many goes on to the next rung, with so many times the epochs.
        epochs: of the last rung.
        metrics: higher is better; a trial is as good as their mean over metrics, categories and seeds.
        spread: so many standard deviations over seeds are taken off that mean.
        seed: of the draws.
        space: by setting of a method a list of values; `{times: [a, b]}`, the method's own value times a factor from a
            to b; or `{log: [a, b]}`, a number from a to b. Both are drawn evenly on a logarithmic scale.
        report: data sets that the choice is meant for: none of their images may be among those that choose.
    """

    trials: int = 16
    rungs: int = 3
    keep: int = 2
    epochs: int = 8
    metrics: tuple[str, ...] = ("image_auroc", "pixel_auroc")
    spread: float = 0.0
    seed: int = 0
    space: dict[str, Any] = field(default_factory=dict)
    report: list[Any] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name, most in (("trials", 4096), ("rungs", 12), ("keep", 16), ("epochs", 1_000_000)):
            value, least = getattr(self, name), 2 if name == "keep" else 1
            require(least <= value <= most, f"search.{name}: {value} is not possible; write {least} to {most}")
        factor = self.keep ** (self.rungs - 1)
        require(
            self.epochs >= factor,
            f"search.epochs: {self.epochs} in the last of {self.rungs} rungs leaves no whole epoch for the first one; "
            f"write {factor} or more",
        )
        require(
            self.trials >= factor,
            f"search.trials: {self.trials} leaves none for the last of {self.rungs} rungs; write {factor} or more",
        )
        require(0 <= self.spread < math.inf, f"search.spread: {self.spread} is not possible; write 0 or more")
        require(bool(self.metrics), "search.metrics: none is named; write image_auroc, for instance")
        require(
            bool(self.space), "search.space: it is empty; write settings and their values, such as train.ema: [0, 0.9]"
        )
        for key, values in self.space.items():
            _check_axis(key, values)

    def length(self, rung: int) -> int:
        """Epochs of a rung, from 0."""
        return self.epochs // self.keep ** (self.rungs - 1 - rung)

    def size(self, rung: int) -> int:
        """Trials of each method in a rung, from 0."""
        return self.trials // self.keep**rung

    @property
    def criterion(self) -> str:
        """In words."""
        less = f", less {self.spread:g} times the standard deviation over seeds" if self.spread else ""
        return f"mean of {', '.join(self.metrics)} over categories and seeds{less}"

    def merit(self, outcome: "Outcome") -> float:
        """What is compared: the more the better."""
        deviation = outcome.deviation
        return outcome.mean - (0.0 if math.isnan(deviation) else self.spread * deviation)

    def rank(self, outcome: "Outcome", among: Sequence["Outcome"]) -> tuple[bool, float]:
        """Less is better. One whose values are not all there (a run failed) is behind all others."""
        return outcome.count < max(1, *(each.count for each in among)), -self.merit(outcome)


def _check_axis(key: str, values: Any) -> None:
    if key not in METHOD_KEYS:
        raise ConfigError(f"search.space: unknown key {quoted(key)}; {suggest(key, METHOD_KEYS)}")
    require(key != LENGTH, f"search.space: {LENGTH} is set by the rungs; write `epochs` for the last one")
    if isinstance(values, list):
        require(len(values) > 1, f"search.space: {key} has no choice; write two values or more, or one in `defaults`")
        return
    bounds = next(iter(values.values())) if isinstance(values, Mapping) and len(values) == 1 else None
    require(
        bounds is not None
        and set(values) <= set(WAYS)
        and isinstance(bounds, list)
        and len(bounds) == 2
        and all(isinstance(each, (int, float)) and not isinstance(each, bool) for each in bounds)
        and 0 < bounds[0] < bounds[1] < math.inf,
        f"search.space: {key}: {quoted(values)} is not possible; write a list of values, {{times: [0.1, 10]}} or "
        "{log: [0.0001, 0.1]}",
    )


@dataclass(frozen=True)
class Trial:
    """One of the entries that are compared: of which method of the file, its number there, its entry in a grid."""

    method: str
    number: int
    entry: Mapping[str, Any]

    @property
    def label(self) -> str:
        """What records call it."""
        return f"{self.method} trial {self.number}"


@dataclass(frozen=True)
class Outcome:
    """What a trial reached in a rung under one of the file's `evaluate` entries.

    Attributes:
        variant: settings of map and score in which that entry differs from the trial's own.
        values: by seed those of its metrics and categories.
    """

    trial: Trial
    rung: int
    variant: tuple[tuple[str, Any], ...]
    values: tuple[tuple[float, ...], ...]

    @property
    def count(self) -> int:
        return sum(map(len, self.values))

    @property
    def mean(self) -> float:
        """Over all values; minus infinity where there are none."""
        return math.fsum(value for own in self.values for value in own) / self.count if self.count else -math.inf

    @property
    def deviation(self) -> float:
        """The standard deviation over seeds of their means; NaN for less than two seeds."""
        means = [math.fsum(own) / len(own) for own in self.values if own]
        return stdev(means) if len(means) > 1 else math.nan


def parse(document: Mapping[str, Any]) -> tuple[Search, dict[str, Any]]:
    """The section and the rest, which is a grid file. Raises ConfigError."""
    require_mapping(document, "a search file")
    require("search" in document, "`search` is missing; write search: {space: {train.schedule: [constant, cosine]}}")
    search = from_mapping(Search, document["search"], "search")
    rest = {key: value for key, value in document.items() if key != "search"}
    places = [rest.get("axes"), rest.get("defaults"), *_blocks(rest.get("include"))]
    places += [rule.get("set") for rule in _blocks(rest.get("overrides"))]
    for place in places:
        own = flat(place) if isinstance(place, Mapping) else {}
        taken = next((key for key in (LENGTH, *search.space) if key in own), None)
        require(taken is None, f"{taken} is set by `search`; leave it out of axes, defaults, include and overrides")
    return search, rest


def _blocks(value: Any) -> list[Mapping[str, Any]]:
    blocks = value if isinstance(value, list) else [value]
    return [block for block in blocks if isinstance(block, Mapping)]


def trials(search: Search, methods: Any) -> list[Trial]:
    """Those of the first rung: of each method the entry as it is, then the drawn ones.

    Args:
        methods: one entry of the axis `method`, or a list of them, of which each has a label or a name of its own.

    Raises:
        ConfigError: a method that does not exist, `times` for a setting that is no number, or two methods of one name.
    """
    found: list[Trial] = []
    points = _points(
        len(search.space), 4 * search.trials, search.seed
    )  # a space of few values gives some of them twice
    for method in methods if isinstance(methods, list) else [methods]:
        entry = dict(method) if isinstance(method, Mapping) else {"name": method}
        called = str(entry.pop("label", entry.get("name")))
        require(
            called not in {trial.method for trial in found},
            f"axes.method: two entries are called {quoted(called)}; write a label: of its own for each",
        )
        own = flat(to_mapping(get_method(str(entry.get("name")), entry.get("recipe", "own")))) | entry
        drawn: list[Settings] = [{}]
        for point in points:
            settings = _settings(search.space, point, own)
            drawn += [] if settings in drawn or len(drawn) == search.trials else [settings]
        require(
            len(drawn) == search.trials,
            f"search.trials: {search.trials} are more than the {len(drawn)} that `space` gives; write fewer",
        )
        found += [Trial(called, number, entry | settings) for number, settings in enumerate(drawn)]
    return found


def _points(dimensions: int, count: int, seed: int) -> np.ndarray:
    """(count, dimensions) in [0, 1)."""
    return qmc.Sobol(dimensions, seed=seed).random_base2(math.ceil(math.log2(count)))[:count]


def _settings(space: Mapping[str, Any], point: np.ndarray, own: Mapping[str, Any]) -> Settings:
    drawn: Settings = {}
    for (key, values), place in zip(space.items(), point, strict=True):
        if isinstance(values, list):
            drawn[key] = values[int(place * len(values))]
            continue
        ((way, (low, high)),) = values.items()
        factor = own[key] if way == "times" else 1
        require(
            isinstance(factor, (int, float)) and not isinstance(factor, bool) and factor > 0,
            f"search.space: {key}: `times` needs a number above 0 to multiply, not {quoted(factor)}; write log",
        )
        drawn[key] = float(f"{factor * low * (high / low) ** place:.{DIGITS}g}")
    return drawn


def variant_of(evaluation: EvaluateSpec) -> tuple[tuple[str, Any], ...]:
    """Settings of map and score in which an evaluation differs from its training's method."""
    own, here = (
        flat({"map": to_mapping(each.map), "score": each.score}) for each in (evaluation.train.method, evaluation)
    )
    return tuple((key, value) for key, value in here.items() if value != own[key])


def rung_grid(search: Search, rest: Mapping[str, Any], rung: int, left: Sequence[Trial]) -> dict[str, Any]:
    """The grid file of a rung (from 0), as plain data."""
    entries = [{**trial.entry, "label": trial.label, LENGTH: search.length(rung)} for trial in left]
    return {**rest, "name": f"rung-{rung + 1}", "axes": {**rest["axes"], "method": entries}}


def survivors(search: Search, rung: int, outcomes: Sequence[Outcome]) -> list[Trial]:
    """The trials that go on from this rung: of each method the best ones, each by its best variant; of equals the
    first.
    """
    left: list[Trial] = []
    for own in _by_method(outcomes):
        here = [each for each in own if each.rung == rung]
        ranked = sorted(here, key=lambda each: search.rank(each, here))
        numbers = list(dict.fromkeys(each.trial.number for each in ranked))[: search.size(rung + 1)]
        trials = {each.trial.number: each.trial for each in here}
        left += [trials[number] for number in numbers]
    return left


def choices(search: Search, outcomes: Sequence[Outcome]) -> list[Outcome]:
    """Of each method what is chosen: among the trials of its last rung the best in any rung, so that the length is
    chosen too. Methods of which nothing is whole are left out.
    """
    chosen = []
    for own in _by_method(outcomes):
        last = max(each.rung for each in own)
        finalists = {each.trial.number for each in own if each.rung == last}
        here = [each for each in own if each.trial.number in finalists and each.count]
        if here:
            chosen.append(min(here, key=lambda each: search.rank(each, here)))
    return chosen


def _by_method(outcomes: Sequence[Outcome]) -> Iterator[list[Outcome]]:
    for name in dict.fromkeys(each.trial.method for each in outcomes):
        yield [each for each in outcomes if each.trial.method == name]


def chosen_entry(choice: Outcome, search: Search) -> dict[str, Any]:
    """The entry of the axis `method` that stands for a choice."""
    settings = {**choice.trial.entry, **dict(choice.variant), LENGTH: search.length(choice.rung)}
    return {"name": settings.pop("name"), "label": f"{choice.trial.method} tuned", **settings}
