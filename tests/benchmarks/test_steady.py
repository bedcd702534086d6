"""Variances pooled over categories, and the F interval of their ratio."""

import importlib

import numpy as np
import pytest
from scipy import stats

from tests.conftest import ROOT


def test_the_interval_covers_the_true_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks" / "checks"))
    steady = importlib.import_module("steady")
    draw = np.random.default_rng(0)
    one = steady.pooled([np.array([1.0, 2.0, 3.0]), np.array([5.0, 5.0])])
    assert (one.variance, one.freedom) == (pytest.approx(2 / 3), 3)
    first, second = (draw.normal(0, scale, (400, 5, 5)) + np.arange(5)[:, None] for scale in (2, 1))
    hits = 0
    for a, b in zip(first, second, strict=True):
        ratio, low, high = steady.pooled(list(a)).over(steady.pooled(list(b)))
        assert low < ratio < high
        hits += low <= 4 <= high
    assert stats.binomtest(hits, 400, 0.95).pvalue > 0.01
