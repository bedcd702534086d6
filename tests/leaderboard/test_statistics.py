"""Statistics against scipy, scikit-learn and values of the reference implementations, named beside them."""

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from harness.leaderboard import statistics
from harness.leaderboard.statistics import Pair

# Seeds × categories of two methods. rliable 1.2.0 gives for them what is expected below: aggregate_iqm and
# probability_of_improvement with get_interval_estimates (20,000 and 5,000 repetitions).
FIRST = np.array(
    [
        [0.92, 0.81, 0.75, 0.63, 0.65, 0.52, 0.53, 0.5],
        [0.58, 0.9, 0.82, 0.95, 0.75, 0.8, 0.98, 0.86],
        [0.81, 0.77, 0.77, 0.96, 0.63, 0.9, 0.83, 0.5],
    ]
)
SECOND = np.array(
    [
        [0.69, 0.92, 0.77, 0.51, 0.88, 0.86, 0.92, 0.58],
        [0.54, 0.93, 0.51, 0.77, 0.54, 0.64, 0.74, 0.71],
        [0.7, 0.51, 0.5, 0.56, 0.5, 0.83, 0.76, 0.82],
    ]
)


def test_interquartile_mean_is_rliables() -> None:
    assert statistics.interquartile_mean(FIRST.ravel()) == pytest.approx(0.7708333333333334)
    drawn = statistics.bootstrap_over_seeds(list(FIRST.T), 20_000, np.random.SeedSequence(0))
    assert drawn.shape == (20_000, 24)
    assert all(np.isin(drawn[:, 3 * c : 3 * c + 3], FIRST[:, c]).all() for c in range(8))  # within a category
    interval = statistics.percentile_interval(statistics.interquartile_mean(drawn))
    assert interval == pytest.approx((0.69833, 0.83167), abs=0.003)


def test_probability_of_improvement_is_rliables() -> None:
    value, interval = statistics.probability_of_improvement(list(zip(FIRST.T, SECOND.T, strict=True)))
    assert value == pytest.approx(0.6041666666666667)
    assert interval == pytest.approx((0.4375, 0.7708), abs=0.02)
    assert statistics.probability_of_improvement([(FIRST[:1, 0], SECOND[:1, 0])]) == (1.0, None)


def test_t_interval_is_scipys() -> None:
    values = FIRST[:, 0]
    expected = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert statistics.t_interval(values) == pytest.approx((expected.low, expected.high))
    assert statistics.t_interval([0.5]) is None


def test_t_interval_covers_at_three_seeds() -> None:
    """What makes it the interval of the tables: a percentile bootstrap of three values covers far less."""
    draws = np.random.default_rng(0).normal(0, 1, (2000, 3))
    intervals = [statistics.t_interval(values) for values in draws]
    assert np.mean([low < 0 < high for low, high in intervals]) == pytest.approx(0.95, abs=0.015)


def test_holm_is_statsmodels() -> None:
    """multipletests(…, method="holm") of statsmodels 0.15.0."""
    assert statistics.holm([0.01, 0.04, 0.03, 0.005, 0.8]) == pytest.approx([0.04, 0.09, 0.09, 0.025, 0.8])
    assert statistics.holm([]) == []


def test_wilcoxon_is_scipys_with_the_effect_by_hand() -> None:
    first = np.array([0.9, 0.8, 0.7, 0.95, 0.6, 0.85, 0.7, 0.99])
    second = np.array([0.85, 0.82, 0.61, 0.91, 0.5, 0.79, 0.7, 0.92])
    found = statistics.wilcoxon(first, second)
    # Differences .05 -.02 .09 .04 .10 .06 0 .07: the only negative one has rank 1 of 28 in all.
    assert found.effect == pytest.approx((27 - 1) / 28)
    assert found.p == pytest.approx(stats.wilcoxon(first, second).pvalue)
    assert found.p == pytest.approx(4 / 2**7)  # exact: one of the 2 smallest of 128 outcomes, on either side
    assert statistics.wilcoxon(second, first).effect == -found.effect
    assert statistics.wilcoxon(first, first).p == 1
    assert statistics.wilcoxon(first[:5], second[:5]) is None


