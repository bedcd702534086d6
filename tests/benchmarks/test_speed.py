"""The speed report: its statistics against SciPy, and a table of what there is."""

import importlib
from types import ModuleType
from typing import Any

import pytest
from scipy import stats

from tests.conftest import ROOT


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a script of benchmarks/speed as it sees itself: its folder first on the path."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks" / "speed")

    def load(name: str) -> ModuleType:
        return importlib.import_module(name)

    return load


def run_of(side: str, seed: int, wall_s: float, auroc: float) -> dict[str, Any]:
    setting = {"images": 64, "epochs": 2, "size": 64, "batch": 32, "weights": "random"}
    values = {"image_auroc": auroc, "pixel_auroc": auroc / 2}
    return {"side": side, "seed": seed, "wall_s": wall_s, "setting": setting, **values}


RUNS = [
    *(
        run_of("harness", seed, wall, auroc)
        for seed, wall, auroc in ((0, 10, 0.8), (1, 20, 0.7), (2, 30, 0.9), (3, 1, 0))
    ),
    *(run_of("anomalib 32-true", seed, 60, auroc) for seed, auroc in ((2, 0.85), (0, 0.82), (1, 0.6))),
]


def test_peers_are_compared_seed_by_seed(script):
    found = script("peers").summary(RUNS)
    assert found["ratio"] == {"anomalib 32-true": 3}  # the median of 6, 3 and 2; seed 3 has no pair
    assert found["median_s"] == {"harness": 15, "anomalib 32-true": 60}
    mean, half = found["image_auroc_difference"]["anomalib 32-true"]
    interval = stats.ttest_rel([0.8, 0.7, 0.9], [0.82, 0.6, 0.85]).confidence_interval()
    assert (mean - half, mean + half) == pytest.approx(tuple(interval))


def test_the_report_shows_what_was_measured(script):
    report = script("report")
    training = {"overhead": 0.0123, "machine": "a machine"}
    peers = {"runs": RUNS, "machine": "a machine", **script("peers").summary(RUNS)}
    rows = report.targets({"peers": peers, "compiled": training})
    assert rows[0] == (
        "STFPM end to end, 64x64, 64 images, 2 epochs, against anomalib 32-true (its default)",
        "≥ 6",
        "3.0 times",
    )
    assert rows[-1] == ("training loop against a bare compiled loop", "≤ 3 %", "+1.2%")
    rates = {"rates": {"harness": [30.0, 31.2, 90.0]}, "overhead": 0.0}
    inference = {"processes": [{"images_per_s": 80.2, "share_of_matrix_rate": 0.5}]}
    rows = {row[0]: row[1:] for row in report.targets({"dskd": rates, "inference": inference})}
    assert rows["dskd training, resnet18, 256x256"] == ("≥ 2500 on a GPU", "31 images/s")
    assert rows["stfpm inference, resnet18, 256x256"] == ("≥ 15000 on a GPU", "80 images/s, 50% of the matrix rate")
    page = "\n".join(report.lines({"compiled": training}))
    assert "| training loop against a bare compiled loop | ≤ 3 % | +1.2% |" in page
    assert "benchmarks/speed/training.py --compile" in page
