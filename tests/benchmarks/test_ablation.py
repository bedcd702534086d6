"""The p values of an ablation's page: from the leaderboard's intervals, and corrected."""

import importlib
from typing import Any

import pytest
from scipy import stats

from harness.leaderboard.table import Cell
from tests.conftest import ROOT


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "checks")
    return importlib.import_module("ablation")


def test_p_values_are_those_of_the_interval_and_holms(script: Any) -> None:
    deviation = 0.02
    cells = {
        name: {
            metric: (Cell(mean, mean - 1.959964 * deviation, mean + 1.959964 * deviation), 9)
            for metric in script.METRICS
        }
        for name, mean in (("one", 0.06), ("two", -0.05), ("three", 0.001))
    }
    single = {name: 2 * stats.norm.sf(abs(mean) / deviation) for name, mean in (("one", 0.06), ("two", 0.05))}
    found = script.adjusted(cells, "image_auroc")
    assert found["one"] == pytest.approx(3 * single["one"], rel=1e-4)
    assert found["two"] == pytest.approx(2 * single["two"], rel=1e-4)
    assert script.p_value(Cell(0.1)) is None  # a single pair has no interval
    assert script.p_value(Cell(0.0, 0.0, 0.0)) is None  # nor a variant that moves nothing
    lines = script.table(cells | {"four": dict.fromkeys(script.METRICS, (Cell(0.2), 1))}).splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == ["| four", "| one", "| three", "| two"]
    assert "| +20.0 | – |" in lines[2]
