"""Which normal images are trained on, which choose the epoch, and which make thresholds: pure, the same everywhere.

Images of one group show one object and always stay together.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from harness.data.catalog import Sample
from harness.spec import TrainSpec

FOR_EPOCH, FOR_THRESHOLDS, FOR_FOLDS = 0, 1, 2  # seeds: a training may hold out for both, by two draws


@dataclass(frozen=True)
class Division:
    """Positions of normal images among the samples of a category: to train on, to select the epoch by (`select:
    val_normal`), and for thresholds alone.
    """

    train: np.ndarray
    val: np.ndarray
    calibration: np.ndarray


def unit_of(sample: Sample) -> str:
    """Its group; an image that has none is a group of its own."""
    return sample.group or sample.path


def units(samples: Sequence[Sample], positions: np.ndarray) -> int:
    """How many groups these images are of."""
    return len({unit_of(samples[i]) for i in positions})


def divide(samples: Sequence[Sample], spec: TrainSpec) -> Division:
    """Those for thresholds are taken out first, so that nothing that a training does has seen them."""
    train = _positions(samples, "train")
    calibration = train[:0]
    if spec.held_out_share:
        train, calibration = hold_out(samples, train, spec.held_out_share, FOR_THRESHOLDS)
    return _divided(samples, train, calibration, spec)


def divide_by_fold(samples: Sequence[Sample], spec: TrainSpec) -> list[Division]:
    """For each further training of `calibrate: {folds: K}`: its fold is for thresholds, and the rest is divided as if
    there were no other images. The folds hold each image of the training split once, whole groups together, and are
    drawn by a fixed seed: each group goes to the fold with the fewest images so far. With fewer groups than folds some
    are empty.
    """
    train = _positions(samples, "train")
    groups = np.array([unit_of(samples[i]) for i in train])
    known, sizes = np.unique(groups, return_counts=True)
    counts, fold_of = [0] * spec.folds, np.zeros(len(known), np.int64)
    for group in np.random.default_rng(FOR_FOLDS).permutation(len(known)):
        fold_of[group] = counts.index(min(counts))
        counts[fold_of[group]] += int(sizes[group])
    own = fold_of[np.searchsorted(known, groups)]
    return [_divided(samples, train[own != fold], train[own == fold], spec) for fold in range(spec.folds)]


def _positions(samples: Sequence[Sample], split: str) -> np.ndarray:
    return np.array([i for i, one in enumerate(samples) if one.split == split], np.int64)


def _divided(samples: Sequence[Sample], train: np.ndarray, calibration: np.ndarray, spec: TrainSpec) -> Division:
    """`train`: positions to train on and, unless the data set brings validation normals, to select the epoch by."""
    recipe, val = spec.method.train, _positions(samples, "val")
    if recipe.select == "last":
        return Division(train, val[:0], calibration)
    if not len(val):
        train, val = hold_out(samples, train, recipe.holdout)
    return Division(train, val, calibration)


def hold_out(
    samples: Sequence[Sample], train: np.ndarray, share: float, seed: int = FOR_EPOCH
) -> tuple[np.ndarray, np.ndarray]:
    """Split the training positions into those to train on and held-out normals, whole groups together; one group at
    least is left to train on.

    Drawn by a fixed seed, so that all runs of a category hold out the same images. Where the data set brings validation
    normals of its own (MVTec 3D-AD) there is no need for this.
    """
    draw = np.random.default_rng(seed)
    groups = np.array([unit_of(samples[i]) for i in train])
    known, sizes = np.unique(groups, return_counts=True)
    size_of = dict(zip(known, sizes, strict=True))
    names = draw.permutation(known)
    held: set[str] = set()
    count = 0
    for name in names:
        if count >= share * len(train) or len(held) + 1 == len(names):
            break
        held.add(name)
        count += int(size_of[name])
    out = np.isin(groups, list(held))
    return train[~out], train[out]