def test_ranks_and_critical_difference() -> None:
    """The q of Demšar (2006), table 5a; ties share their mean rank."""
    for methods, q in ((2, 1.960), (3, 2.343), (4, 2.569), (5, 2.728), (10, 3.164)):
        expected = q * (methods * (methods + 1) / (6 * 15)) ** 0.5
        assert statistics.critical_difference(methods, 15) == pytest.approx(expected, rel=1e-3)
    assert statistics.average_ranks(np.array([[0.9, 0.5], [0.8, 0.5], [0.7, 0.6]])).tolist() == [1.75, 2.25, 2.0]
    ranks = np.array([1.2, 3.0, 1.5, 2.6])
    assert statistics.cliques(ranks, 1.2) == [(0, 2), (2, 3), (3, 1)]
    assert statistics.cliques(ranks, 0.1) == [(0,), (2,), (3,), (1,)]
    assert statistics.cliques(ranks, 5) == [(0, 2, 3, 1)]


def scores(rng: np.random.Generator, seeds: int, normal: int, anomalous: int, shift: float) -> tuple:
    return rng.normal(0, 1, (seeds, normal)), rng.normal(shift, 1, (seeds, anomalous))


def aurocs(normal: np.ndarray, anomalous: np.ndarray) -> np.ndarray:
    labels = np.repeat([0, 1], [normal.shape[1], anomalous.shape[1]])
    return np.array([roc_auc_score(labels, np.hstack(each)) for each in zip(normal, anomalous, strict=True)])


def test_paired_difference_over_images_and_seeds() -> None:
    rng = np.random.default_rng(0)
    better, worse = scores(rng, 3, 40, 30, 2.0), scores(rng, 3, 40, 30, 0.5)
    pair = Pair(aurocs(*better), aurocs(*worse), (better, worse))
    found = statistics.paired_difference([pair], 2000)
    assert found.mean == pytest.approx(float((pair.first - pair.second).mean()))
    assert (found.sign, found.over) == (1, "images × seeds")
    assert found.interval[0] < found.mean < found.interval[1]
    backwards = statistics.paired_difference([Pair(pair.second, pair.first, (worse, better))], 2000)
    assert backwards.interval == pytest.approx((-found.interval[1], -found.interval[0]))
    assert backwards.sign == -1
    same = statistics.paired_difference([Pair(pair.first, pair.first, (better, better))], 200)
    assert (same.mean, same.interval, same.sign) == (0, (0, 0), 0)
    # Images are uncertain too: one seed has an interval with scores, and none without.
    one = Pair(pair.first[:1], pair.second[:1], tuple((n[:1], a[:1]) for n, a in (better, worse)))
    assert statistics.paired_difference([one], 2000).interval is not None
    assert statistics.paired_difference([Pair(one.first, one.second)]).interval is None


def test_the_interval_over_images_is_delongs() -> None:
    """One seed: the bootstrap's deviation of an AUROC difference is that of DeLong's formula (1988)."""
    rng = np.random.default_rng(1)
    (n1, a1), (n2, a2) = scores(rng, 1, 80, 120, 1.5), scores(rng, 1, 80, 120, 1.0)
    found = statistics.paired_difference([Pair(aurocs(n1, a1), aurocs(n2, a2), ((n1, a1), (n2, a2)))], 4000)
    wins = statistics.comparisons(n1[0], a1[0]) - statistics.comparisons(n2[0], a2[0])
    deviation = (wins.mean(axis=1).var(ddof=1) / 80 + wins.mean(axis=0).var(ddof=1) / 120) ** 0.5
    assert (found.interval[1] - found.interval[0]) / (2 * 1.96) == pytest.approx(deviation, rel=0.08)


