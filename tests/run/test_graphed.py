"""Steps that are recorded once and replayed. The recorder here only calls them: all but the capture is tried."""

import dataclasses
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dskd import Distiller, Teacher, methods
from harness.run import graphed, learner
from harness.run.checkpoint import Checkpointing, Interrupted
from harness.run.device import Device, open_device
from harness.run.features import TeacherFeatures
from harness.run.graphed import GraphedLearner, WholeStep, WholeSteps
from harness.run.learner import Learner
from harness.run.passes import Look
from harness.run.recorder import Calls, Step
from harness.run.sections import take_sections
from harness.run.train import DivergedError, train
from harness.run_folder import RunFolder
from harness.spec import TrainSpec
from tests.run.small import SMALL
from tests.run.test_checkpoint import StopAfter, numbers
from tests.run.test_compiled import OfItsSeed, SaysSo
from tests.run.test_train import PIXELS, spec

BACKBONE = SMALL  # on a GPU a real one (test_gpu.py)
HELD_OUT = 3  # of 11 images: 8 to train on, in batches of 3, 3 and 2
Result = tuple[dict[str, torch.Tensor], list[tuple[object, ...]], int]
RECIPES: dict[str, tuple[str, dict[str, Any]]] = {
    "sgd, val_normal": ("stfpm", {"lr": 0.05, "select": "val_normal"}),
    "sgd, clip, ema, cosine": ("stfpm", {"clip": 0.1, "ema": 0.9, "schedule": "cosine"}),
    "sgd without momentum": ("stfpm", {"momentum": 0.0}),
    "adam, one_cycle": ("stfpm", {"optimizer": "adam", "lr": 0.005, "schedule": "one_cycle"}),
    "adam, clip, ema, renewed": (
        "stfpm",
        {"optimizer": "adam", "lr": 0.005, "clip": 0.1, "ema": 0.5, "renew_batch_norm": True},
    ),
    "split, cosine, val_normal": ("dskd", {"optimizer": "split", "schedule": "cosine", "select": "val_normal"}),
}


def recipe(name: str, seed: int = 0, **more: object) -> TrainSpec:
    method, changes = RECIPES[name]
    changes = {"epochs": 3, "batch_size": 3, "select": "last"} | changes | more
    values = {f"train__{key}": value for key, value in changes.items()}
    return dataclasses.replace(spec(method, seed, BACKBONE, **values), image_size=32)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Iterator[Device]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    yield open_device("cpu", "fp32")
    torch.set_num_threads(threads)


@functools.cache
def teacher() -> Teacher:
    torch.manual_seed(0)
    return Teacher(BACKBONE).to(memory_format=torch.channels_last)


def features_of(device: Device, keep: str = "device", batch: int = 3) -> TeacherFeatures:
    budgets = {"device": 0.0, "host": 0.0} | {keep: 1e9}
    return TeacherFeatures(teacher(), PIXELS[:, :32, :32].contiguous(), batch, device, budgets)


@dataclasses.dataclass
class Worker:
    """What a worker does with runs on the same images; `steps`: None for plain ones."""

    device: Device
    features: TeacherFeatures
    steps: WholeSteps | None = None
    facts: dict[str, Any] = dataclasses.field(default_factory=dict)
    learner: Learner | None = None

    def learner_of(self, run: TrainSpec) -> Learner:
        torch.manual_seed(run.seed)
        model = Distiller(run.method, run.backbone, teacher())
        model.students.to(self.device.place, memory_format=torch.channels_last)
        images = len(PIXELS) - HELD_OUT
        if self.steps is None:
            return Learner(model, run, self.device, images)
        learner, facts = self.steps.learner(run, model, self.device, self.features, images)
        self.facts = facts()
        return learner

    def look(self) -> Look:
        return Look(self.device) if self.steps is None else Look(self.device, self.steps.passes)

    def train(self, run: TrainSpec, checkpointing: Checkpointing | None = None, report: Any = None) -> Result:
        """The students that it ends with, the learning curve and the epoch that was kept."""
        self.learner = learner = self.learner_of(run)
        positions = np.arange(len(PIXELS))
        given = learner, self.features, positions[HELD_OUT:], positions[:HELD_OUT], report or (lambda *_: None)
        curve, kept = train(*given, checkpointing=checkpointing, look=self.look())
        state = {name: tensor.clone() for name, tensor in learner.distiller.students.state_dict().items()}
        return state, numbers(curve), kept


@pytest.fixture
def plain(device: Device) -> Worker:
    return Worker(device, features_of(device))


@pytest.fixture
def recorded(plain: Worker) -> Worker:
    return Worker(plain.device, plain.features, WholeSteps(lambda _: Calls()))


def same(found: Result, expected: Result) -> bool:
    states = zip(found[0].values(), expected[0].values(), strict=True)
    return found[1:] == expected[1:] and all(itertools.starmap(torch.equal, states))


