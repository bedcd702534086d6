"""Statistics over seeds, categories and images, as pure functions of arrays; nothing here knows records or tables.

Shares stay shares (0 to 1). Every random draw comes from a stream that the caller names, so equal input gives equal
numbers. Sources: docs/leaderboard.md.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special  # scipy.stats takes most of a second to import: only what needs it does

from harness.resampling import DRAWS, Interval, percentile_interval, resample, resample_classes

LEAST_CATEGORIES = 6  # below it no outcome of a two-sided Wilcoxon test over categories reaches 5 %
STEADY_SEEDS = 5  # below it an interval over seeds is rough


def mean(values: Iterable[float]) -> float | None:
    """None for no values."""
    values = list(values)
    return float(np.mean(values)) if values else None


def deviation(values: Iterable[float]) -> float | None:
    """Standard deviation (n - 1), in the values' unit; None for fewer than two."""
    values = list(values)
    return float(np.std(values, ddof=1)) if len(values) > 1 else None


def deviation_factors(n: int) -> tuple[float, float, float]:
    """How rough a standard deviation of n >= 2 normal values is.

    Factors that make its 95 % interval (chi-square), and the ratio from which on two such deviations differ (F, 5 %).
    """
    low, high = np.sqrt((n - 1) / special.chdtri(n - 1, (0.025, 0.975)))
    return float(low), float(high), float(np.sqrt(special.fdtri(n - 1, n - 1, 0.975)))


def t_interval(values: Sequence[float]) -> Interval | None:
    """The 95 % interval of the mean of n >= 2 values by Student's t; None for fewer."""
    spread = deviation(values)
    if spread is None:
        return None
    n = len(values)
    middle, half = float(np.mean(values)), float(special.stdtrit(n - 1, 0.975)) * spread / n**0.5
    return middle - half, middle + half


def cut(interval: Interval | None) -> Interval | None:
    """The interval of a share, within 0 and 1."""
    return None if interval is None else (max(0.0, interval[0]), min(1.0, interval[1]))


def stratified_interval(strata: Sequence[np.ndarray]) -> Interval | None:
    """The 95 % interval of the mean over strata (categories) of each one's mean over its (n,) values; None where no
    stratum has two: Student's t for one stratum, else as `stratified_mean` says.
    """
    found = stratified_mean(strata)
    if found is None:
        return None
    middle, error, freedom = found
    half = float(special.stdtrit(freedom, 0.975)) * error
    return middle - half, middle + half


def stratified_mean(strata: Sequence[np.ndarray]) -> tuple[float, float, float] | None:
    """The mean over strata of each one's mean, its standard error and its degrees of freedom; None where no stratum has
    two values. Variances are each stratum's own (the mean of the others' for one of a single value), degrees of freedom
    by Welch and Satterthwaite.
    """
    repeated = [values for values in strata if len(values) > 1]
    if not repeated:
        return None
    variances = [float(np.var(values, ddof=1)) for values in repeated]
    alone = sum(len(values) == 1 for values in strata) * float(np.mean(variances))
    shares = [variance / len(values) for variance, values in zip(variances, repeated, strict=True)]
    weights = sum(share**2 / (len(values) - 1) for share, values in zip(shares, repeated, strict=True))
    freedom = sum(shares) ** 2 / weights if weights else 1.0
    return float(np.mean([np.mean(values) for values in strata])), (sum(shares) + alone) ** 0.5 / len(strata), freedom


def interquartile_mean(values: np.ndarray, axis: int = -1) -> np.ndarray:
    """The mean of the middle half along an axis: a quarter of the values (rounded down) is cut off at each end."""
    from scipy import stats

    return stats.trim_mean(values, 0.25, axis=axis)


