"""Area C, with the real ranks of a run on two processes: one that hangs, one that is killed. Minutes long."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from harness.records import Results
from tests.launch.test_faults import until
from tests.launch.test_run import WriteGrid, _children, records

pytestmark = pytest.mark.slow
PATIENT = """
import sys, harness.launch.group as group
group.HUNG_S = 25.0
from harness.cli import main
sys.argv[0] = "harness"
main()
"""


@pytest.fixture
def grid(tree: Path, write_grid: WriteGrid) -> Path:
    defaults = {"processes": 2, "train.epochs": 120, "train.batch_size": 2}
    return write_grid(tree, axes={"seed": [0, 1]}, defaults=defaults)


def started(grid: Path) -> tuple["subprocess.Popen[str]", dict[int, int]]:
    """The supervisor, and the processes of its ranks once they train."""
    line = [sys.executable, "-c", PATIENT, "run", "--grid", str(grid), "--out", str(grid.parent / "runs")]
    line += ["--devices", "cpu:2", "--retries", "1"]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment)
    shards = grid.parent / "runs" / "tiny" / "shards"

    def training() -> bool:
        texts = [path.read_text() for path in shards.glob("[!.]*.json")]
        return any(run["note"] for text in texts for run in json.loads(text)["running"])

    until(training)
    (launcher,) = _children(process.pid)
    ranks = {}
    for pid in _children(launcher):
        variables = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        ranks[next(int(one[5:]) for one in variables if one.startswith(b"RANK="))] = pid
    return process, ranks


def attempts(grid: Path) -> list[dict[str, object]]:
    return [json.loads(path.read_text()) for path in (grid.parent / "runs" / "tiny").glob("*/attempts/*.json")]


def test_rank_that_hangs_is_noticed(grid: Path) -> None:
    process, ranks = started(grid)
    os.kill(ranks[1], signal.SIGSTOP)
    output = process.communicate(timeout=270)[0]
    assert process.returncode == 0, output
    assert "process 1 gave no sign of life" in output
    assert [attempt["reason"] for attempt in attempts(grid)] == ["timeout"]
    assert len(records(grid)) == 2


def test_rank_that_is_killed_is_one_attempt_and_is_tried_again(grid: Path) -> None:
    process, ranks = started(grid)
    os.kill(ranks[1], signal.SIGKILL)
    output = process.communicate(timeout=270)[0]
    assert process.returncode == 0, output
    assert output.count("will be tried again") == 1
    assert "✗" not in output
    assert len(attempts(grid)) == 1
    assert len(records(grid)) == 2
    assert not [item for item in Results(grid.parent / "runs" / "tiny") if item.kind not in ("train", "evaluate")]
