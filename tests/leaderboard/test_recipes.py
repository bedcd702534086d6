"""The comparison of recipes: the bootstrap against sklearn and a plain loop, and a report with holes."""

import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from dskd.config import to_mapping
from dskd.methods import get_method
from harness.leaderboard import recipes, statistics
from harness.leaderboard.recipes_page import Page
from harness.records import Failure, Record, Results
from harness.spec import Data, EvaluateSpec, TrainSpec, Weights

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "recipes.py"
NORMAL, ANOMALOUS = 12, 20


def streams() -> list[np.random.SeedSequence]:
    return np.random.SeedSequence(1).spawn(3)


def test_auroc_of_a_resample_is_sklearns_with_ties() -> None:
    rng = np.random.default_rng(0)
    normal, anomalous = rng.integers(0, 8, 31).astype(float), rng.integers(2, 10, 47).astype(float)
    groups = np.arange(47) // 3  # whole groups of three; normal images one by one
    shares = statistics.resample(np.arange(31), 50, streams()[0]), statistics.resample(groups, 50, streams()[1])
    found = statistics.resampled_auroc(statistics.comparisons(normal, anomalous), *shares)
    for value, weights in zip(found, np.hstack(shares), strict=True):
        labels, scores = np.repeat([0, 1], [31, 47]), np.concatenate([normal, anomalous])
        assert value == pytest.approx(roc_auc_score(labels, scores, sample_weight=weights), abs=1e-12)
    counts = shares[0] * 31
    assert np.allclose(counts, counts.round())  # as many are drawn as there are, with replacement
    assert np.allclose(counts.sum(axis=1), 31)
    assert counts.max() > 1
    assert all(len(np.unique(row[groups == group])) == 1 for row in shares[1] for group in np.unique(groups))


def test_difference_is_that_of_a_plain_loop() -> None:
    rng = np.random.default_rng(0)
    scores = rng.integers(0, 9, (2, 3, 30)).astype(float)  # method, seed, image; the first 10 are normal
    parts = [statistics.resample(np.arange(n), 20, stream) for n, stream in zip((10, 20, 3), streams(), strict=True)]
    aurocs = [
        np.stack(
            [statistics.resampled_auroc(statistics.comparisons(s[:10], s[10:]), *parts[:2]) for s in method], axis=1
        )
        for method in scores
    ]
    found = statistics.resampled_difference(*aurocs, parts[2])
    for draw, value in enumerate(found):
        normal, anomalous, seeds = (
            np.repeat(np.arange(part.shape[1]), (part[draw] * part.shape[1]).round().astype(int)) for part in parts
        )
        images = np.concatenate([normal, 10 + anomalous])
        labels = images >= 10
        means = [np.mean([roc_auc_score(labels, method[seed][images]) for seed in seeds]) for method in scores]
        assert value == pytest.approx(means[0] - means[1], abs=1e-12)


def test_rough_deviations() -> None:
    assert statistics.deviation_factors(3) == pytest.approx((0.5207, 6.2847, 6.2450), abs=1e-4)
    assert statistics.deviation([1.0]) is None


def write(results: Results, method: str, recipe: str, seed: int, shift: float, along: bool = True) -> None:
    """One training and its evaluation; scores are normal, the anomalous ones shifted."""
    config = get_method(method, recipe)
    train = TrainSpec(config, "resnet18", Weights(), Data("set", "a", "m", train_images=9), seed, 64)
    spec = EvaluateSpec(train, config.map, config.score)
    labels = np.arange(NORMAL + ANOMALOUS) >= NORMAL
    scores = np.random.default_rng(seed).standard_normal(len(labels)) + shift * labels
    result = {"image_auroc": roc_auc_score(labels, scores), "pixel_auroc": 0.7 + shift / 100, "aupro_0.30": 0.5}
    result |= {"degenerate": False, "precision": "fp32", "device": "a processor", "threads": 1}
    result |= {"test_normal": NORMAL, "test_anomalous": ANOMALOUS}
    epochs = config.train.epochs
    for each, values in ((train, {"epochs": epochs, "images_per_s": 100.0 + seed}), (spec, result)):
        results.publish(Record(each.kind, each.id, to_mapping(each), values, {}, "2026-01-01T00:00:00+00:00", 1.0))
    lines = [f"{i:02d}.png,x,{int(label)},{score}" for i, (label, score) in enumerate(zip(labels, scores, strict=True))]
    (results.run_folder(spec.id).path / "scores.csv").write_text("\n".join(["path,defect,anomalous,score", *lines]))
    if along:
        lines = [f"{round(share * epochs)},{value}" for share, value in ((0.75, 0.1), (0.9, 0.8), (1.0, 0.84))]
        (results.run_folder(train.id).path / "metrics.csv").write_text("\n".join(["epoch,image_auroc", *lines]))


