"""A training that is stopped anywhere goes on from its checkpoint and ends with the numbers of an undisturbed one."""

import dataclasses
import errno
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from dskd import Distiller
from harness import events
from harness.cli.common import make_plan
from harness.job import Stop, TrainJob
from harness.launch import schedule
from harness.records import Failure, Record, Results
from harness.run.checkpoint import Checkpointing, Interrupted, discard
from harness.run.device import Device, open_device
from harness.run.execute import execute
from harness.run.train import Epoch
from harness.run_folder import RunFolder
from harness.spec import Save, TrainSpec
from tests.run.small import SMALL
from tests.run.test_train import PIXELS, same, spec, trained

NAME = "checkpoint.pt"
STEPS = 3  # in an epoch: 8 images in batches of 3
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "val_normal": ("stfpm", {"select": "val_normal", "lr": 0.05}),
    "ema, cosine": ("stfpm", {"select": "last", "ema": 0.9, "schedule": "cosine"}),
    "val_normal, ema, renewed": ("stfpm", {"select": "val_normal", "ema": 0.5, "lr": 0.05, "renew_batch_norm": True}),
    "split, one_cycle, clip": ("dskd", {"optimizer": "split", "schedule": "one_cycle", "clip": 0.1}),
}


@pytest.fixture(autouse=True)
def small_and_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.run.test_train.PIXELS", PIXELS[:, :32, :32].contiguous())
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


