"""The p values of an ablation's page: from the leaderboard's intervals, and corrected."""

import importlib
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

from harness.leaderboard.frame import load
from harness.leaderboard.table import Cell, boards
from tests.conftest import ROOT
from tests.leaderboard.synthetic import write_results


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "checks")
    return importlib.import_module("ablation")


def test_p_values_are_those_of_the_interval_and_holms(script: Any) -> None:
    deviation = 0.02

    def of(mean: float) -> Any:
        cell = Cell(mean, mean - 1.959964 * deviation, mean + 1.959964 * deviation)
        return script.Compared(cell, 9, script.p_value(cell))

    cells = {
        name: dict.fromkeys(script.METRICS, of(mean))
        for name, mean in (("one", 0.06), ("two", -0.05), ("three", 0.001))
    }
    single = {name: 2 * stats.norm.sf(abs(mean) / deviation) for name, mean in (("one", 0.06), ("two", 0.05))}
    found = script.adjusted(cells, "image_auroc")
    assert found["one"] == pytest.approx(3 * single["one"], rel=1e-4)
    assert found["two"] == pytest.approx(2 * single["two"], rel=1e-4)
    assert script.p_value(Cell(0.1)) is None  # a single pair has no interval
    assert script.p_value(Cell(0.0, 0.0, 0.0)) is None  # nor a variant that moves nothing
    lines = script.table(cells | {"four": dict.fromkeys(script.METRICS, script.Compared(Cell(0.2), 1, None))})
    assert [line.split(" | ")[0] for line in lines.splitlines()[2:]] == ["| four", "| one", "| three", "| two"]
    assert "| +20.0 | – |" in lines


def test_over_seeds_it_is_the_paired_t_test(script: Any, tmp_path: Path) -> None:
    results = write_results(tmp_path / "runs", ("dskd", "stfpm"), ("cloth",))
    values: dict[str, list[float]] = {}
    evaluations = [each for each in results if each.kind == "evaluate"]
    for record in sorted(evaluations, key=lambda each: each.spec["train"]["seed"]):
        values.setdefault(record.spec["train"]["method"]["name"], []).append(record.result["pixel_auroc"])
    (board,) = boards(load([tmp_path / "runs"]), metrics=tuple(script.METRICS))
    found = script.compared(board, "dskd")["stfpm"]["pixel_auroc"]
    assert found.pairs == 3
    assert found.p == pytest.approx(stats.ttest_rel(values["dskd"], values["stfpm"]).pvalue)
