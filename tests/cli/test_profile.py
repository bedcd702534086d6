"""`harness profile`: where a real run's time went."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from harness.run import sections


def test_a_profile_of_one_run(tree: Path, tmp_path: Path, write_grid: Callable[..., Path]) -> None:
    grid = write_grid(tree, axes={"method": ["dskd", "stfpm"]}, defaults={"train.epochs": 2, "train.batch_size": 4})
    command = [sys.executable, "-m", "harness", "profile", "--grid", str(grid), "--only", "method=stfpm"]
    command += ["--trace", str(tmp_path / "trace.json")]
    before = set(tmp_path.iterdir())
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stdout + done.stderr
    assert "profile of stfpm resnet18" in done.stdout
    rows = {row[0]: row[1:] for row in re.findall(r"│ (\w+) +│ +([\d.]+) │ +([\d.]+) % │ +(\d+) │", done.stdout)}
    assert {"decode", "transfer", "teacher", "forward", "backward", "optimizer", "inspect", "metrics"} <= rows.keys()
    assert sum(float(share) for _, share, _ in rows.values()) == pytest.approx(100, abs=1)
    assert rows["forward"][2] == rows["backward"][2] == rows["optimizer"][2]
    assert set(tmp_path.iterdir()) - before == {tmp_path / "trace.json"}
    assert json.loads((tmp_path / "trace.json").read_text())["traceEvents"]


def test_time_is_counted_where_it_is_spent(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0, 1, 3, 10])
    monkeypatch.setattr(sections, "now", lambda: next(clock))
    found = sections.Sections()
    monkeypatch.setattr(sections, "_active", found)
    with sections.section("outer"), sections.section("inner", 5):
        pass
    assert found.seconds == {"outer": 8, "inner": 2}
    assert found.images == {"outer": 0, "inner": 5}
    monkeypatch.setattr(sections, "_active", None)
    with sections.section("none"):
        pass
    assert "none" not in found.calls
