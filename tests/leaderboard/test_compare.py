"""Two sets of records against each other: matched by content, regressions found, and only those."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console
from sklearn.metrics import roc_auc_score

from dskd.config import ConfigError
from harness.leaderboard.compare import compare, read_side, regressions
from harness.leaderboard.frame import load
from harness.leaderboard.render import print_sections
from harness.leaderboard.table import Cell, boards, scores
from harness.records import Record, Results
from tests.leaderboard.test_table import bench, evaluation

NORMAL, ANOMALOUS = 30, 40


def publish(results: Results, record: Record, shift: float | None = None, seed: int = 0) -> None:
    """With `shift`, scores by image, and the image AUROC that they have."""
    if shift is not None:
        labels = np.arange(NORMAL + ANOMALOUS) >= NORMAL
        scores = np.random.default_rng(seed).standard_normal(len(labels)) + shift * labels
        record = dataclasses.replace(record, result=record.result | {"image_auroc": roc_auc_score(labels, scores)})
        rows = [f"{i:03d}.png,x,{int(label)},{s}" for i, (label, s) in enumerate(zip(labels, scores, strict=True))]
        folder = results.run_folder(record.id).path
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "scores.csv").write_text("\n".join(["path,defect,anomalous,score", *rows]))
    results.publish(record)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[str, str]:
    """dskd is as it was; stfpm's image AUROC falls far, with scores; `b` lacks one run and has one of its own."""
    for name, shift in (("a", 2.0), ("b", 1.0)):
        results = Results(tmp_path / name)
        for seed in range(3):
            publish(results, evaluation("dskd", "x", seed, 0.8 + seed / 100))
            publish(results, evaluation("stfpm", "x", seed, None), shift, seed)
        publish(results, evaluation("dskd", "y", 0, 0.9) if name == "a" else evaluation("dskd", "z", 0, 0.9))
        results.publish(bench("dskd", 100.0 if name == "a" else 125.0))
        results.publish(bench("stfpm", 100.0, device="cpu" if name == "a" else "another"))
    return str(tmp_path / "a"), str(tmp_path / "b")


def cells_of(folders: tuple[str, str], **options) -> dict[tuple[str, ...], dict[str, Cell]]:
    section, _ = compare(*map(read_side, folders), **options)
    return dict(section.tables[0].rows)


def test_differences_are_of_equal_content(folders: tuple[str, str]) -> None:
    section, rest = compare(*map(read_side, folders))
    differences, speed = section.tables
    rows = dict(differences.rows)
    same, fallen = rows["set", "image_auroc", "dskd", "resnet18"], rows["set", "image_auroc", "stfpm", "resnet18"]
    assert (same["difference"].value, same["difference"].sign, same["equal"].value, same["pairs"].value) == (0, 0, 3, 3)
    assert fallen["difference"].value == pytest.approx(fallen["after"].value - fallen["before"].value)
    assert fallen["difference"].sign == -1
    assert fallen["difference"].high < 0
    assert fallen["over"].value == "images × seeds"
    assert [line.split(" are in ")[0] for line in rest] == ["1 of 7 evaluations", "1 of 7 evaluations"]
    ((key, ratio),) = speed.rows
    assert key == ("cpu, 2 threads", "dskd", "resnet18")
    assert ratio["ratio"].value == 1.25
    assert "compared on one device only" in speed.notes[1]
    (backwards,) = [cells for key, cells in cells_of(folders[::-1]).items() if key[1:3] == ("image_auroc", "stfpm")]
    assert backwards["difference"].sign == 1


def test_only_what_fell_by_more_and_beyond_noise_fails(folders: tuple[str, str]) -> None:
    section, _ = compare(*map(read_side, folders))
    (found,) = regressions(section.tables[0], -0.5)
    assert found.startswith("set image_auroc stfpm resnet18: -")
    assert regressions(section.tables[0], -99) == []
    console = Console(width=80, file=io.StringIO())
    print_sections(console, [section])
    assert "▼" in console.file.getvalue()


def test_two_commits_of_one_folder(tmp_path: Path) -> None:
    """A raised REVISION gives the runs of a later commit other ids; their content is the same."""
    results = Results(tmp_path)
    for commit, value in (("aaa111", 0.80), ("bbb222", 0.82)):
        for seed in range(3):
            record = evaluation("dskd", "x", seed, value, commit=commit)
            started_at = f"2026-01-01T00:00:0{commit == 'bbb222':d}+00:00"
            results.publish(
                dataclasses.replace(record, id=f"{'z' if commit == 'aaa111' else 'a'}{seed}", started_at=started_at)
            )
    rows = cells_of((f"{tmp_path}@aaa", f"{tmp_path}@bbb"))
    assert rows["set", "image_auroc", "dskd", "resnet18"]["difference"].value == pytest.approx(0.02)
    (board,) = boards(load([tmp_path]))  # in one table the last one counts
    assert scores(board).rows[0][1]["set.image_auroc"].value == pytest.approx(0.82)
    with pytest.raises(ConfigError, match=r"no run is of commit ccc; there are: aaa111, bbb222"):
        read_side(f"{tmp_path}@ccc")


def test_other_settings_do_not_match_unless_ignored(tmp_path: Path) -> None:
    Results(tmp_path / "a").publish(evaluation("dskd", "x", 0, 0.8))
    record = evaluation("dskd", "x", 0, 0.7, {"train.lr": 0.1})
    del record.spec["train"]["method"]["train"]["ema"]  # of a harness that did not know it: the default
    Results(tmp_path / "b").publish(record)
    folders = str(tmp_path / "a"), str(tmp_path / "b")
    with pytest.raises(ConfigError, match=r"they differ in train.lr \(0.005 and 0.1\); write --ignore train.lr to"):
        cells_of(folders)
    rows = cells_of(folders, ignore=["train.lr"])
    found = rows["set", "image_auroc", "dskd", "resnet18"]["difference"]
    assert (found.value, found.low, found.sign) == (pytest.approx(-0.1), None, 0)
    with pytest.raises(ConfigError, match=r"--ignore: unknown name 'train.rl'; did you mean 'train.lr'"):
        cells_of(folders, ignore=["train.rl"])
    Results(tmp_path / "c").publish(evaluation("dskd", "other", 0, 0.8))
    with pytest.raises(ConfigError, match=r"they differ in category \(x and other\)$"):
        cells_of((str(tmp_path / "a"), str(tmp_path / "c")))
    record = evaluation("dskd", "x", 0, 0.8)
    training = dataclasses.replace(
        record, kind="train", id="0", spec=record.spec["train"], result={"device_type": "cuda"}
    )
    for each in (record, training):  # on a GPU, by a harness whose steps read their rate otherwise
        Results(tmp_path / "d").publish(each)
    folders = str(tmp_path / "d"), str(tmp_path / "a")
    with pytest.raises(ConfigError, match=r"they differ in step \(1 and 2\); write --ignore step to"):
        cells_of(folders)
    assert cells_of(folders, ignore=["step"])["set", "image_auroc", "dskd", "resnet18"]["difference"].value == 0
