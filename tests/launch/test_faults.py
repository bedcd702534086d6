"""Several workers and several supervisors, and what becomes of a grid when something goes wrong."""

import json
import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from harness.launch import claims
from harness.launch.claims import Claims
from harness.records import Failure, Results
from tests.faults.commands import harness
from tests.launch.test_run import DEADLINE_S, WriteGrid, _children, command, metrics, records, run, run_apart


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def started(grid: Path, *options: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(command(grid, *options), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def results(grid: Path) -> Results:
    return Results(grid.parent / "runs" / "tiny")


def test_two_workers_share_a_grid_to_the_numbers_of_one(tree: Path, write_grid: WriteGrid, tmp_path: Path) -> None:
    grid = write_grid(tree, axes={"seed": [0, 1, 2, 3]}, bench={"batch_sizes": [1], "seconds": 0.05})
    process = started(grid, "--devices", "cpu:2")
    workers: set[int] = set()
    while process.poll() is None:
        workers |= set(_children(process.pid))
        time.sleep(0.01)
    assert process.returncode == 0, process.communicate()[0]
    assert len(workers) == 3  # two for the trainings, and one alone for the throughput
    several = metrics(grid)
    assert {record.result["threads"] for record in records(grid).values()} == {1}
    alone = tmp_path / "alone"
    alone.mkdir()
    (alone / "grid.yaml").write_text(yaml.safe_dump({**yaml.safe_load(grid.read_text()), "bench": None}))
    run(alone / "grid.yaml")
    assert metrics(alone / "grid.yaml") == several


def test_two_supervisors_share_the_work(tree: Path, write_grid: WriteGrid) -> None:
    grid = write_grid(tree, axes={"seed": list(range(4))})
    first = started(grid)
    until(lambda: list(results(grid).folder.glob("*/claim.json")))
    (worker,) = _children(first.pid)
    os.kill(worker, signal.SIGSTOP)  # until the other one has come: it would be done before
    second = started(grid)
    until(lambda: len(list(results(grid).folder.glob("*/claim.json"))) > 1)
    os.kill(worker, signal.SIGCONT)
    outputs = [process.communicate(timeout=DEADLINE_S)[0] for process in (first, second)]
    assert [first.returncode, second.returncode] == [0, 0], outputs
    done = [output.count("✓ train") for output in outputs]
    assert sum(done) == 4  # none twice
    assert min(done) >= 1
    assert len(records(grid)) == 4
    assert not list(results(grid).folder.glob("*/claim.json"))


def test_a_claim_that_was_left_behind_is_taken_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = Claims(tmp_path), Claims(tmp_path)
    assert first.take("run")
    assert not second.take("run")
    os.utime(tmp_path / "run" / "claim.json", (0, 0))
    first.touch()
    assert not second.take("run")
    os.utime(tmp_path / "run" / "claim.json", (0, 0))
    assert second.take("run")
    first.release("another")
    second.release("run")
    assert first.take("run")
    first.release("run")
    first.content = first.content.replace(f'"pid": {os.getpid()}', '"pid": 999999999')
    assert first.take("run")
    assert second.take("run")  # of a process that is no more
    assert claims.STALE_S > 60


@pytest.mark.slow
def test_a_crash_is_tried_again_and_then_recorded(tree: Path, write_grid: WriteGrid) -> None:
    defaults = {"train.epochs": 40}
    grid = write_grid(tree, axes={"seed": [0, 1]}, defaults=defaults)
    process = started(grid, "--retries", "1")
    killed: set[int] = set()
    for attempt in (1, 2):  # the worker of the first run, and the one that replaces it, each while it trains
        until(lambda attempt=attempt: set(_children(process.pid)) - killed and _training(grid, attempt))
        (worker,) = set(_children(process.pid)) - killed
        os.kill(worker, signal.SIGKILL)
        killed.add(worker)
        until(lambda: not (set(_children(process.pid)) & killed))
    output = process.communicate(timeout=DEADLINE_S)[0]
    assert output.count("will be tried again") >= 1, output
    attempts = sorted(results(grid).folder.glob("*/attempts/*.json"))
    assert len(attempts) == 2
    assert all(json.loads(path.read_text())["peak_host_memory_mib"] > 100 for path in attempts)  # torch alone
    if len({path.parent for path in attempts}) == 1:  # the same run both times: then it failed for good
        assert process.returncode == 1
        assert run(grid).count("✓ train") == 1
    assert len(records(grid)) == 2


def _training(grid: Path, attempt: int) -> bool:
    return len(list(results(grid).folder.glob("*/attempts/*.json"))) == attempt - 1 and bool(
        list(results(grid).folder.glob("*/claim.json"))
    )


HUNGRY = """
from pathlib import Path
from dskd import Students, get_method, register_method, replace

full = []

@register_method(replace(get_method("stfpm"), {"name": "hungry", "revision": 0}))
class Hungry(Students):
    'Takes all memory of the process that trains it first, and leaves none for what comes after'

    def __init__(self, method, backbone):
        super().__init__(method, backbone)
        once = Path(__file__).with_name("once")
        if full or not once.exists():
            once.touch()
            full.append(True)
            raise OSError(12, "Cannot allocate memory")
"""


def test_a_worker_without_memory_costs_one_attempt(tree: Path, write_grid: WriteGrid, tmp_path: Path) -> None:
    (tmp_path / "hungry.py").write_text(HUNGRY)
    grid = write_grid(tree, axes={"method": ["hungry"], "seed": [0, 1, 2]})
    output = run_apart(grid, "--plugin", str(tmp_path / "hungry.py"))
    assert [line.split()[1] for line in output.splitlines() if line.startswith("↻")] == ["out_of_memory"], output
    assert len(records(grid)) == 3


POISONED = """
import os
from pathlib import Path
import torch
from dskd import Students, get_method, register_method, replace

Error = getattr(torch, "AcceleratorError", RuntimeError)
trained = []

@register_method(replace(get_method("stfpm"), {"name": "poisoned", "revision": 0}))
class Poisoned(Students):
    'From its second run on the first process cannot use its device any more'

    def __init__(self, method, backbone):
        super().__init__(method, backbone)
        first = Path(__file__).with_name("first")
        if not first.exists():
            first.write_text(str(os.getpid()))
        trained.append(True)
        if len(trained) > 1 and first.read_text() == str(os.getpid()):
            raise Error("CUDA error: an illegal memory access was encountered")
"""


def test_a_worker_whose_device_failed_does_no_other_run(tree: Path, write_grid: WriteGrid, tmp_path: Path) -> None:
    (tmp_path / "poisoned.py").write_text(POISONED)
    grid = write_grid(tree, axes={"method": ["poisoned"], "seed": [0, 1, 2, 3]})
    output = run_apart(grid, "--plugin", str(tmp_path / "poisoned.py"))
    assert [line.split()[1] for line in output.splitlines() if line.startswith("↻")] == ["device"], output
    assert len(records(grid)) == 4


@pytest.mark.slow
def test_a_run_that_takes_too_long_is_killed(tree: Path, write_grid: WriteGrid) -> None:
    slow = {"name": "stfpm", "train.epochs": 100000}
    grid = write_grid(tree, axes={"method": [slow, "stfpm"]})
    output = run(grid, "--timeout", "0.1", "--retries", "0", expect=1)
    assert "✗ timeout" in output
    assert output.count("✓ evaluate") == 1
    (failure,) = [item for item in results(grid) if isinstance(item, Failure)]
    assert failure.reason == "timeout"
    assert "took more than the 6 s that --timeout gives; stopped in epoch" in failure.message
    assert list(results(grid).folder.glob("*/checkpoint.pt"))  # it was asked to stop, and the next call goes on


@pytest.mark.slow
def test_a_worker_that_was_stopped_is_found_out(tree: Path, write_grid: WriteGrid) -> None:
    grid = write_grid(tree, axes={"seed": [0, 1]}, defaults={"train.epochs": 20})
    process = started(grid, "--timeout", "0.25")
    until(lambda: list(results(grid).folder.glob("*/claim.json")) and _children(process.pid))
    os.kill(_children(process.pid)[0], signal.SIGSTOP)
    output = process.communicate(timeout=DEADLINE_S)[0]
    assert process.returncode == 0, output
    assert "timeout" in output
    assert len(records(grid)) == 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "small"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=30m", "tmpfs", str(folder)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("a tmpfs cannot be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_stops_the_grid_with_what_is_finished(tree: Path, write_grid: WriteGrid, small_disk: Path) -> None:
    grid = write_grid(tree, axes={"seed": list(range(5))})  # 11 MB of students each: two fit
    done = harness("run", "--grid", grid, "--out", small_disk)
    assert done.code == 1, done
    assert re.search(r"error: results folder .* cannot be written \(No space left on device\)", done.out), done.out
    kept = [item for item in Results(small_disk / "tiny") if item]
    assert sum(getattr(item, "kind", "") == "evaluate" and not isinstance(item, Failure) for item in kept) == 2
    assert "Traceback" not in done.err


def test_ctrl_c_twice_stops_at_once(tree: Path, write_grid: WriteGrid) -> None:
    grid = write_grid(tree, defaults={"train.epochs": 100000})
    process = started(grid)
    until(lambda: list(results(grid).folder.glob("*/claim.json")))
    time.sleep(1)
    workers = _children(process.pid)
    os.kill(workers[0], signal.SIGSTOP)  # it will not end by itself
    process.send_signal(signal.SIGINT)
    time.sleep(0.5)  # two at once are one to the kernel
    process.send_signal(signal.SIGINT)
    assert process.wait(timeout=20) == 130
    until(lambda: not any(Path(f"/proc/{worker}").exists() for worker in workers))
