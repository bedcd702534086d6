"""What a plan says of the normal images that `calibrate` holds out, and what it refuses. Pure; no torch is imported."""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dskd.config import ConfigError
from dskd.conformal import least_rate, units_needed
from harness.data.catalog import Source
from harness.data.held_out import Division, divide, units
from harness.data.manifest import Look
from harness.text import number_of

if TYPE_CHECKING:
    from harness.grid import Training

Looks = Mapping[tuple[Source, str], Look]


@dataclass(frozen=True)
class _Held:
    """What is held out of a category. `groups`: of all its training images; `rate`: the lowest of the evaluations."""

    training: "Training"
    division: Division
    images: int
    groups: int
    held: int
    rate: float

    @property
    def where(self) -> str:
        data = self.training.spec.data
        return f"calibrate: {self.training.spec.calibrate:g} of {data.name} {data.category}"


def check(trainings: Iterable["Training"], looks: Looks) -> None:
    """Raises ConfigError where nothing is left to train on, or no share could be enough for a threshold."""
    for each in _each(trainings, looks):
        spec = each.training.spec
        counted = f"{number_of(each.images, 'normal image')} ({number_of(each.groups, 'group')})"
        needed = units_needed(each.rate)
        if each.groups <= needed and not each.training.source.limit:  # of a few images it is a trial, and warned of
            other = f"false_alarm_rate: {math.ceil(100 * least_rate(each.held)) / 100:g} or " if each.held else ""
            raise ConfigError(
                f"{each.where}: {counted} are too few for false_alarm_rate: {each.rate:g}, which needs {needed} groups "
                f"beside those to train on; write {other}calibrate: 0"
            )
        if len(each.division.calibration) < spec.calibrate * each.images:
            raise ConfigError(
                f"{each.where}: nothing is left to train on of {counted}; write a smaller share, such as 0.2"
            )
        if spec.method.train.select == "val_normal" and not len(each.division.val):
            raise ConfigError(
                f"{each.where}: nothing is left for train.select: val_normal of {counted}; write a smaller share or "
                "train.select: last"
            )


def remarks(trainings: Iterable["Training"], looks: Looks) -> list[str]:
    """A line for each category and share: what is held out, and whether that is enough for the false alarm rate."""
    lines = []
    for each in _each(trainings, looks):
        count, needed = len(each.division.calibration), units_needed(each.rate)
        counted = f"{count} of {number_of(each.images, 'normal image')}, {number_of(each.held, 'group')}"
        said = f"{each.where} holds out {counted}"
        if not each.training.evaluations:
            said = f"warning: {said}; without test images nothing is evaluated, so there will be no threshold"
        elif each.held < needed:
            share = math.ceil(100 * needed / each.groups) / 100
            said = (
                f"warning: {said}; a false alarm rate of {each.rate:g} needs {needed}, so there will be no threshold "
                f"for it: {least_rate(each.held):.3g} is the lowest that they allow"
                + (f", and calibrate: {share:g} holds out about enough" if share < 1 else "")
            )
        lines.append(said)
    return list(dict.fromkeys(lines))


def _each(trainings: Iterable["Training"], looks: Looks) -> Iterator[_Held]:
    """Once for each category, share, rate and way to choose the epoch: a grid of 10,000 runs has few."""
    known: set[tuple[object, ...]] = set()
    for training in trainings:
        spec = training.spec
        found = looks.get((training.source, spec.data.category)) if spec.calibrate else None
        if found is None:
            continue
        rate = min((each.false_alarm_rate for each in training.evaluations), default=1.0)
        recipe = spec.method.train
        key = (training.source, spec.data.category, spec.calibrate, rate, recipe.select, recipe.holdout)
        if key not in known:
            known.add(key)
            division = divide(found.samples, spec)
            rest: Sequence[int] = [i for i, one in enumerate(found.samples) if one.split == "train"]
            counts = units(found.samples, rest), units(found.samples, division.calibration)
            yield _Held(training, division, len(rest), *counts, rate)
