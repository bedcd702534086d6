"""What a plan says of the normal images that `calibrate` makes thresholds from, and what it refuses. Pure; no torch is
imported.
"""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dskd.config import ConfigError, require, to_mapping
from dskd.conformal import least_rate, units_needed
from harness.data.catalog import Source
from harness.data.held_out import Division, divide, divide_by_fold, units
from harness.data.manifest import Look
from harness.naming import as_text
from harness.text import number_of

if TYPE_CHECKING:
    from harness.grid import Training

Looks = Mapping[tuple[Source, str], Look]


@dataclass(frozen=True)
class _Held:
    """What is held out of a category, by each training that thresholds are made with: one, or one a fold.

    Attributes:
        images, groups: of all its training images; held, held_groups: of those that thresholds are made from.
        rate: the lowest of the evaluations.
    """

    training: "Training"
    divisions: list[Division]
    images: int
    groups: int
    held: int
    held_groups: int
    rate: float

    @property
    def where(self) -> str:
        data = self.training.spec.data
        return f"calibrate: {as_text(to_mapping(self.training.spec.calibrate))} of {data.name} {data.category}"

    @property
    def counted(self) -> str:
        return f"{number_of(self.images, 'normal image')} ({number_of(self.groups, 'group')})"


def check(trainings: Iterable["Training"], looks: Looks) -> None:
    """Raises ConfigError where nothing is left to train on, where no share could be enough for a threshold, and for
    trainings without anything to make a threshold for.
    """
    for each in _each(trainings, looks):
        spec, counted, needed = each.training.spec, each.counted, units_needed(each.rate)
        if spec.folds:
            _check_folds(each)
        is_enough = each.groups > needed if spec.held_out_share else each.groups >= needed
        if not is_enough and not each.training.source.limit:  # of a few images it is a trial, and warned of
            lowest = math.ceil(100 * least_rate(each.held_groups)) / 100
            other = f"false_alarm_rate: {lowest:g} or " if each.held_groups else ""
            beside = " beside those to train on" if spec.held_out_share else ""
            raise ConfigError(
                f"{each.where}: {counted} are too few for false_alarm_rate: {each.rate:g}, which needs {needed} "
                f"groups{beside}; write {other}calibrate: 0"
            )
        if each.held < spec.held_out_share * each.images:
            raise ConfigError(
                f"{each.where}: nothing is left to train on of {counted}; write a smaller share, such as 0.2"
            )
        if spec.method.train.select == "val_normal" and not all(len(one.val) for one in each.divisions):
            other = "" if spec.folds else "a smaller share or "
            raise ConfigError(
                f"{each.where}: nothing is left for train.select: val_normal of {counted}; write {other}"
                "train.select: last"
            )


def _check_folds(each: _Held) -> None:
    fewer = f"{{folds: {each.groups}}}" if each.groups > 1 else "0"
    require(
        each.training.spec.folds <= each.groups,
        f"{each.where}: {each.counted} have no group for each fold; write calibrate: {fewer}",
    )
    require(
        bool(each.training.evaluations),
        f"{each.where}: without test images nothing is evaluated, so there will be no threshold; write calibrate: 0",
    )


def remarks(trainings: Iterable["Training"], looks: Looks) -> list[str]:
    """A line for each category and share: what is held out, and whether that is enough for the false alarm rate."""
    lines = []
    for each in _each(trainings, looks):
        folds, needed = each.training.spec.folds, units_needed(each.rate)
        counted = f"{each.held} of {number_of(each.images, 'normal image')}, {number_of(each.held_groups, 'group')}"
        said = f"{each.where} holds out {counted}"
        if folds:
            said = f"{each.where} trains {folds} times more, each time without another fold of {each.counted}"
        if not each.training.evaluations:
            said = f"warning: {said}; without test images nothing is evaluated, so there will be no threshold"
        elif each.held_groups < needed:
            share = math.ceil(100 * needed / each.groups) / 100
            said = (
                f"warning: {said}; a false alarm rate of {each.rate:g} needs {needed}, so there will be no threshold "
                f"for it: {least_rate(each.held_groups):.3g} is the lowest that they allow"
                + (f", and calibrate: {share:g} holds out about enough" if share < 1 and not folds else "")
            )
        lines.append(said)
    return list(dict.fromkeys(lines))


def _each(trainings: Iterable["Training"], looks: Looks) -> Iterator[_Held]:
    """Once for each category, share, rate and way to choose the epoch: a grid of 10,000 runs has few."""
    known: set[tuple[object, ...]] = set()
    for training in trainings:
        spec = training.spec
        found = looks.get((training.source, spec.data.category)) if spec.calibrate else None  # `Folds` are true
        if found is None:
            continue
        rate = min((each.false_alarm_rate for each in training.evaluations), default=1.0)
        recipe = spec.method.train
        key = (training.source, spec.data.category, spec.calibrate, rate, recipe.select, recipe.holdout)
        if key not in known:
            known.add(key)
            divisions = divide_by_fold(found.samples, spec) if spec.folds else [divide(found.samples, spec)]
            everything = np.array([i for i, one in enumerate(found.samples) if one.split == "train"])
            counts = (
                count
                for some in (everything, np.concatenate([one.calibration for one in divisions]))
                for count in (len(some), units(found.samples, some))
            )
            yield _Held(training, divisions, *counts, rate)