def bootstrap_over_seeds(strata: Sequence[np.ndarray], draws: int, stream: np.random.SeedSequence) -> np.ndarray:
    """(draws, total) resamples of runs: within each stratum (a category) its (n,) seeds are drawn with replacement.

    A stratum with one seed stays as it is. The stratified bootstrap of Agarwal et al. (2021), holes allowed.
    """
    generator = np.random.default_rng(stream)
    return np.concatenate([values[generator.integers(len(values), size=(draws, len(values)))] for values in strata], 1)


def comparisons(normal: np.ndarray, anomalous: np.ndarray) -> np.ndarray:
    """(N, A) float64 of (N,) and (A,) scores: 1 where the anomalous one is higher, 0.5 where they tie, else 0.

    Its mean is the AUROC (Mann-Whitney).
    """
    return (anomalous > normal[:, None]) + 0.5 * (anomalous == normal[:, None])


def resampled_auroc(pairs: np.ndarray, normal_shares: np.ndarray, anomalous_shares: np.ndarray) -> np.ndarray:
    """(draws,) AUROC in [0, 1] of each resample, ties half: from (N, A) `comparisons`, (draws, N) and (draws, A)."""
    return np.einsum("da,da->d", normal_shares @ pairs, anomalous_shares)


def resampled_difference(first: np.ndarray, second: np.ndarray, seed_shares: np.ndarray) -> np.ndarray:
    """(draws,) differences of means over seeds: from two (draws, S), paired in draw and seed, and (draws, S) shares."""
    return ((first - second) * seed_shares).sum(axis=1)


def probability_of_improvement(
    categories: Sequence[tuple[np.ndarray, np.ndarray]], draws: int = DRAWS
) -> tuple[float, Interval | None]:
    """How often a run of the first method is above one of the second: mean over categories of the share of pairs of
    seeds, a tie counting half (Agarwal et al., 2021), and its bootstrap interval over seeds within categories; None
    for one seed everywhere.

    categories: per category the (m,) and (n,) values over seeds of either method.
    """
    total, middle = np.zeros(draws), []
    for (first, second), stream in zip(categories, np.random.SeedSequence(0).spawn(len(categories)), strict=True):
        pairs = comparisons(second, first)
        middle.append(pairs.mean())
        shares = (resample(np.arange(n), draws, each) for n, each in zip(pairs.shape, stream.spawn(2), strict=True))
        total += resampled_auroc(pairs, *shares)
    alone = all(len(values) < 2 for pair in categories for values in pair)
    return float(np.mean(middle)), None if alone else percentile_interval(total / len(categories))


@dataclass(frozen=True)
class Difference:
    """First minus second, paired.

    Attributes:
        interval: 95 %; None where there is nothing to tell: a single seed without scores by image.
        over: what the interval is over, "images × seeds", "groups × seeds", "seeds" or "".
        spread: standard deviation (n - 1) of the seeds' differences, of a single category.
        above: share of a bootstrap's draws above 0.
    """

    mean: float
    interval: Interval | None
    over: str
    spread: float | None = None
    above: float | None = None

    @property
    def sign(self) -> int:
        """1 or -1 where the interval excludes 0, else 0."""
        low, high = self.interval or (0.0, 0.0)
        return int(low > 0) - int(high < 0)


@dataclass(frozen=True)
class Pair:
    """One category, seed by seed of both methods: (S,) values, and where they are there the scores of the same test
    images: (S, N) of normal and (S, A) of anomalous ones. `groups`: of these images, (N,) and (A,) labels; those of
    equal label show one object. None where every image shows another one, as far as is known.
    """

    first: np.ndarray
    second: np.ndarray
    scores: tuple[tuple[np.ndarray, np.ndarray], tuple[np.ndarray, np.ndarray]] | None = None
    groups: tuple[np.ndarray, np.ndarray] | None = None


