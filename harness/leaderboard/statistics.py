"""Statistics over seeds, categories and images, as pure functions of arrays; nothing here knows records or tables.

Shares stay shares (0 to 1). Every random draw comes from a stream that the caller names, so equal input gives equal
numbers. Sources: docs/leaderboard.md.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import special  # scipy.stats takes most of a second to import: only what needs it does

DRAWS = 10_000  # of a bootstrap
LEAST_CATEGORIES = 6  # below it no outcome of a two-sided Wilcoxon test over categories reaches 5 %
STEADY_SEEDS = 5  # below it an interval over seeds is rough

Interval = tuple[float, float]


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


def stratified_interval(strata: Sequence[np.ndarray]) -> Interval | None:
    """The 95 % interval of the mean over strata (categories) of each one's mean over its (n,) values; None where no
    stratum has two. Variances are each stratum's own (the mean of the others' for one of a single value), degrees of
    freedom by Welch and Satterthwaite: Student's t for one stratum.
    """
    repeated = [values for values in strata if len(values) > 1]
    if not repeated:
        return None
    variances = [float(np.var(values, ddof=1)) for values in repeated]
    alone = sum(len(values) == 1 for values in strata) * float(np.mean(variances))
    shares = [variance / len(values) for variance, values in zip(variances, repeated, strict=True)]
    weights = sum(share**2 / (len(values) - 1) for share, values in zip(shares, repeated, strict=True))
    freedom = sum(shares) ** 2 / weights if weights else 1.0
    half = float(special.stdtrit(freedom, 0.975)) * (sum(shares) + alone) ** 0.5 / len(strata)
    middle = float(np.mean([np.mean(values) for values in strata]))
    return middle - half, middle + half


def percentile_interval(values: np.ndarray) -> Interval:
    """The 2.5 % and 97.5 % quantiles of (draws,) values: the percentile bootstrap's 95 % interval (Efron, 1979)."""
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


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


def resample(groups: np.ndarray, draws: int, stream: np.random.SeedSequence) -> np.ndarray:
    """(draws, n) float64, rows of sum 1: the share of each item in samples of whole groups, drawn with replacement.

    groups: (n,) labels; items of equal label are drawn together, and as many groups are drawn as there are.
    """
    names, place = np.unique(groups, return_inverse=True)
    generator = np.random.default_rng(stream)
    counts = generator.multinomial(len(names), np.full(len(names), 1 / len(names)), draws)[:, place]
    return counts / counts.sum(axis=1, keepdims=True)


def resample_classes(
    normal: np.ndarray, anomalous: np.ndarray, draws: int, streams: Sequence[np.random.SeedSequence]
) -> tuple[np.ndarray, np.ndarray]:
    """As `resample`, of normal (N,) and anomalous (A,) images by their groups: (draws, N) and (draws, A). Groups of
    normal images, of anomalous ones and of both are drawn apart, so that neither class is ever without an image.

    streams: one for each of the three.
    """
    both = np.intersect1d(normal, anomalous)
    drawn = []
    for names, stream in zip((np.setdiff1d(normal, both), np.setdiff1d(anomalous, both), both), streams, strict=True):
        n = max(len(names), 1)
        counts = np.random.default_rng(stream).multinomial(len(names), np.full(n, 1 / n), draws)
        drawn.append(dict(zip(names, counts.T, strict=False)))
    times = drawn[0] | drawn[1] | drawn[2]
    counts = (np.stack([times[name] for name in groups], axis=1) for groups in (normal, anomalous))
    first, second = (each / each.sum(axis=1, keepdims=True) for each in counts)
    return first, second


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


def caution(seeds: int, categories: int) -> list[str]:
    """What so few seeds or categories cannot say, one line each; empty where there are enough."""
    lines = []
    if seeds < 2:
        lines.append("one seed: no interval over seeds, and no telling a method's lead from luck")
    elif seeds < STEADY_SEEDS:
        low, high, _ = deviation_factors(seeds)
        lines.append(
            f"{seeds} seeds: a standard deviation of so few is known to {low:.2f} to {high:.2f} times its value only, "
            "and a bootstrap over them is rather too narrow; "
            f"{STEADY_SEEDS} or more say more"
        )
    if categories < LEAST_CATEGORIES:
        lines.append(
            f"{categories} {'category' if categories == 1 else 'categories'}: no test over categories below "
            f"{LEAST_CATEGORIES}"
        )
    return lines
