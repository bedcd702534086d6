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
from harness.run.learner import Learner
from tests.run.test_train import PIXELS, spec

META = torch.device("meta")


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
    for ema in (0.0, 0.9):
        run = spec(method, train__select="last", train__ema=ema)
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
