"""Thresholds from normal images alone, and p-values: conformal prediction and conformal risk control.

A threshold is for a false alarm rate: of normal images that are like those that it was made from, so many are above it
in the mean, whatever the model. Images that show one object are no independent evidence, so the units that are counted
are groups of images. Sources: Vovk, Gammerman, Shafer, "Algorithmic Learning in a Random World", 2005 (split
conformal); Angelopoulos, Bates, Fisch, Lei, Schuster, "Conformal Risk Control", ICLR 2024, eq. 4 (shares of pixels);
Lee, Barber, Willett, "Distribution-free inference with hierarchical data", 2023 (groups: each weighs the same, shared
by its images).
No torch is imported here.
"""

import math
from collections.abc import Hashable, Sequence

import numpy as np

_ROUNDING = 1e-9  # of a sum of weights: a rate of .05 is no binary number


def unit_weights(groups: Sequence[Hashable]) -> np.ndarray:
    """Of each image its share of its group: (n,) float64, whose sum is the number of groups.

    Args:
        groups: of each image; one that is a group of its own has a name of its own.
    """
    names, number, size = np.unique(np.array([str(each) for each in groups]), return_inverse=True, return_counts=True)
    return 1 / size[number] if len(names) else np.empty(0)


def least_rate(units: int) -> float:
    """The lowest false alarm rate that so many groups of normal images allow: 1 / (units + 1)."""
    return 1 / (units + 1)


def units_needed(rate: float) -> int:
    """So many groups of normal images have a threshold for this false alarm rate: 1 / rate - 1, rounded up."""
    return math.ceil(1 / rate - 1 - _ROUNDING)


def threshold(values: np.ndarray, weights: np.ndarray, rate: float) -> float | None:
    """The lowest threshold above which at most a share `rate` of what is normal is to be expected; None where there are
    too few groups for the rate (fewer than 1 / rate - 1).

    With scores, one for each image, and images that are groups of their own it is the k-th smallest score,
    k = ⌈(n + 1)(1 - rate)⌉, so that score > threshold exactly where the p-value is at most `rate`. With maps it is the
    lowest λ for which (n R(λ) + 1) / (n + 1) ≤ rate, R(λ) being the mean share of an image's pixels above λ.

    Args:
        values: (n,) scores or (n, H, W) maps of normal images that no training and no choice has seen.
        weights: (n,) of `unit_weights`.
        rate: in (0, 1).
    """
    return thresholds(values, weights, [rate])[0]


def thresholds(values: np.ndarray, weights: np.ndarray, rates: Sequence[float]) -> list[float | None]:
    """`threshold` of each rate, from one sort of the highest values alone: what lies below them fits no rate."""
    units = round(float(weights.sum()))
    budgets = [rate * (units + 1) - 1 + _ROUNDING for rate in rates]  # what may lie above it, in groups
    most = max(budgets, default=-1)
    if most < 0 or not values.size:
        return [None] * len(budgets)
    flat = values.reshape(len(values), -1)
    share = weights / flat.shape[1]
    below = flat.size - min(flat.size, int(most / share.min()) + 2)
    kept = flat >= np.partition(flat, below, axis=None)[below]
    highest, each = flat[kept], np.repeat(share, kept.sum(axis=1))
    order = np.argsort(highest, kind="stable")[::-1]
    ordered, above = highest[order], np.cumsum(each[order])
    # The weight of what is strictly above a value is known at the first of those that equal it.
    first = np.append(True, ordered[1:] != ordered[:-1])
    ordered, above = ordered[first], np.append(0.0, above[:-1])[first]
    return [None if one < 0 else float(ordered[np.flatnonzero(above <= one)[-1]]) for one in budgets]


def p_values(scores: np.ndarray, normal: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """(m,) float64: how rarely a normal image scores so high, p = (1 + #{s_i ≥ s}) / (n + 1), each s_i by its weight.

    Args:
        scores: (m,) of new images; normal: (n,) of normal images that no training and no choice has seen; weights: (n,)
            of `unit_weights`.
    """
    order = np.argsort(normal)[::-1]
    reached = np.append(0.0, np.cumsum(weights[order]))
    found = np.searchsorted(-normal[order], -np.asarray(scores), side="right")  # how many are at least as high
    return np.minimum((1 + reached[found]) / (round(float(weights.sum())) + 1), 1.0)  # a sum of shares may end above