@pytest.mark.parametrize("name", RECIPES)
def test_recorded_steps_are_plain_ones_bit_for_bit(name: str, plain: Worker, recorded: Worker) -> None:
    recorded.train(recipe(name, 1, epochs=1))
    assert same(recorded.train(recipe(name)), plain.train(recipe(name)))
    assert recorded.facts == {"compiled": False, "graphed": True, "graphed_batches": [3, 2]}


@pytest.mark.parametrize("name", RECIPES)
def test_plain_steps_read_their_rate_as_recorded_ones_do(
    name: str, plain: Worker, recorded: Worker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """On a GPU that is as float32; the schedule goes on from the exact rate, and so does a checkpoint."""
    run = recipe(name)
    exact = plain.train(run)
    schedules = [optimizer.param_groups[0]["lr"] for optimizer in plain.learner.optimizers]
    monkeypatch.delitem(learner.RATES, "cpu")
    expected = recorded.train(run)
    assert same(plain.train(run), expected)
    assert same(exact, expected) == name.startswith("sgd")  # which on a CPU computes in float32 anyway
    assert [optimizer.param_groups[0]["lr"] for optimizer in plain.learner.optimizers] == schedules
    for worker, done in ((plain, 2), (recorded, 3)):
        with pytest.raises(Interrupted):
            worker.train(run, Checkpointing(RunFolder(tmp_path), run.id, plain.device, 1000.0, StopAfter(done)))
    assert same(plain.train(run, Checkpointing(RunFolder(tmp_path), run.id, plain.device, 1000.0)), expected)


def test_bf16_steps_too(plain: Worker, recorded: Worker) -> None:
    plain.device = recorded.device = open_device("cpu", "bf16")
    plain.features = recorded.features = features_of(plain.device)
    run = recipe("adam, clip, ema, renewed", epochs=2)
    assert same(recorded.train(run), plain.train(run))
    assert recorded.facts["graphed"]


def test_an_epoch_may_be_one_batch(plain: Worker, recorded: Worker) -> None:
    for size, sizes in ((8, [8]), (11, [8])):
        run = recipe("adam, one_cycle", batch_size=size, epochs=2)
        plain.features = recorded.features = features_of(plain.device, batch=size)
        assert same(recorded.train(run), plain.train(run))
        assert recorded.facts["graphed_batches"] == sizes


def test_all_runs_of_a_shape_go_through_one_recording_and_no_tensor_moves(plain: Worker, recorded: Worker) -> None:
    seen: list[dict[str, int]] = []

    def look(*_: object) -> None:
        assert isinstance(recorded.learner, GraphedLearner)
        assert all(parameter.grad is None for parameter in recorded.learner.students.parameters())
        seen.append({name: tensor.data_ptr() for name, tensor in recorded.learner.whole.used()})

    schedules, selections = ("constant", "cosine", "one_cycle"), ("last", "val_normal")
    for seed in range(10):
        changes = {"schedule": schedules[seed % 3], "select": selections[seed % 2], "epochs": 1 + seed % 2}
        run = recipe("sgd, clip, ema, cosine", seed, lr=0.1 + seed / 100, **changes)
        found = recorded.train(run, report=look)
    assert same(found, plain.train(run))
    assert len(recorded.steps.kept) == 1
    assert len(seen) == 15 * (3 + 1)  # a report a step, and one an epoch
    assert len(seen[0]) > 100
    assert all(one == seen[0] for one in seen)


@pytest.mark.parametrize("name", ["sgd, clip, ema, cosine", "adam, one_cycle"])
def test_a_stopped_training_goes_on_as_plain_or_recorded(
    name: str, plain: Worker, recorded: Worker, tmp_path: Path
) -> None:
    run, done = recipe(name, epochs=3), 0
    expected = plain.train(run)
    for at, worker in ((1, recorded), (3, recorded), (5, plain), (7, recorded)):
        stop = Checkpointing(RunFolder(tmp_path), run.id, plain.device, 1000.0, StopAfter(at - done))
        with pytest.raises(Interrupted):
            worker.train(run, stop)
        done = at
        recorded.train(recipe(name, 1, epochs=1))  # something else in between
    found = recorded.train(run, last := Checkpointing(RunFolder(tmp_path), run.id, plain.device, 1000.0))
    assert last.resumed == 4
    assert same(found, expected)
    # As a plain training goes on from its last steps.
    folder = RunFolder(tmp_path / "as plain")
    with pytest.raises(Interrupted):
        recorded.train(run, Checkpointing(folder, run.id, plain.device, 1000.0, StopAfter(8)))
    assert same(plain.train(run, Checkpointing(folder, run.id, plain.device, 1000.0)), expected)


def test_nothing_is_left_of_a_run_that_diverges_or_breaks_off(
    plain: Worker, recorded: Worker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("adam, clip, ema, renewed", "sgd, clip, ema, cosine"):
        run = recipe(name, 1, epochs=2)
        expected = plain.train(run)
        with pytest.raises(DivergedError):
            recorded.train(recipe(name, lr=1e30))
        assert same(recorded.train(run), expected)
        with monkeypatch.context() as patch:  # within a step: gradients are there, and nothing is updated yet
            left = iter([None] * 4)
            patch.setattr(graphed, "clip_grad_norm_", lambda *_, left=left: next(left))
            with pytest.raises(StopIteration):
                recorded.train(recipe(name, 2))
        assert same(recorded.train(run), expected)
    assert len(recorded.steps.kept) == 2


class FailsInTheMiddle(Calls):
    def capture(self, step: Step) -> Step:
        step()
        raise RuntimeError("no room\nfor it")


class ForgetsEveryFourth(Calls):
    def capture(self, step: Step) -> Step:
        calls = itertools.count()
        return lambda: None if next(calls) % 4 == 2 else step()


class Moves(Calls):
    """A tensor of the student's is another one after a step, as in a plug-in that does not change it in place."""

    def __init__(self, students: list[torch.nn.Module]) -> None:
        self.students = students

    def rehearse(self, steps: Step) -> None:
        steps()
        for module in self.students[-1].modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                self.module = module

    def capture(self, step: Step) -> Step:
        def moved() -> None:
            step()
            self.module.running_mean = self.module.running_mean.clone()

        return moved


@pytest.mark.parametrize(
    ("recorder", "says"),
    [
        (FailsInTheMiddle, "RuntimeError: no room for it"),
        (ForgetsEveryFourth, "tensors are not what plain steps make of them: students.encoder.trunk.conv1.weight, "),
        (Moves, "RuntimeError: what is recorded knows memory by its address, and it moved: students.encoder.trunk."),
    ],
)
def test_what_cannot_be_recorded_runs_plain(
    recorder: Any, says: str, plain: Worker, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    students: list[torch.nn.Module] = []
    made = WholeStep.__init__

    def spy(self: WholeStep, distiller: Distiller, *rest: Any) -> None:
        students.append(distiller.students)
        made(self, distiller, *rest)

    monkeypatch.setattr(WholeStep, "__init__", spy)
    worker = Worker(
        plain.device, plain.features, WholeSteps(lambda _: recorder(students) if recorder is Moves else recorder())
    )
    for seed in (0, 1):
        run = recipe("sgd, clip, ema, cosine", seed, epochs=1)
        found = worker.train(run)  # the very one whose steps could not be recorded, first
        assert type(worker.learner) is Learner
        assert worker.facts["graphed"] is False
        assert says in worker.facts["graph_failure"]
        assert same(found, plain.train(run))
    assert caplog.text.count("steps cannot be recorded, they are launched one by one") == 1


def test_a_step_that_draws_on_the_host_runs_plain(
    plain: Worker, recorded: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    loss = Distiller.loss
    monkeypatch.setattr(Distiller, "loss", lambda *args: loss(*args) * (1 + torch.rand(())))
    run = recipe("sgd, val_normal", epochs=1)
    assert same(recorded.train(run), plain.train(run))
    assert "are not what plain steps make of them" in recorded.facts["graph_failure"]


def test_where_nothing_is_recorded(plain: Worker, device: Device) -> None:
    def why(worker: Worker) -> str:
        assert type(worker.learner_of(recipe("adam, one_cycle"))) is Learner
        return worker.facts["graph_failure"]

    steps = WholeSteps(lambda _: Calls())
    assert why(Worker(device, plain.features, WholeSteps())) == "nothing records steps on a cpu"
    assert "not on the device (recomputed)" in why(Worker(device, features_of(device, "recomputed"), steps))
    told: list[str] = []
    take_sections(lambda: told.append(why(Worker(device, plain.features, steps))))
    assert told == ["the sections of its steps are timed"]
    assert not steps.kept


@pytest.mark.parametrize(("students", "kept"), [(OfItsSeed, 0), (SaysSo, 1)])
def test_students_of_plug_ins_share_nothing_unless_they_say_so(
    students: type, kept: int, plain: Worker, recorded: Worker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(methods.STUDENTS, "stfpm", students)
    for seed in (0, 1):
        run = recipe("sgd, val_normal", seed, epochs=1)
        assert same(recorded.train(run), plain.train(run))
    assert len(recorded.steps.kept) == kept


def test_steps_go_with_the_features_that_they_read(recorded: Worker) -> None:
    run = recipe("sgd, val_normal", epochs=1)
    first = recorded.train(run)
    recorded.features = features_of(recorded.device)
    assert same(recorded.train(run), first)
    (whole,) = recorded.steps.kept.values()
    assert whole.features is recorded.features
