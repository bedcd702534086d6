"""Metrics at a threshold: their direction, wherever one is best, leads or became better; and what is said without."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from harness.leaderboard.compare import compare, read_side, regressions
from harness.leaderboard.figures import figures
from harness.leaderboard.frame import load
from harness.leaderboard.plots import pareto
from harness.leaderboard.render import FORMATS
from harness.leaderboard.report import gather
from harness.leaderboard.sections import NAMES, make_sections
from harness.leaderboard.table import Board, boards
from harness.records import Record, Results
from tests.cli.test_cli import harness
from tests.leaderboard.synthetic import write_results

CATEGORIES = tuple("abcdefg")
FPR = {"dskd": 0.02, "stfpm": 0.10, "reverse_distillation": 0.06}
METRICS = ("fpr_at_threshold", "recall_at_threshold")


def calibrated(folder: Path, moved: float = 0.0, methods: tuple[str, ...] = tuple(FPR)) -> Path:
    """Results in which the lowest false positive rate is dskd's, in every category and seed. `moved`: of its rate."""
    results = write_results(folder, tuple(FPR), CATEGORIES, seeds=3)
    for record in [one for one in results if isinstance(one, Record) and one.kind == "evaluate"]:
        train = record.spec["train"]
        if (method := train["method"]["name"]) in methods:
            rate = FPR[method] + 0.001 * train["seed"] + 0.002 * CATEGORIES.index(train["data"]["category"])
            rate += moved if method == "dskd" else 0
            own: dict[str, Any] = {"threshold": 1.0, "fpr_at_threshold": rate, "recall_at_threshold": 1 - 5 * rate}
            results.publish(replace(record, result=record.result | own | {"degenerate": False}), replace=True)
    return folder


def board_of(folder: Path, *by: str) -> Board:
    (board,) = boards(load([folder]), ("method", "backbone", *by), metrics=METRICS)
    return board


def test_the_lowest_false_positive_rate_leads(tmp_path: Path) -> None:
    board = board_of(calibrated(tmp_path / "runs"))
    (section,) = make_sections([board], NAMES)
    tables = {table.name: table for table in section.tables}
    assert [key[0] for key, _ in tables["scores"].rows] == ["dskd", "reverse_distillation", "stfpm"]
    assert section.verdict.lines[0].startswith("dskd leads on set beyond noise: FPR at threshold 2.7 %, -4.0")
    lines = FORMATS["markdown"]([section]).splitlines()
    assert next(line for line in lines if line.startswith("| dskd")).count("**") == 4  # both metrics, bold
    assert {rival.name for rival in section.contests[0].rivals if rival.is_behind} == {"stfpm", "reverse_distillation"}
    rows = [(key[1], key[2], cells) for key, cells in tables["aggregate"].rows]
    assert [(metric, method, cells["rank"].value) for metric, method, cells in rows[:3]] == [
        ("fpr_at_threshold", "dskd", 1.0),
        ("fpr_at_threshold", "reverse_distillation", 2.0),
        ("fpr_at_threshold", "stfpm", 3.0),
    ]
    worst = {key[1:3]: cells["worst_seed"].value for key, cells in tables["stability"].rows}
    assert worst["fpr_at_threshold", "dskd"] == pytest.approx(0.02 + 0.002 + 0.006)
    assert worst["recall_at_threshold", "dskd"] == pytest.approx(1 - 5 * worst["fpr_at_threshold", "dskd"])
    for name, value in (("differences", "difference"), ("tests", "effect")):
        for key, cells in tables[name].rows:
            ahead = cells[value].sign if name == "differences" else cells[value].value
            assert ahead == (-1 if key[2].startswith("stfpm") else 1), (name, key)


def test_charts_know_the_direction(tmp_path: Path) -> None:
    folder = calibrated(tmp_path / "runs")
    board = board_of(folder)
    (part,) = gather([board], [board_of(folder, "category")])
    assert part.tables["scores"].rows[0][0][0] == "dskd"
    drawn = {
        (one.kind, one.metric): one.chart
        for one in figures(board, {key: key[0] for key in board.parts()}, part.tables["differences"])
    }
    for metric in METRICS:
        assert "dskd 1.00, reverse_distillation 2.00, stfpm 3.00" in drawn["ranks", metric].to_dict()["description"]
    points = pd.DataFrame({"speed": [1.0, 2.0, 3.0], "value": [0.1, 0.3, 0.2]})
    assert list(pareto(points, lower=True)["speed"]) == [1, 3]
    assert list(pareto(points)["speed"]) == [2, 3]


def test_a_comparison_says_that_more_false_alarms_are_worse(tmp_path: Path) -> None:
    folders = calibrated(tmp_path / "before"), calibrated(tmp_path / "after", moved=0.03)
    section, _ = compare(*(read_side(str(folder)) for folder in folders), metrics=METRICS)
    said = section.verdict.lines[0]
    assert "orse beyond noise: dskd resnet18 on set by FPR at threshold (+3.0 points)" in said
    assert "etter" not in said
    assert len(regressions(section.tables[0], -0.5)) == 2
    section, _ = compare(*(read_side(str(folder)) for folder in reversed(folders)), metrics=METRICS)
    assert not regressions(section.tables[0], -0.5)


def test_without_a_threshold_it_is_said_what_to_write(tmp_path: Path) -> None:
    folder = calibrated(tmp_path / "runs" / "made", methods=("dskd",))
    asked = ("leaderboard", folder, "--metric", "image_auroc,recall_at_threshold")
    said = "no threshold, as no normal images were held out for one: write `calibrate: 0.2` in the grid"
    assert said in " ".join(harness(*asked).out.split())
    assert "calibrate: 0.2" not in harness("leaderboard", folder).out
    nobody = calibrated(tmp_path / "nobody", methods=())
    for form in ("markdown", "csv", "json", "latex"):
        harness("leaderboard", nobody, "--metric", "recall_at_threshold,fpr_at_threshold", "--format", form)
    assert said in " ".join(harness("leaderboard", nobody, "--metric", "fpr_at_threshold").out.split())
    records = [one for one in Results(folder) if isinstance(one, Record) and one.kind == "evaluate"]
    with_one, without = (
        next(one for one in records if ("threshold" in one.result) is there) for there in (True, False)
    )
    assert said not in " ".join(harness("show", folder / with_one.id).out.split())
    assert said in " ".join(harness("show", folder / without.id).out.split())
    few = without.result | {"threshold": None, "false_alarm_rate": 0.05, "calibration_groups": 15}
    Results(folder).publish(replace(without, result=few), replace=True)
    assert "which needs 19 groups of normal images: 15 were there for it" in harness("show", folder / without.id).out
