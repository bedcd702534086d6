"""`benchmarks/gpu/prove.py` on a CPU: a block's page, and what a block that fails or hangs costs."""

import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.conftest import ROOT

SCRIPT = ROOT / "benchmarks" / "gpu" / "prove.py"


def prove(*options: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, str(SCRIPT), *options], capture_output=True, text=True, timeout=200)


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    for folder in (ROOT, SCRIPT.parent):
        monkeypatch.syspath_prepend(folder)
    yield importlib.import_module("prove")
    for name in ("prove", "page", "sheet"):
        sys.modules.pop(name, None)


def test_a_block_leaves_a_page(tmp_path: Path) -> None:
    done = prove("--device", "cpu", "--only", "metrics", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    (found,), (page,) = tmp_path.glob("gpu-*.json"), tmp_path.glob("gpu-*.md")
    block = json.loads(found.read_text())["blocks"]["metrics"]
    assert block["verdict"] == "PASS"
    assert [check["ok"] for check in block["checks"]] == [True, True]
    assert "| no ties: the device's metrics are the host's | pass |" in page.read_text()


def test_what_cannot_be_meant_is_refused() -> None:
    done = prove("--only", "metrics,metric")
    assert done.returncode == 2
    assert "--only: there is no block metric; some of compiled," in done.stderr


def test_a_block_that_fails_or_hangs_costs_itself_alone(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, body in {
        "good": "sheet.check('one', True)",
        "bad": "sheet.check('one', True); 1 / 0",
        "worse": "import os; os._exit(3)",
        "hangs": "sheet.row('rates', ms=1.5); import time; time.sleep(600)",
    }.items():
        (tmp_path / f"{name}.py").write_text(f"def run(sheet):\n    {body}\n")
        monkeypatch.setitem(script.BLOCKS, name, (name, 1 if name == "hangs" else 15, False))
    driver = tmp_path / "driver.py"  # the block's process knows the blocks too
    driver.write_text(
        f"import sys\nsys.path[:0] = [{str(tmp_path)!r}, {str(SCRIPT.parent)!r}]\nimport prove\n"
        f"prove.BLOCKS = {dict(script.BLOCKS)!r}\nsys.exit(prove.main())\n"
    )
    monkeypatch.setattr(script, "DRIVER", driver)
    found = {name: script.attempt(name, "cpu", 100.0) for name in ("good", "bad", "worse", "hangs")}
    assert [one["verdict"] for one in found.values()] == ["PASS", "FAIL", "FAIL", "FAIL"]
    assert "ZeroDivisionError" in found["bad"]["checks"][-1]["detail"]
    assert "its process ended with 3" in found["worse"]["line"]
    assert "was ended" in found["hangs"]["line"]
    assert found["hangs"]["tables"] == {"rates": [{"ms": 1.5}]}
    assert script.attempt("good", "cpu", 3.0)["verdict"] == "SKIPPED"
    text = script.page({"about": {"device": "x", "date": "", "commit": "", "packages": {}}, "blocks": found}, "prove")
    assert "| hangs | FAIL |" in text


@pytest.mark.slow
def test_a_grid_of_several_categories(tmp_path: Path) -> None:
    done = prove("--device", "cpu", "--only", "mvtec", "--out", str(tmp_path))
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = tmp_path.glob("gpu-*.json")
    tables = json.loads(found.read_text())["blocks"]["mvtec"]["tables"]
    assert [(row["method"], row["runs"]) for row in tables["trainings"]] == [
        ("stfpm", 2),
        ("reverse_distillation", 2),
        ("dskd", 2),
    ]
    assert tables["the grid"][0]["runs"] == "6 of 6"
    assert "15 categories" not in tables  # small inputs say nothing of them


def test_what_takes_all_the_time_runs_where_it_is_named(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tried: list[str] = []
    nothing = {"verdict": "PASS", "seconds": 0.0, "line": ""}
    monkeypatch.setattr(script, "attempt", lambda name, *_: tried.append(name) or nothing)
    for more in ([], ["--only", "mvtec"]):
        monkeypatch.setattr("sys.argv", ["prove.py", "--device", "cpu", "--out", str(tmp_path), *more])
        assert script.main() == 0
    assert tried == [*(name for name in script.BLOCKS if name != "mvtec"), "mvtec"]
