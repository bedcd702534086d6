"""Types of defect, from the scores of the test images."""

from pathlib import Path

import pytest
from sklearn.metrics import roc_auc_score

from harness.leaderboard.defects import by_defect
from harness.leaderboard.frame import load
from harness.leaderboard.table import boards
from harness.records import Results
from tests.faults.commands import harness
from tests.leaderboard.test_compare import publish
from tests.leaderboard.test_table import evaluation

NORMAL = [*range(20)]  # scores; the 95 % of them that a found defect is above are 0 to 18
HOLES = {0: [18.5, 30, 40, 50], 1: [5, 30, 40, 50]}  # by seed
CUTS = [2.5, 19.5]


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    results = Results(tmp_path)
    for method in ("dskd", "stfpm"):
        for seed, holes in HOLES.items():
            spec = evaluation(method, "a", seed, 0.8)
            publish(results, spec, 2.0, seed)
            lines = [f"n{i}.png,good,0,{score}" for i, score in enumerate(NORMAL)]
            lines += [f"h{i}.png,hole,1,{score - 30 * (method == 'stfpm')}" for i, score in enumerate(holes)]
            lines += [f"c{i}.png,cut,1,{score}" for i, score in enumerate(CUTS)]
            folder = next(path.parent for path in tmp_path.glob("*/record.json") if path.parent.name == spec.id)
            (folder / "scores.csv").write_text("\n".join(["path,defect,anomalous,score", *lines]))
    return tmp_path


def test_auroc_and_recall_of_each_type(runs: Path) -> None:
    (board,) = boards(load([runs]), metrics=["image_auroc"])
    table = by_defect(board)
    found = {key[1:3]: cells for key, cells in table.rows}
    assert list(found) == [("cut", "dskd"), ("cut", "stfpm"), ("hole", "dskd"), ("hole", "stfpm")]  # the best first
    cells = found["hole", "dskd"]
    expected = [roc_auc_score([0] * 20 + [1] * 4, NORMAL + holes) for holes in HOLES.values()]
    assert cells["image_auroc"].value == pytest.approx(sum(expected) / 2)
    assert cells["recall"].value == pytest.approx((1 + 3 / 4) / 2)  # 18.5 is above 19 of 20, 5 is not
    assert cells["images"].value == 4
    assert cells["recall"].low < cells["recall"].value < cells["recall"].high
    assert found["cut", "dskd"]["recall"].value == 0.5
    assert found["hole", "stfpm"]["recall"].value == pytest.approx(0.25)


def test_by_defect_prints_the_table_of_types(runs: Path) -> None:
    done = harness("leaderboard", runs, "--by", "method,defect", "--format", "markdown")
    assert done.code == 0, done.err
    assert "| dataset | defect | method | image AUROC | recall at 5 % false alarms | images |" in done.out
    assert "| set | hole | dskd |" in done.out
    assert done.out == harness("leaderboard", runs, "--by", "method", "--table", "defects", "--format", "markdown").out
