"""Trainings that are killed or told to stop, in real processes: the next call goes on, to the same numbers."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from harness import events
from harness.job import encode, encode_stop
from harness.launch import channel
from harness.records import Results
from tests.conftest import write_mvtec
from tests.launch.test_run import DEADLINE_S, _alive, _children, command, metrics, records, run
from tests.run.test_checkpoint import NAME, job_of

OFTEN = ("--checkpoint-every", "0.005", "--retries", "0")  # minutes
EPOCHS = 40


def write(folder: Path, data: Path, **settings: Any) -> Path:
    document = {
        "name": "tiny",
        "axes": {"method": ["stfpm"], "backbone": ["resnet18"], "dataset": [{"name": "folder", "root": str(data)}]},
        "defaults": {"image_size": 32, "weights": "random", "precision": "fp32", "evaluate.at": [2, EPOCHS // 2]},
    }
    document["defaults"] |= {"train.epochs": EPOCHS, "train.batch_size": 2, "train.select": "val_normal"}
    document["defaults"] |= settings
    folder.mkdir()
    (folder / "grid.yaml").write_text(yaml.safe_dump(document))
    return folder / "grid.yaml"


def numbers(grid: Path) -> dict[str, Any]:
    """All that a training and its evaluation found, less what a clock decides."""
    (training,) = records(grid, "train").values()
    folder = grid.parent / "runs" / "tiny" / training.id
    assert not list(folder.glob(f"*{NAME}*"))
    curve = [
        (row["epoch"], row["loss"], row["held_out_map"])
        for row in csv.DictReader((folder / "curve.csv").open(newline=""))
    ]
    kept = training.result["loss_first"], training.result["loss_last"], training.result["kept_epoch"]
    return {
        "evaluation": metrics(grid),
        "training": kept,
        "curve": curve,
        "along": (folder / "metrics.csv").read_text(),
        "students": (folder / "students.safetensors").read_bytes(),
    }


def until(condition: Callable[[], Any], process: subprocess.Popen[Any]) -> Any:
    deadline = time.monotonic() + DEADLINE_S
    while not (found := condition()):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.002)
    return found


def saved(grid: Path) -> int:
    """When the checkpoint was written, 0 if there is none."""
    with suppress(ValueError, FileNotFoundError):
        (path,) = grid.parent.glob(f"runs/tiny/*/{NAME}")
        return path.stat().st_mtime_ns
    return 0


def start(grid: Path) -> tuple[subprocess.Popen[str], int]:
    """`harness run` at a moment when it has just saved a checkpoint, and its worker."""
    before = saved(grid)
    process = subprocess.Popen(command(grid, *OFTEN), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    until(lambda: saved(grid) > before, process)
    (worker,) = _children(process.pid)
    return process, worker


def test_killed_and_told_to_end_it_finds_the_same_numbers(tmp_path: Path) -> None:
    data = write_mvtec(tmp_path / "data")
    undisturbed, grid = write(tmp_path / "undisturbed", data), write(tmp_path / "grid", data)
    run(undisturbed)

    process, worker = start(grid)
    process.kill()
    with suppress(ProcessLookupError):  # it may have noticed
        os.kill(worker, signal.SIGKILL)
    process.communicate(timeout=DEADLINE_S)
    while _alive(worker):
        time.sleep(0.01)
    assert saved(grid)
    assert not list(Results(grid.parent / "runs" / "tiny"))  # neither a record nor an attempt

    process, worker = start(grid)
    os.kill(worker, signal.SIGTERM)
    output, _ = process.communicate(timeout=DEADLINE_S)
    assert process.returncode == 0  # stopped is not failed: the next call goes on
    assert "Interrupted: stopped in epoch" in output.replace("\n", " ")
    (failure,) = Results(grid.parent / "runs" / "tiny")  # the evaluation was not tried
    assert (failure.kind, failure.reason) == ("train", "interrupted")
    assert saved(grid)

    run(grid, *OFTEN)
    (training,) = records(grid, "train").values()
    assert training.result["resumed"] == 2
    log = (grid.parent / "runs" / "tiny" / training.id / "log.txt").read_text()
    assert log.count("resumed at epoch") == 2
    assert len(numbers(grid)["curve"]) == EPOCHS
    assert numbers(grid) == numbers(undisturbed)


def test_killed_in_a_fold_it_finds_the_same_numbers(tmp_path: Path) -> None:
    data, settings = write_mvtec(tmp_path / "data"), {"train.epochs": 6, "evaluate.at": [2], "false_alarm_rate": 0.2}
    settings |= {"calibrate": {"folds": 2}}
    undisturbed, grid = (write(tmp_path / name, data, **settings) for name in ("undisturbed", "grid"))
    run(undisturbed)
    often = ("--checkpoint-every", "0", "--retries", "0")
    process = subprocess.Popen(command(grid, *often), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    ended = until(lambda: list(grid.parent.glob("runs/tiny/*/folds/1.safetensors")), process)[0].stat().st_mtime_ns
    until(lambda: saved(grid) > ended, process)
    (worker,) = _children(process.pid)
    process.kill()
    with suppress(ProcessLookupError):
        os.kill(worker, signal.SIGKILL)
    process.communicate(timeout=DEADLINE_S)
    while _alive(worker):
        time.sleep(0.01)
    run(grid)
    (training,) = records(grid, "train").values()
    assert training.result["resumed"] == 1
    (path,) = grid.parent.glob("runs/tiny/*/folds/1.safetensors")
    assert path.stat().st_mtime_ns == ended
    assert numbers(grid) == numbers(undisturbed)
    one, other = (next(each.parent.glob("runs/tiny/*/calibration.csv")) for each in (grid, undisturbed))
    assert one.read_text() == other.read_text()
    assert len(one.read_text().splitlines()) == 7


@pytest.mark.slow
def test_two_processes_told_to_end_find_the_same_numbers(tmp_path: Path) -> None:
    data = write_mvtec(tmp_path / "data")
    undisturbed, grid = (write(tmp_path / name, data, processes=2) for name in ("undisturbed", "grid"))
    run(undisturbed, "--devices", "cpu:2")
    for number in (signal.SIGINT, signal.SIGKILL):
        before = saved(grid)
        line = [*command(grid, *OFTEN), "--devices", "cpu:2"]
        process = subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        until(lambda: saved(grid) > before, process)  # noqa: B023
        process.send_signal(number)
        output, _ = process.communicate(timeout=DEADLINE_S)
        assert process.returncode == (130 if number == signal.SIGINT else -number), output
        assert saved(grid)
    run(grid, *OFTEN, "--devices", "cpu:2")
    (training,) = records(grid, "train").values()
    assert training.result["resumed"] == 2
    assert numbers(grid) == numbers(undisturbed)


@pytest.fixture
def worker() -> Iterator[tuple[subprocess.Popen[bytes], channel.Connection]]:
    """A worker without a supervisor, and the channel to it."""
    with closing(channel.Door()) as door:
        process = subprocess.Popen([sys.executable, "-m", "harness.launch.worker"], env=os.environ | door.environment())
        connection, _ = door.take()
        while (heard := channel.receive(connection)) == events.Alive():  # imports took long
            pass
        assert heard == events.Ready()
        yield process, connection
        connection.close()
        process.wait(timeout=DEADLINE_S)


def test_a_worker_obeys(tree: Path, tmp_path: Path, worker: tuple[subprocess.Popen[bytes], channel.Connection]) -> None:
    process, connection = worker
    job = job_of(write(tmp_path / "grid", tree), every_s=600.0)

    def stop() -> None:
        connection.send_bytes(encode_stop())

    for attempt, tell in enumerate(
        (stop, lambda: process.send_signal(signal.SIGUSR1), lambda: process.send_signal(signal.SIGTERM)), start=1
    ):
        stop()  # there is nothing to stop, and the job that follows must not hear of it
        connection.send_bytes(encode(job))
        heard = [channel.receive(connection)]
        while not isinstance(heard[-1], events.Done):
            heard.append(channel.receive(connection))
            if getattr(heard[-1], "epoch", None) == 5 * attempt:
                tell()
        assert any(getattr(event, "epoch", None) == 5 * attempt for event in heard)
        assert isinstance(heard[-2], events.Failed)
        assert heard[-2].reason == "interrupted"
        assert heard[-1].leaving == (attempt == 3)
    assert process.wait(timeout=DEADLINE_S) == 0
