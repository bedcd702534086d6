"""Workers are asked to stop before they are killed: under MPS one that is killed at work may take others with it.

Workers are `tests/scripts/fake_worker.py`, which needs no torch.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from dskd import get_method
from harness import events
from harness.job import Job, TrainJob
from harness.launch import group
from harness.launch.devices import Slot
from harness.launch.keeper import ResultsError
from harness.launch.schedule import Phase
from harness.launch.supervisor import supervise
from harness.launch.verdict import Limits
from harness.records import Results
from harness.spec import Data, TrainSpec, Weights
from tests.conftest import ROOT

Do = Callable[..., dict[int, list[tuple[str, str]]]]


@pytest.fixture
def do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Do:
    """Do a run of each behaviour, all at once on two places; what failed by seed, as reason and message."""

    def call(*behaviours: str, limits: Limits) -> dict[int, list[tuple[str, str]]]:
        monkeypatch.setattr(group, "WORKER", [str(ROOT / "tests" / "scripts" / "fake_worker.py")])
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        how = {str(seed): behaviour for seed, behaviour in enumerate(behaviours)}
        monkeypatch.setenv("FAKE", json.dumps(how | {"log": str(tmp_path / "log")}))
        failed: dict[int, list[tuple[str, str]]] = {}

        def hear(job: Job, event: events.Event) -> None:
            if isinstance(event, events.Failed | events.Retrying):
                failed.setdefault(job.spec.seed, []).append((event.reason, event.message))

        specs = [
            TrainSpec(get_method("stfpm"), "resnet18", Weights(), Data("a", "b", "c"), seed)
            for seed in range(len(behaviours))
        ]
        jobs = [(TrainJob(spec, (), {}, None, str(tmp_path / "runs")), 1.0) for spec in specs]
        (tmp_path / "runs").mkdir()
        places = [(Slot(f"cuda:{i}", "cpu", None, (), 1),) for i in range(2)]
        supervise([Phase(jobs, places)], [hear], Results(tmp_path / "runs"), limits)
        return failed

    return call


def test_what_takes_too_long_is_asked_to_stop_and_killed_only_if_it_does_not(
    do: Do, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(group, "GRACE_S", {"late": 2.0, "hung": 2.0})
    failed = do("slow", "deaf", "good", "good", limits=Limits(0, 1.0))
    why = "took more than the 1 s that --timeout gives"
    assert failed[0] == [("timeout", f"{why}stopped at epoch 1")]  # its own words
    assert failed[1] == [("timeout", why)]
    assert failed.keys() == {0, 1}
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert [line[2] for line in lines if line[1] == "stopped"] == ["0"]
    workers = {line[2]: line[0] for line in lines}
    assert workers["0"] in (workers["2"], workers["3"])  # who obeys takes the next run
    assert workers["1"] not in (workers["2"], workers["3"])


def test_a_grid_that_cannot_go_on_asks_its_workers_to_stop(do: Do, tmp_path: Path) -> None:
    with pytest.raises(ResultsError, match="No space left on device"):
        do("slow", "full", limits=Limits())
    assert "stopped 0" in (tmp_path / "log").read_text()
