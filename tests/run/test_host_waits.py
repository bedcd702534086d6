"""No training step waits for the device or launches an operation for each tensor, as seen by torch's dispatcher on the
meta device: what asks for a value there, or copies one over, would wait on a GPU.
"""

import contextlib
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dskd import Distiller, Teacher
from harness.run.device import Device, open_device
from harness.run.features import TeacherFeatures
from harness.run.graphed import WholeSteps
from harness.run.learner import Learner
from harness.run.recorder import Calls
from tests.run.test_train import PIXELS, spec

META = torch.device("meta")
# Of a step that clips and averages, plain and as it is recorded; equal with these versions of torch.
OPERATIONS = {"stfpm": (335, 337), "dskd": (737, 739), "reverse_distillation": (447, 449)}
COUNTED_WITH = ("2.11", "2.13")


class Dispatched(TorchDispatchMode):
    """Counts the operations, and notes those that a host would wait in."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.waits: list[str] = []

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        leaves = tree_leaves((args, kwargs, result))
        places = {leaf.device.type for leaf in leaves if isinstance(leaf, torch.Tensor)}
        self.counts[name] += "meta" in places
        if "meta" in places and (len(places) > 1 or name in ("_local_scalar_dense", "nonzero", "masked_select")):
            self.waits.append(f"{name} on {sorted(places)}")
        return result


@pytest.fixture
def on_meta(monkeypatch: pytest.MonkeyPatch) -> Device:
    """A device that computes nothing. It has no autocast, no fused optimizers, and its positions are there already."""
    monkeypatch.setattr(Device, "place", property(lambda _: META))
    monkeypatch.setattr(Device, "autocast", lambda _: contextlib.nullcontext())
    monkeypatch.setattr("dskd.discrepancy.torch.autocast", lambda *_, **__: contextlib.nullcontext())
    for name in ("SGD", "Adam"):
        plain = getattr(torch.optim, name)
        foreach = lambda *args, fused, plain=plain, **options: plain(*args, foreach=True, **options)  # noqa: E731
        monkeypatch.setattr(f"harness.run.learner.torch.optim.{name}", foreach)
    for room in ("learner", "features"):
        index = lambda positions, _: torch.empty(len(positions), dtype=torch.int64, device=META)  # noqa: E731
        monkeypatch.setattr(f"harness.run.{room}.index_of", index)
    return open_device("cpu", "fp32")


@pytest.mark.parametrize("method", ["stfpm", "dskd", "reverse_distillation"])
def test_no_step_waits_and_the_average_adds_a_launch_or_two(method: str, on_meta: Device) -> None:
    launched = []
    for more in ({}, {"train__ema": 0.9}, {"train__ema": 0.9, "train__clip": 0.1}):
        run = spec(method, train__select="last", **more)
        model = Distiller(run.method, "resnet18", Teacher("resnet18")).to(META, memory_format=torch.channels_last)
        features = TeacherFeatures(model.teacher, PIXELS.to(META), 4, on_meta, {"device": 1e9, "host": 0.0})
        learner = Learner(model, run, on_meta, 8)
        learner.students.train()
        learner.step(features, np.arange(4))
        with Dispatched() as seen:
            learner.step(features, np.arange(4))
        assert not seen.waits
        launched.append(sum(seen.counts.values()))
    assert 200 < launched[0] < launched[1] <= launched[0] + 2, launched


class Counted(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.count += 1
        return function(*args, **(kwargs or {}))


@pytest.mark.parametrize("method", ["stfpm", "dskd", "reverse_distillation"])
def test_a_step_launches_as_many_operations_as_ever(method: str) -> None:
    """Of torch on a CPU: views count too, which launch nothing. Whoever adds some to a step changes the number here."""
    if not torch.__version__.startswith(COUNTED_WITH):
        pytest.skip(f"counted with torch {' and '.join(COUNTED_WITH)}; another one may divide a step otherwise")
    threads = torch.get_num_threads()
    run, device = spec(method, train__select="last", train__ema=0.9, train__clip=0.1), open_device("cpu", "fp32")
    teacher, found = Teacher("resnet18").to(memory_format=torch.channels_last), []
    for steps in (None, WholeSteps(lambda _: Calls())):
        model = Distiller(run.method, "resnet18", teacher)
        model.students.to(memory_format=torch.channels_last)
        features = TeacherFeatures(teacher, PIXELS[:8, :32, :32].contiguous(), 4, device)
        learner = Learner(model, run, device, 8)
        if steps is not None:
            learner, _ = steps.learner(run, model, device, features, 8)
        learner.begin_epoch(features, np.arange(8), 1)
        learner.next_step()
        with Counted() as seen:
            learner.next_step()
        found.append(seen.count)
    torch.set_num_threads(threads)
    assert tuple(found) == OPERATIONS[method]
