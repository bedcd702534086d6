"""A setting is declared once: one more line in `harness.spec`, and grids, ids, records and tables have it."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import yaml

from harness.grid import expand, resolve
from harness.gridfile import parse
from tests.conftest import ROOT

LINE = '    flip: float = field(default=0.0, metadata=setting("flip.share", later=True))\n'
SCRIPT = """
import json, sys
from pathlib import Path
from dskd.config import to_mapping
from harness.grid import expand, resolve
from harness.gridfile import read_grid
from harness.leaderboard.frame import frame, load, variants
from harness.records import Record, Results

grid = read_grid(Path(sys.argv[1]))
plan = expand(grid, resolve(grid, "cpu"))
results = Results(Path(sys.argv[1]).parent / "runs")
facts = {"precision": "fp32", "device_type": "cpu", "image_auroc": 0.5}
for training in plan.trainings:
    for spec in training.evaluations:
        content = to_mapping(spec)
        if training.spec.seed == 1:  # as it was written before there was the setting
            del content["train"]["flip"]
        results.publish(Record(spec.kind, spec.id, content, facts, {}, "2026-01-01T00:00:00+00:00", 1.0))
found = load([results.folder])
lines = frame(found).assign(variant=lambda lines: variants(lines))
print(json.dumps({
    "ids": [training.spec.id for training in plan.trainings],
    "records": [record.spec["train"].get("flip") for record in found.evaluations],
    "table": lines[["seed", "flip.share", "variant"]].values.tolist(),
}))
"""
GRID = {
    "name": "flipped",
    "axes": {
        "method": ["stfpm"],
        "backbone": ["resnet18"],
        "dataset": [{"name": "surfaces", "categories": ["granite"], "side": 64, "train": 4, "test_good": 2}],
        "seed": [0, 1],
    },
    "defaults": {"weights": "random"},
}


def test_one_line_is_a_setting_everywhere(tmp_path: Path) -> None:
    copy = tmp_path / "harness"
    shutil.copytree(ROOT / "harness", copy, ignore=shutil.ignore_patterns("__pycache__"))
    before, found, after = (copy / "spec.py").read_text().partition('metadata=setting("compile", later=True))\n')
    (copy / "spec.py").write_text(before + found + LINE + after)
    rule = {"when": {"seed": 0}, "set": {"flip": {"share": "5e-1"}}}
    (tmp_path / "grid.yaml").write_text(yaml.safe_dump(GRID | {"overrides": [rule]}))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(tmp_path / "grid.yaml")],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    grid = parse(GRID)
    ids = [training.spec.id for training in expand(grid, resolve(grid, "cpu")).trainings]
    assert seen["ids"][0] != ids[0]
    assert seen["ids"][1] == ids[1]  # its default leaves an id as it was
    assert sorted(seen["records"], key=str) == [0.5, None]
    assert seen["table"] == [[0, "0.5", "flip.share=0.5"], [1, "0", ""]]