@pytest.fixture
def results(tmp_path: Path) -> Results:
    """dskd is far ahead of stfpm (own), which is far ahead of stfpm (common); two_students is dskd's equal to the last
    digit; one training failed and one has no metrics along it.
    """
    results = Results(tmp_path / "grid")
    for seed in range(3):
        write(results, "dskd", "own", seed, 9.0)
        write(results, "two_students", "own", seed, 9.0)
        write(results, "stfpm", "own", seed, 1.0, along=seed != 1)
        if seed != 2:
            write(results, "stfpm", "common", seed, 0.0)
    spec = TrainSpec(get_method("stfpm", "common"), "resnet18", Weights(), Data("set", "a", "m"), 2, 64)
    results.fail(Failure("train", spec.id, to_mapping(spec), "diverged", "lost", "", "2026-01-01T00:00:00+00:00", {}))
    return results


def test_equal_is_zero_and_clear_is_clear(results: Results) -> None:
    comparer = recipes.Comparer(recipes.read(results.folder), 500)
    same = comparer.difference("image_auroc", ("dskd", "own"), ("two_students", "own"), [0, 1, 2])
    assert (same.mean, same.spread, *same.interval, same.above) == (0, 0, 0, 0, 0)
    total, architecture, recipe = (
        comparer.difference("image_auroc", *pair, [0, 1])
        for pair in (
            (("dskd", "own"), ("stfpm", "own")),
            (("dskd", "own"), ("stfpm", "common")),
            (("stfpm", "common"), ("stfpm", "own")),
        )
    )
    assert total.mean == pytest.approx(architecture.mean + recipe.mean)
    low, high = architecture.interval
    assert 0 < low < architecture.mean < high
    assert architecture.above == 1
    assert recipe.mean < 0
    assert comparer.difference("pixel_auroc", ("dskd", "own"), ("stfpm", "own"), [0, 1]).interval is None


def test_images_of_one_group_are_drawn_together(results: Results) -> None:
    assert "by group" not in Page(recipes.read(results.folder), "dskd", 200).text()
    for path in results.folder.glob("*/scores.csv"):
        header, *lines = path.read_text().splitlines()
        path.write_text("\n".join([f"{header},group", *(f"{line},{i // 4}" for i, line in enumerate(lines))]))
    study = recipes.read(results.folder)
    text = Page(study, "dskd", 200).text()
    assert "| image AUROC [95 %] | draws above 0 | by group [95 %] | draws above 0 |" in text
    pair = ("stfpm", "own"), ("stfpm", "common")
    apart, together = (
        recipes.Comparer(study, 500, groups).difference("image_auroc", *pair, [0, 1]) for groups in (None, study.groups)
    )
    assert apart.mean == together.mean
    assert apart.interval != together.interval


def test_report_counts_holes_and_repeats(results: Results) -> None:
    texts = [Page(recipes.read(results.folder), "dskd", 200).text() for _ in range(2)]
    text = texts[0]
    assert text == texts[1]
    assert "- 11 of 12 evaluations are there\n" in text
    assert "- Missing evaluations (1): stfpm (common), seed 2 (failed: diverged)\n" in text
    assert "- Runs without metrics.csv (1): stfpm (own), seed 1\n" in text
    rows = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith("| ")]
    assert ["two_students", "own = common", "3", "+0.00 [+0.00, +0.00]", "0.0%", "+0.00 ± 0.00", "+0.00 ± 0.00"] in rows
    steady = next(row for row in rows if row[:2] == ["stfpm", "own"] and len(row) == 11)
    assert steady[5:] == [
        "2",
        "2.83",
        "2.83 · – · 2.83",
        "4.00",
        "82.00",
        "80.00",
    ]  # epoch 75 % is not the last quarter
    assert rows[-1][:2] == ["two_students", "own = common"]
    assert next(row for row in reversed(rows) if row[:2] == ["stfpm", "common"])[-1] == "–"
    with pytest.raises(ValueError, match="under one recipe"):
        Page(recipes.read(results.folder), "stfpm", 200)


def test_command_prints_the_page(
    results: Results, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), str(results.folder), "--draws", "200"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    assert capsys.readouterr().out == Page(recipes.read(results.folder), "dskd", 200).text()