class StopAfter(Stop):
    """Set from the n-th step on."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.left = steps

    def is_set(self) -> bool:
        self.left -= 1
        return self.left <= 0


def recipe(name: str, **more: object) -> TrainSpec:
    method, changes = RECIPES[name]
    changes = {"epochs": 3, "batch_size": 3} | changes | more
    changes = {f"train__{key}": value for key, value in changes.items()}
    return dataclasses.replace(spec(method, backbone=SMALL, **changes), image_size=32)


def go(
    run: TrainSpec,
    folder: Path,
    steps: int = 1000,
    precision: str = "fp32",
    every_s: float = 1000.0,
    device_type: str = "cpu",
) -> tuple[Distiller, list[Epoch], int, Checkpointing]:
    """An attempt at the training in new objects, stopped after so many steps."""
    device = open_device(device_type, precision)
    checkpointing = Checkpointing(RunFolder(folder), run.id, device, every_s, StopAfter(steps))
    return *trained(run, device, held_out=3, checkpointing=checkpointing), checkpointing


def undisturbed(run: TrainSpec, folder: Path, precision: str = "fp32") -> tuple[Distiller, list[Epoch], int]:
    *result, _ = go(run, folder / "undisturbed", precision=precision)
    assert not (folder / "undisturbed").exists()  # a short training saves nothing
    return tuple(result)


def numbers(curve: list[Epoch]) -> list[tuple[object, ...]]:
    return [(epoch.epoch, epoch.loss, epoch.held_out_map, epoch.images) for epoch in curve]


def assert_same(found: tuple[Distiller, list[Epoch], int, Checkpointing], expected: tuple[Any, ...]) -> None:
    assert same(found[0], expected[0])
    assert (numbers(found[1]), found[2]) == (numbers(expected[1]), expected[2])


@pytest.mark.parametrize("name", RECIPES)
def test_stopped_anywhere_it_ends_with_the_same_numbers(name: str, tmp_path: Path) -> None:
    run, precision = recipe(name), "bf16" if "split" in name else "fp32"
    expected = undisturbed(run, tmp_path, precision)
    # One after the other: after the last step of an epoch, the first of one, one within it, the last of all.
    folder = tmp_path / "stopped"
    done = 0
    for at in (STEPS, STEPS + 1, STEPS + 2, 3 * STEPS):
        with pytest.raises(Interrupted, match=rf"stopped in epoch {-(-at // STEPS)} of 3; the next call goes on from"):
            go(run, folder, at - done, precision)
        done = at
    found = go(run, folder, precision=precision)
    assert_same(found, expected)
    assert found[3].resumed == 4
    assert [path.name for path in folder.iterdir()] == [NAME]


def test_generators_of_random_numbers_go_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loss = Distiller.loss
    monkeypatch.setattr(Distiller, "loss", lambda *args: loss(*args) * (1 + torch.rand(())))
    expected = undisturbed(recipe("val_normal"), tmp_path)
    with pytest.raises(Interrupted):
        go(recipe("val_normal"), tmp_path, 4)
    assert_same(go(recipe("val_normal"), tmp_path), expected)


def test_one_that_died_goes_on_from_its_last_save(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = recipe("val_normal")
    expected = undisturbed(run, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr("harness.run.train.mean_map", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            go(run, tmp_path, every_s=0)
    assert torch.load(tmp_path / NAME, weights_only=True)["state"]["progress"]["step"] == STEPS
    found = go(run, tmp_path)
    assert_same(found, expected)


def test_the_seconds_of_all_attempts_count(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = recipe("val_normal")
    with pytest.raises(Interrupted):
        go(run, tmp_path, STEPS + 2)
    document = torch.load(tmp_path / NAME, weights_only=True)
    document["seconds"] += 1000
    document["state"]["progress"]["seconds"] += 100
    torch.save(document, tmp_path / NAME)
    with caplog.at_level(logging.INFO):
        _, curve, _, checkpointing = go(run, tmp_path)
    assert "resumed at epoch 2 step 2" in caplog.text
    assert checkpointing.seconds > 1000
    assert [epoch.seconds > 100 for epoch in curve] == [False, True, False]


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    document = torch.load(path, weights_only=True)
    change(document)
    torch.save(document, path)


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGES: dict[str, Callable[[Path], object]] = {
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:-1000]),
    "a flipped bit": flip,
    "empty": lambda path: path.write_bytes(b""),
    "something else": lambda path: path.write_text("not a checkpoint"),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "no dictionary": lambda path: torch.save([1], path),
    "another run's": lambda path: edit(path, lambda document: document["about"].update(run="another")),
    "another precision's": lambda path: edit(path, lambda document: document["about"].update(precision="bf16")),
    "another format": lambda path: edit(path, lambda document: document["about"].update(format=99)),
    "without a part": lambda path: edit(path, lambda document: document["state"].pop("generators")),
    "of other students": lambda path: edit(path, lambda document: document["state"]["students"].popitem()),
}


def test_a_checkpoint_that_cannot_be_used_is_ignored(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    run = recipe("ema, cosine", epochs=1, batch_size=8)
    expected = undisturbed(run, tmp_path)
    with pytest.raises(Interrupted):
        go(run, tmp_path, 1)
    good = (tmp_path / NAME).read_bytes()
    for name, damage in DAMAGES.items():
        folder = tmp_path / name
        folder.mkdir()
        (folder / NAME).write_bytes(good)
        damage(folder / NAME)
        caplog.clear()
        found = go(run, folder)
        assert "cannot be used, the training starts anew" in caplog.text, name
        assert_same(found, expected)
        assert found[3].resumed == 0


def test_steps_of_an_earlier_version_begin_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = recipe("ema, cosine", epochs=1, batch_size=8)
    with pytest.raises(Interrupted):
        go(run, tmp_path, 1)
    monkeypatch.setattr(Device, "steps", {"step": 2})  # as on a GPU
    assert go(run, tmp_path)[3].resumed == 0
    assert "the training starts anew: ValueError: its step is None, not 2" in caplog.text


def test_a_save_that_fails_costs_no_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(_document: object, stream: Any) -> None:
        stream.write(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    run = recipe("val_normal")
    go(run, tmp_path, every_s=0)
    assert "no checkpoint in epoch 1 of 3: [Errno 28] No space left" in caplog.text
    with pytest.raises(Interrupted, match="stopped in epoch 1 of 3; that could not be saved"):
        go(run, tmp_path, 1)
    assert not list(tmp_path.iterdir())


def test_discard_removes_what_killed_saves_left(tmp_path: Path) -> None:
    for name in (NAME, f".{NAME}.abc", "students.safetensors"):
        (tmp_path / name).touch()
    discard(RunFolder(tmp_path))
    discard(RunFolder(tmp_path))
    assert [path.name for path in tmp_path.iterdir()] == ["students.safetensors"]


def job_of(grid: Path, every_s: float = 0.0) -> TrainJob:
    parsed, plan = make_plan(grid, "cpu", None)
    options = {"save": Save(), "device": "cpu", "force": False, "grid": parsed.name, "checkpoint_every_s": every_s}
    (job,) = schedule.remaining(plan, (), results=str(grid.parent / "runs"), **options).jobs
    return job


def attempt(job: TrainJob, stop_at: str = "") -> Results:
    """Do the job in this process; told to stop at that event, or when that phase begins."""
    stop = Stop()

    def emit(event: events.FromWorker) -> None:
        if stop_at in (type(event).__name__.lower(), getattr(event, "phase", None)):
            stop.set()

    execute(job, emit, stop)
    return Results(Path(job.results))


def test_a_stopped_job_is_an_attempt_that_the_next_one_goes_on_from(
    tree: Path, write_grid: Callable[..., Path]
) -> None:
    grid = write_grid(
        tree, axes={"seed": [7]}, defaults={"train.epochs": 3, "evaluate.at": [1, 3], "eval.batch_size": 4}
    )
    job = job_of(grid)
    results = attempt(job, "epoch")
    folder = results.run_folder(job.spec.id).path
    (failure,) = results
    assert isinstance(failure, Failure)  # of the training: its evaluation was not tried
    assert (failure.id, failure.reason) == (job.spec.id, "interrupted")
    assert failure.message == "Interrupted: stopped in epoch 2 of 3; the next call goes on from there"
    assert (folder / NAME).exists()
    results = attempt(job, "evaluate")
    training = results.record(job.spec.id)
    assert training.result["resumed"] == 1
    assert not list(folder.glob(f"*{NAME}*"))
    (evaluation,) = job.evaluations
    stopped = results.last_failure(evaluation.id)
    assert (results.record(evaluation.id), stopped.reason) == (None, "interrupted")
    assert "stopped after" in stopped.message
    results = attempt(job)
    assert results.record(job.spec.id) == training
    last = (folder / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in last] == ["epoch", "1", "3"]
    assert isinstance(results.record(evaluation.id), Record)


def test_a_training_that_diverges_leaves_no_checkpoint(tree: Path, write_grid: Callable[..., Path]) -> None:
    bad = {"train.optimizer": "sgd", "train.lr": 1e30, "train.epochs": 3, "train.batch_size": 2}
    job = job_of(write_grid(tree, axes={"method": [{"name": "dskd", **bad}]}))
    assert attempt(job).last_failure(job.spec.id).reason == "diverged"
    assert not list(Path(job.results).glob(f"*/*{NAME}*"))
