"""A device that fails costs no run and no grid, and a run that breaks every device it meets costs no device.

Workers are `tests/scripts/fake_worker.py`, which needs no torch. A device is told apart by its number of threads.
"""

import json
import os
import sys
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from dskd import get_method, replace
from harness import events
from harness.job import Job, TrainJob
from harness.launch import group
from harness.launch.devices import Slot
from harness.launch.schedule import Phase
from harness.launch.supervisor import WorkerError, supervise
from harness.launch.verdict import Limits
from harness.records import Results
from harness.spec import Data, TrainSpec, Weights
from tests.conftest import ROOT

BROKEN = 7  # threads


class Seen:
    """What a supervisor told of each run, by seed."""

    def __init__(self, log: Path) -> None:
        self.log, self.done, self.failed = log, Counter[int](), Counter[int]()
        self.tried_again: Counter[int] = Counter()
        self.left_out: list[str] = []

    def __call__(self, job: Job, event: events.Event) -> None:
        match event:
            case events.Recorded():
                self.done[job.spec.seed] += 1
            case events.Failed(reason=reason):
                assert reason == "device"
                self.failed[job.spec.seed] += 1
            case events.Retrying(reason=reason):
                assert reason == "device"
                self.tried_again[job.spec.seed] += 1
            case events.GivenUp(message):
                self.left_out.append(message)

    def workers(self, seed: int) -> list[str]:
        """The processes that were at a run."""
        return [line.split()[0] for line in self.log.read_text().splitlines() if line.split()[2] == str(seed)]


Do = Callable[..., Seen]


@pytest.fixture
def do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Do:
    """Do runs of these methods, one seed each, on devices with so many threads; the seeds of `bad` break any device.
    Places of equal `names` are on one.
    """
    seen = Seen(tmp_path / "log")

    def call(
        methods: list[str], devices: list[int], bad: tuple[int, ...] = (), names: str = "0123", **options: int
    ) -> Seen:
        monkeypatch.setattr(group, "WORKER", [str(ROOT / "tests" / "scripts" / "fake_worker.py")])
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))
        how = {"broken": str(BROKEN), "log": str(seen.log), "after": options.get("after", 0)}
        how |= {str(seed): "device" for seed in bad}
        if "poison" in options:
            how |= {"mps": str(tmp_path / "ended"), "clients": len(devices), str(options["poison"]): "poison"}
        monkeypatch.setenv("FAKE", json.dumps(how))
        specs = [
            TrainSpec(replace(get_method("stfpm"), {"name": name}), "resnet18", Weights(), Data("a", "b", "c"), seed)
            for seed, name in enumerate(methods)
        ]
        jobs = [(TrainJob(spec, (), {}, None, str(tmp_path / "runs")), 1.0) for spec in specs]
        places = [
            (Slot(f"cuda:{name}", "cpu", None, (), threads),) for name, threads in zip(names, devices, strict=False)
        ]
        (tmp_path / "runs").mkdir(exist_ok=True)
        supervise([Phase(jobs, places)], [seen], Results(tmp_path / "runs"), Limits(options.get("retries", 1)))
        return seen

    call.seen = seen
    return call


@pytest.mark.parametrize(("runs", "retries"), [(200, 1), (12, 0)])
def test_a_broken_device_is_left_out_and_costs_no_run(runs: int, retries: int, do: Do) -> None:
    seen = do(["stfpm"] * runs, [BROKEN, 1, 2], retries=retries, after=2)
    lost = sum(seen.failed.values())
    assert lost == (0 if retries else 1)  # the first failure may be the run's own, and was not to be tried again
    assert sorted(seen.done) == [seed for seed in range(runs) if not seen.failed[seed]]
    assert set(seen.done.values()) == {1}
    assert sum(seen.tried_again.values()) + lost == 2  # different runs
    (message,) = seen.left_out
    assert "cuda:0 is left out: its device failed in two different runs in a row" in message
    assert all(len(set(seen.workers(seed))) == 2 for seed in seen.tried_again)


@pytest.mark.parametrize("devices", [[1], [1, 2]])
def test_a_run_that_breaks_every_device_costs_none(devices: list[int], do: Do) -> None:
    seen = do(["stfpm"] * 6, devices, bad=(2,))
    assert sorted(seen.done) == [0, 1, 3, 4, 5]
    assert (seen.failed, seen.tried_again, seen.left_out) == ({2: 1}, {2: 1}, [])
    assert len(set(seen.workers(2))) == 2


def test_a_method_that_breaks_devices_keeps_no_other_from_them(do: Do) -> None:
    methods = ["bad", "bad", "bad", "good", "good", "good"]
    with suppress(WorkerError):  # when nothing but such runs is left it may be the device
        do(methods, [1], bad=(0, 1, 2))
    assert sorted(do.seen.done) == [3, 4, 5]


def test_where_no_device_is_left_nothing_is_lost(do: Do) -> None:
    with pytest.raises(WorkerError, match=r"cuda:\d is left out, and no other place is left: its device failed in two"):
        do(["stfpm"] * 8, [BROKEN, BROKEN])
    assert not do.seen.done
    assert not do.seen.failed
    assert len(do.seen.left_out) <= 1  # none where both are given up in the same moment: the error tells of it


def test_a_process_that_cannot_be_killed_costs_its_place_and_no_run(do: Do, monkeypatch: pytest.MonkeyPatch) -> None:
    """It hangs in a driver, say. The first group that is killed is taken for one such."""
    waited, stuck = group.Group._wait, []

    def wait(self: group.Group, seconds: float) -> int | None:
        if seconds == group.KILLED_S and (not stuck or self in stuck):
            stuck.append(self)
            return None
        return waited(self, seconds)

    monkeypatch.setattr(group.Group, "_wait", wait)
    seen = do(["stfpm"] * 6, [1, 2], bad=(0,))  # a failed device has its worker killed
    assert sorted(seen.done) == [1, 2, 3, 4, 5]
    (message,) = seen.left_out
    assert "is left out: a process there hangs in the kernel and cannot be killed" in message
    with suppress(ChildProcessError):
        os.waitpid(stuck[0].process.pid, 0)


@pytest.mark.parametrize("retries", [1, 0])
@pytest.mark.parametrize("runs", [4, 9])
def test_a_run_that_ends_all_clients_of_its_gpu_costs_no_other(runs: int, retries: int, do: Do) -> None:
    """As under MPS, where a fault of one ends all."""
    seen = do(["stfpm"] * runs, [1, 1, 1, 1], names="0000", poison=2, retries=retries)
    assert sorted(seen.done) == [seed for seed in range(runs) if seed != 2]
    assert set(seen.done.values()) == {1}
    assert (seen.failed, seen.left_out) == ({2: 1}, [])
    assert seen.tried_again == {0: 1, 1: 1, 2: 1 + retries, 3: 1}  # all that were at work together, whoever it was


def test_a_broken_gpu_that_runs_share_is_left_out_and_costs_none(do: Do) -> None:
    seen = do(["stfpm"] * 20, [BROKEN, BROKEN, BROKEN, 1], names="0001", after=2)
    assert sorted(seen.done) == list(range(20))
    assert not seen.failed
    assert all("cuda:0 is left out" in message for message in seen.left_out)
    assert len(seen.left_out) <= 1  # none where the other GPU was through before