def paired_difference(categories: Sequence[Pair], draws: int = DRAWS) -> Difference:
    """The mean over categories of the mean over paired seeds of first minus second, with its interval.

    Where all categories have scores by image it is a bootstrap: each draw takes test images (normal and anomalous
    apart, whole groups together, the same for both methods and all seeds) and seeds anew, and the values are image
    AUROCs. Else it is
    `stratified_interval` over seeds: a bootstrap of three seeds would be far too narrow.
    """
    differences = [pair.first - pair.second for pair in categories]
    middle = float(np.mean([np.mean(values) for values in differences]))
    if not all(pair.scores for pair in categories):
        interval = stratified_interval(differences)
        return Difference(middle, interval, "seeds" if interval else "")
    total = np.zeros(draws)
    for pair, stream in zip(categories, np.random.SeedSequence(0).spawn(len(categories)), strict=True):
        (normal, anomalous), _ = pair.scores or ((), ())
        of_normal, of_anomalous, of_seeds, of_both = stream.spawn(4)
        groups = pair.groups or np.split(np.arange(normal.shape[1] + anomalous.shape[1]), [normal.shape[1]])
        images = resample_classes(*groups, draws, (of_normal, of_anomalous, of_both))
        drawn = (
            np.stack([resampled_auroc(comparisons(*seed), *images) for seed in zip(*scores, strict=True)], axis=1)
            for scores in pair.scores or ()
        )
        total += resampled_difference(*drawn, resample(np.arange(len(pair.first)), draws, of_seeds))
    over = "groups × seeds" if any(pair.groups for pair in categories) else "images × seeds"
    return Difference(middle, percentile_interval(total / len(categories)), over)


@dataclass(frozen=True)
class SignedRanks:
    """Two-sided Wilcoxon test over categories. `effect`: matched-pairs rank-biserial correlation, -1 to 1, above 0
    where the first method is ahead.
    """

    p: float
    effect: float
    categories: int


def wilcoxon(first: np.ndarray, second: np.ndarray) -> SignedRanks | None:
    """Of (C,) values paired by category, seeds averaged first; None below LEAST_CATEGORIES. Equal pairs are left out,
    as Wilcoxon did; p is exact up to 50 categories without ties.
    """
    from scipy import stats

    n, difference = len(first), first - second
    if n < LEAST_CATEGORIES:
        return None
    difference = difference[difference != 0]
    if not len(difference):
        return SignedRanks(1.0, 0.0, n)
    ranks = stats.rankdata(np.abs(difference))
    effect = float((ranks * np.sign(difference)).sum() / ranks.sum())
    return SignedRanks(float(stats.wilcoxon(difference).pvalue), effect, n)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values corrected for their number by Holm's step-down method (1979): at most 1, in the order given."""
    order = np.argsort(p_values)
    n = len(order)
    stepped = np.maximum.accumulate(np.asarray(p_values, float)[order] * (n - np.arange(n)))
    corrected = np.empty(n)
    corrected[order] = np.minimum(stepped, 1)
    return [float(p) for p in corrected]


def average_ranks(values: np.ndarray) -> np.ndarray:
    """(M,) mean rank over categories of (M, C) values, 1 being the highest; ties share their ranks' mean."""
    from scipy import stats

    return stats.rankdata(-values, axis=0).mean(axis=1)


def critical_difference(methods: int, categories: int) -> float:
    """From which difference of average ranks on two of several methods differ at 5 % (Nemenyi; Demšar, 2006)."""
    from scipy import stats

    q = float(stats.studentized_range.ppf(0.95, methods, np.inf)) / 2**0.5
    return q * (methods * (methods + 1) / (6 * categories)) ** 0.5


def cliques(ranks: np.ndarray, difference: float) -> list[tuple[int, ...]]:
    """The bars of a critical-difference diagram: positions in `ranks` of the largest groups that lie within
    `difference` of each other, best first. A method that differs from all others is a group of its own.
    """
    order = [int(place) for place in np.argsort(ranks, kind="stable")]
    groups: list[tuple[int, ...]] = []
    for start, first in enumerate(order):
        group = tuple(place for place in order[start:] if ranks[place] - ranks[first] < difference)
        if not groups or group[-1] not in groups[-1]:
            groups.append(group)
    return groups
