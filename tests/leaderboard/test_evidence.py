"""The tables behind the scores, over six categories and three methods, against their statistics by hand."""

from pathlib import Path

import numpy as np
import pytest
from scipy import stats

from dskd.config import ConfigError
from harness.leaderboard import evidence
from harness.leaderboard.frame import load
from harness.leaderboard.statistics import critical_difference
from harness.leaderboard.table import Board, Cell, boards
from harness.records import Record, Results
from tests.leaderboard.test_compare import publish
from tests.leaderboard.test_table import evaluation

CATEGORIES = "abcdef"
LEAD = {"dskd": 0.2, "stfpm": 0.02, "reverse_distillation": 0.0}
RECORDED = (0.3, 0.6, 0.9)  # image AUROC of the recorded epochs 50, 90 and 100 of 100


@pytest.fixture
def board(tmp_path: Path) -> Board:
    """dskd is far ahead everywhere; the other two are alike. one of stfpm's trainings recorded epochs."""
    results, rng = Results(tmp_path), np.random.default_rng(0)
    for category in CATEGORIES:
        for seed in range(3):
            for method, lead in LEAD.items():
                results.publish(evaluation(method, category, seed, 0.6 + lead + rng.uniform(0, 0.1)))
    spec = evaluation("stfpm", "a", 0, None).spec["train"]
    training = Record("train", "t" * 16, spec, {}, {}, "2026-01-01T00:00:00+00:00", 1.0)
    results.publish(training)
    lines = [f"{epoch},{value}" for epoch, value in zip((50, 90, 100), RECORDED, strict=True)]
    (results.run_folder(training.id).path / "metrics.csv").write_text("\n".join(["epoch,image_auroc", *lines]))
    (found,) = boards(load([tmp_path]), metrics=["image_auroc"])
    return found


def means(board: Board, method: str) -> np.ndarray:
    lines = board.lines[board.lines["method"] == method]
    return lines.groupby("category")["image_auroc"].mean().to_numpy()


def test_aggregate(board: Board) -> None:
    table = evidence.aggregate(board)
    rows = {key[2]: cells for key, cells in table.rows}
    values = board.lines[board.lines["method"] == "dskd"]["image_auroc"]
    assert rows["dskd"]["iqm"].value == pytest.approx(stats.trim_mean(values, 0.25))
    assert rows["dskd"]["iqm"].low < rows["dskd"]["iqm"].value < rows["dskd"]["iqm"].high
    assert rows["dskd"]["rank"].value == 1
    assert rows["stfpm"]["rank"].value + rows["reverse_distillation"]["rank"].value == 5
    close = {name: cells["alike"].value for name, cells in rows.items()}
    assert set(close["stfpm"]) & set(close["reverse_distillation"])  # no more apart than the critical difference
    assert f"from {critical_difference(3, 6):.2f} on" in table.notes[1]


def test_tests_are_corrected_for_all_pairs(board: Board) -> None:
    rows = {key[2:]: cells for key, cells in evidence.tests(board).rows}
    assert len(rows) == 3
    first = rows["dskd", "stfpm"]
    assert first["p"].value == pytest.approx(stats.wilcoxon(means(board, "dskd"), means(board, "stfpm")).pvalue)
    assert (first["p"].value, first["effect"].value, first["categories"].value) == (2 / 2**6, 1, 6)
    assert first["p_holm"].value == pytest.approx(3 * 2 / 2**6)


def test_differences_are_from_one_row(board: Board) -> None:
    rows = {key[2:]: cells for key, cells in evidence.differences(board, "dskd").rows}
    assert list(rows) == [("dskd", "reverse_distillation"), ("dskd", "stfpm")]
    cells = rows["dskd", "stfpm"]
    assert cells["difference"].value == pytest.approx(float((means(board, "dskd") - means(board, "stfpm")).mean()))
    assert (cells["difference"].sign, cells["pairs"].value, cells["over"].value) == (1, 18, "seeds")
    assert cells["probability"].value == 1
    assert {key[2] for key, _ in evidence.differences(board).rows} == {"dskd"}  # the best
    with pytest.raises(ConfigError, match="--against: 'dskdd' names no row; did you mean 'dskd'"):
        evidence.differences(board, "dskdd")
    with pytest.raises(ConfigError, match="--against: 'resnet18' names several rows"):
        evidence.differences(board, "resnet18")


def test_differences_over_images_where_scores_are_of_the_same_ones(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for seed in range(2):
        publish(results, evaluation("dskd", "a", seed, None), 2.0, seed)
        publish(results, evaluation("stfpm", "a", seed, None), 1.0, seed + 10)
    (board,) = boards(load([tmp_path]), metrics=["image_auroc", "pixel_auroc"])
    rows = {key[1]: cells for key, cells in evidence.differences(board, "dskd").rows}
    assert rows["image_auroc"]["over"].value == "images × seeds"
    assert rows["pixel_auroc"]["over"].value == "seeds"  # records hold no pixel statistics by image
    path = next(tmp_path.glob("*/scores.csv"))
    path.write_text(path.read_text().replace("000.png", "other.png"))
    (key, cells), *_ = evidence.differences(board, "dskd").rows
    assert (key[1], cells["over"].value) == ("image_auroc", "seeds")


def test_images_of_one_group_are_drawn_together(tmp_path: Path) -> None:
    results = Results(tmp_path)
    for seed in range(2):
        publish(results, evaluation("dskd", "a", seed, None), 2.0, seed)
        publish(results, evaluation("stfpm", "a", seed, None), 1.0, seed + 10)

    def difference() -> dict[str, Cell]:
        (board,) = boards(load([tmp_path]), metrics=["image_auroc"])
        return evidence.differences(board, "dskd").rows[0][1]

    apart = difference()
    for path in tmp_path.glob("*/scores.csv"):
        header, *lines = path.read_text().splitlines()
        path.write_text("\n".join([f"{header},group", *(f"{line},{i // 5}" for i, line in enumerate(lines))]) + "\n")
    together = difference()
    assert (apart["over"].value, together["over"].value) == ("images × seeds", "groups × seeds")
    assert together["difference"].value == apart["difference"].value
    assert (together["difference"].low, together["difference"].high) != (
        apart["difference"].low,
        apart["difference"].high,
    )
    for path in tmp_path.glob("*/scores.csv"):  # nothing belongs together
        header, *lines = path.read_text().splitlines()
        path.write_text("\n".join([header, *(line[: line.rindex(",") + 1] for line in lines)]) + "\n")
    assert difference() == apart


def test_stability_of_the_last_quarter(board: Board) -> None:
    rows = {key[2]: cells for key, cells in evidence.stability(board).rows}
    lines = board.lines[board.lines["method"] == "dskd"]
    by_seed = lines.groupby("seed")["image_auroc"].mean()
    assert rows["dskd"]["sd_over_seeds"].value == pytest.approx(by_seed.std())
    assert rows["dskd"]["worst_seed"].value == pytest.approx(by_seed.min())
    assert rows["dskd"]["range_over_epochs"].value is None
    assert rows["stfpm"]["trainings"].value == 1
    assert rows["stfpm"]["range_over_epochs"].value == pytest.approx(0.3)  # of epochs 90 and 100 alone
    assert rows["stfpm"]["sd_over_epochs"].value == pytest.approx(0.3 / 2**0.5)
