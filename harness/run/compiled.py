"""The forward of a training step as compiled graphs, which all runs of one shape in a worker share.

torch keeps a few graphs of a function and then runs eager without a word. Here it must keep the one that it has: shapes
are static, another shape starts anew, and what goes wrong is seen before the first step.
"""

import copy
import logging
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._dynamo.utils import counters

from dskd.config import difference
from dskd.distiller import Distiller
from harness.environment import cpu_flags
from harness.run.device import Device, index_of, to_images
from harness.run.features import TeacherFeatures
from harness.run.profile import section
from harness.spec import TrainSpec

Forward = Callable[[Distiller, Tensor, Sequence[Tensor]], Tensor]
BACKEND = "inductor"
# Passes of a 256x256 image from which `auto` compiles, by kind of device. With AMX a step of 25 ms an image gets a
# tenth shorter and compiling takes up to a minute; other CPUs gain 4 % at most, and no GPU was measured yet.
PAYS = {"amx": 25_000}
log = logging.getLogger(__name__)
_shape: tuple[Any, ...] | None = None  # of the last run that was to be compiled
_graph: Forward | None = None  # for that shape
_failure = ""  # of compiling it


def is_compiled(spec: TrainSpec, device: Device) -> bool:
    """What `compile: auto` comes to: decided by the recipe's passes and the kind of device, never by a clock, so that a
    resumed or repeated training gets the same.
    """
    if spec.compile != "auto":
        return spec.compile
    kind = "amx" if device.place.type == "cpu" and device.precision == "bf16" and "amx_bf16" in cpu_flags() else ""
    passes = spec.method.train.epochs * spec.data.train_images * (spec.side / 256) ** 2
    return spec.processes == 1 and passes >= PAYS.get(kind, float("inf"))


def forward_of(
    spec: TrainSpec, distiller: Distiller, features: TeacherFeatures, device: Device
) -> tuple[Forward, dict[str, Any]]:
    """The loss of a step for (model, images, teacher's features), and what the record says of it.

    An incomplete batch goes through the plain one. If compiling fails (no compiler, no memory), all do: the log has the
    reason once, the record too.
    """
    global _shape, _graph, _failure
    if not is_compiled(spec, device):
        return Distiller.loss, {"compiled": False}
    batch = spec.process_batch_size
    method = {key: value for key, value in difference(spec.method).items() if key not in ("map", "score", "train")}
    shape = (repr(method), spec.backbone, batch, spec.side, device.precision, device.place)
    if shape != _shape:
        torch._dynamo.reset()
        counters.clear()
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        _shape, _graph = shape, torch.compile(_loss, dynamic=False, backend=BACKEND)
        try:
            with section("compile"):
                _try(_graph, distiller, features, batch, device)
        except Exception as error:  # whatever a compiler runs into, the training does not need it
            _graph, _failure = None, " ".join(f"{type(error).__name__}: {error}".split())[:300]
            log.warning("compiling failed, the training runs without: %s", _failure)
    if _graph is None:
        return Distiller.loss, {"compiled": False, "compile_failure": _failure}
    graph = _graph

    def forward(model: Distiller, images: Tensor, teacher: Sequence[Tensor]) -> Tensor:
        return (graph if len(images) == batch else Distiller.loss)(model, images, teacher)

    return forward, {"compiled": True, "graphs": counters["stats"]["unique_graphs"]}


def _loss(model: Distiller, images: Tensor, teacher: Sequence[Tensor]) -> Tensor:
    return model.loss(images, teacher)


def _try(forward: Forward, distiller: Distiller, features: TeacherFeatures, batch: int, device: Device) -> None:
    """One step forward and backward of a copy of the students, which compiles both."""
    trial = copy.copy(distiller)
    trial._modules = distiller._modules | {"students": copy.deepcopy(distiller.students).train()}
    positions = np.arange(batch) % len(features.pixels)
    images = to_images(features.pixels[index_of(positions, device.place)])
    with device.autocast():
        loss = forward(trial, images, features[positions])
    loss.backward()
