"""A grid of small runs, trained once: a strip's crop, padded pictures of all kinds, batches that do not divide them."""

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from safetensors.torch import save_file

from dskd import Teacher
from harness.records import Record, Results
from harness.run_folder import Calibrated, RunFolder, read_scores, write_calibration
from tests.conftest import jobs_in_this_process, save, texture, write_mvtec
from tests.faults.commands import harness


@dataclass
class Trained:
    """`runs`: the folder of results folders; `data`: of the pictures; `grid`: its file."""

    root: Path

    @property
    def results(self) -> Path:
        return self.root / "runs" / "tiny"

    @property
    def data(self) -> Path:
        return self.root / "data"

    @property
    def teacher(self) -> Path:
        """The file of stfpm's; the other one's is random."""
        return self.root / "teacher.safetensors"

    def records(self, kind: str = "evaluate") -> list[Record]:
        return [each for each in Results(self.results) if isinstance(each, Record) and each.kind == kind]

    def folder(self, **labels: str) -> Path:
        """Of the one evaluation with this method, category or label."""
        (found,) = (each.id for each in self.records() if labels.items() <= _labels(each.spec).items())
        return self.results / found

    def scored(self, folder: Path) -> tuple[list[str], list[float]]:
        """Its test pictures and their scores, as scores.csv has them."""
        scores = read_scores(RunFolder(folder), [])
        return [str(self.data / each.path) for each in scores], [each.score for each in scores]


def _labels(spec: dict[str, Any]) -> dict[str, str]:
    train = spec["train"]
    return {"method": train["method"]["name"], "category": train["data"]["category"], "label": spec.get("label", "")}


def write_kinds(folder: Path) -> None:
    """Test pictures of kinds that are each read in a way of their own."""
    wide = Image.fromarray(texture(301)[0]).resize((60, 40))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned
    wide.save(folder / "turned.jpg", exif=exif)
    wide.convert("P").save(folder / "palette.png")
    wide.convert("RGBA").save(folder / "alpha.png")
    save(folder / "deep.png", (texture(302)[0][..., 0].astype(np.uint16) * 16))


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Trained:
    found = Trained(tmp_path_factory.mktemp("trained"))
    write_mvtec(found.data, "cloth")
    write_mvtec(found.data, "felt", train=24)
    write_kinds(found.data / "cloth" / "test" / "good")
    save_file(Teacher("resnet18").trunk.state_dict(), found.teacher)
    dataset = {"name": "folder", "root": str(found.data), "resize": "pad", "range": [0, 4095]}
    document = {
        "name": "tiny",
        "axes": {"method": ["stfpm", "student_ensemble"], "backbone": ["resnet18"], "dataset": [dataset], "seed": [0]},
        "exclude": [{"method": "student_ensemble", "category": "felt"}],
        "overrides": [
            {"when": {"method": "stfpm"}, "set": {"weights": str(found.teacher)}},
            {"when": {"category": "felt"}, "set": {"calibrate": 0.5}},
        ],
        "defaults": {"image_size": [64, 96], "crop": 32, "eval.batch_size": 4, "weights": "random", "precision": "fp32"}
        | {"train.epochs": 1, "train.select": "last", "false_alarm_rate": 0.1},
        "evaluate": [{}, {"score": "mean", "map.sigma": 2, "label": "smooth"}],
    }
    (found.root / "grid.yaml").write_text(yaml.safe_dump(document, sort_keys=False))
    with jobs_in_this_process():
        done = harness("run", found.root / "grid.yaml", "--out", found.root / "runs", "--devices", "cpu")
    assert done.code == 0, done
    return found


@pytest.fixture
def calibrated(trained: Trained, tmp_path: Path) -> Callable[..., Path]:
    """Makes a copy of one run with scores of normal images, each a group of its own, and more in its result."""

    def make(scores: Sequence[float] = (), **result: object) -> Path:
        folder = trained.folder(method="stfpm", category="cloth", label="")
        train_id = next(each.id for each in trained.records("train") if _is_of(each, folder))
        target = tmp_path / "runs" / "tiny"
        for name in (folder.name, train_id):
            shutil.copytree(trained.results / name, target / name)
        record = json.loads((target / folder.name / "record.json").read_text())
        record["result"] |= result
        (target / folder.name / "record.json").write_text(json.dumps(record))
        shutil.copy(trained.results / "grid.yaml", target)
        if scores:
            lines = [Calibrated(f"{i}.png", "", score) for i, score in enumerate(scores)]
            write_calibration(RunFolder(target / folder.name), lines)
        return target / folder.name

    return make


def _is_of(training: Record, evaluation: Path) -> bool:
    train = json.loads((evaluation / "record.json").read_text())["spec"]["train"]
    return training.spec["data"] == train["data"] and training.spec["method"]["name"] == train["method"]["name"]