def test_copies_of_an_image_say_nothing_when_they_are_one_group() -> None:
    draw = np.random.default_rng(3)
    scores = tuple((draw.normal(0, 1, (2, 12)), draw.normal(shift, 1, (2, 9))) for shift in (1.5, 1.0))
    copied = tuple((normal.repeat(4, axis=1), anomalous.repeat(4, axis=1)) for normal, anomalous in scores)
    groups = np.arange(12).repeat(4), 12 + np.arange(9).repeat(4)
    values = [aurocs(*side) for side in scores]
    once = statistics.paired_difference([Pair(*values, scores)], 2000)
    grouped = statistics.paired_difference([Pair(*values, copied, groups)], 2000)
    assert grouped.interval == pytest.approx(once.interval, abs=1e-12)
    assert (once.over, grouped.over) == ("images × seeds", "groups × seeds")
    low, high = statistics.paired_difference([Pair(*values, copied)], 2000).interval
    assert high - low < 0.7 * (once.interval[1] - once.interval[0])


def test_the_interval_over_groups_is_that_of_drawing_them_one_by_one() -> None:
    """Brute force, with a group that has images of both classes."""
    draw = np.random.default_rng(4)
    groups = np.array([0, 0, 0, 1, 1, 2, 3, 3, 4, 5]), np.array([3, 3, 6, 6, 6, 7, 8, 9])
    sides = [(draw.normal(0, 1, (1, 10)), draw.normal(shift, 1, (1, 8))) for shift in (1.2, 0.6)]
    values = [aurocs(*side) for side in sides]
    found = statistics.paired_difference([Pair(*values, tuple(sides), groups)], 20_000)
    strata = [[0, 1, 2, 4, 5], [6, 7, 8, 9], [3]]
    drawn = []
    for _ in range(4000):
        chosen = [name for names in strata for name in draw.choice(names, len(names))]
        rows = [np.concatenate([np.flatnonzero(each == name) for name in chosen]) for each in groups]
        first, second = (statistics.comparisons(n[0, rows[0]], a[0, rows[1]]).mean() for n, a in sides)
        drawn.append(first - second)
    assert found.interval == pytest.approx(np.quantile(drawn, (0.025, 0.975)), abs=0.03)


def test_paired_difference_over_seeds_within_categories() -> None:
    pairs = [Pair(*columns) for columns in zip(FIRST.T, SECOND.T, strict=True)]
    found = statistics.paired_difference(pairs)
    assert found.over == "seeds"
    assert found.mean == pytest.approx(float((FIRST - SECOND).mean()))
    assert found.interval == statistics.stratified_interval(list((FIRST - SECOND).T))


def test_stratified_interval_is_students_and_welchs() -> None:
    one, other = FIRST[:, 0], np.append(SECOND[:, 1], 0.3)
    assert statistics.stratified_interval([one]) == pytest.approx(statistics.t_interval(one))
    welch = stats.ttest_ind(one, -other, equal_var=False).confidence_interval(0.95)  # of the sum of both means
    assert statistics.stratified_interval([one, other]) == pytest.approx((welch.low / 2, welch.high / 2))
    assert statistics.stratified_interval([one[:1], other[:1]]) is None
    assert statistics.stratified_interval([one * 0, other * 0]) == (0, 0)
    low, high = statistics.stratified_interval([one, one[:1]])  # as uncertain as one value of the other's variance
    assert high - low == pytest.approx((2 / 2) * 4.302653 * (one.var(ddof=1) * (1 / 3 + 1)) ** 0.5)


def test_stratified_interval_covers_at_three_seeds() -> None:
    draws = np.random.default_rng(0).normal(0, (1.0, 2.0, 0.5, 1.0), (2000, 3, 4))
    intervals = [statistics.stratified_interval(list(values.T)) for values in draws]
    assert np.mean([low < 0 < high for low, high in intervals]) == pytest.approx(0.95, abs=0.02)


def test_caution() -> None:
    assert statistics.caution(5, 6) == []
    assert statistics.caution(1, 6)[0].startswith("one seed: no interval")
    seeds, categories = statistics.caution(3, 1)
    assert "0.52 to 6.28 times" in seeds
    assert categories.startswith("1 category: no test")
