"""The forward of a training step as compiled graphs, which all runs of one shape in a worker share.

torch keeps a few graphs of a function and then runs eager without a word. Here it must keep the one that it has: shapes
are static, another shape starts anew, and what goes wrong is seen before the first step. On a GPU a step is launched as
CUDA graphs, which know weights by their address: all runs of a shape train the students of the first, in place.
"""

import copy
import logging
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
import torch._inductor
from torch import Tensor
from torch._dynamo.utils import counters

from dskd.config import difference
from dskd.distiller import Distiller, Students
from harness.environment import cpu_flags
from harness.run.batches import index_of, to_images
from harness.run.device import Device
from harness.run.features import TeacherFeatures
from harness.run.sections import section
from harness.spec import TrainSpec

Forward = Callable[[Distiller, Tensor, Sequence[Tensor]], Tensor]
BACKEND = "inductor"
# CUDA graphs (mode reduce-overhead); and no kernel that decides in which order is summed is chosen by timing it: else
# processes that compile for themselves end with other bits (seen on an H100).
INDUCTOR = {"cuda": {"triton.cudagraphs": True, "deterministic": True}}
STEPS_OF_A_TRIAL = {"cuda": 3}  # they are recorded at the second and used from the third
# Passes of a 256x256 image from which `auto` compiles, by kind of device. With AMX a step of 25 ms an image gets a
# tenth shorter and compiling takes up to a minute; other CPUs gain 4 % at most, and no GPU was measured yet.
PAYS = {"amx": 25_000}
# How far a compiled step's loss and gradient may be from a plain one's, by precision; relative, the gradient in its
# norm. Nothing is 1 away, the unrelated more. With inductor on a CPU (STFPM, RD4AD, DSKD at 64x64, batch 4) gradients
# were 1e-5 to 4e-3 away in fp32, and 0.2 to 0.5 in bf16, where plain steps round after each operation; with STFPM on an
# H100 4e-6 and 0.2. The losses were 2e-7 and 2e-4 away at most.
LOSS_APART = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 0.02}
GRADIENT_APART = {"fp32": 0.05, "tf32": 0.2, "bf16": 0.75}
LEAST = 1e-4  # of the whole gradient's norm: a parameter's below it may be rounding, before a BatchNorm
NOTHING = torch.zeros(())
log = logging.getLogger(__name__)


def is_compiled(spec: TrainSpec, device: Device) -> bool:
    """What `compile: auto` comes to: decided by the recipe's passes and the kind of device, never by a clock, so that a
    resumed or repeated training gets the same.
    """
    if spec.compile != "auto":
        return spec.compile
    kind = "amx" if device.place.type == "cpu" and device.precision == "bf16" and "amx_bf16" in cpu_flags() else ""
    passes = spec.method.train.epochs * spec.train_images * math.prod(spec.sides) / 256**2
    return spec.processes == 1 and passes >= PAYS.get(kind, float("inf"))


def shape_of(spec: TrainSpec, device: Device) -> tuple[object, ...]:
    """What a graph depends on."""
    method = {key: value for key, value in difference(spec.method).items() if key not in ("map", "score", "train")}
    return repr(method), spec.backbone, spec.process_batch_size, spec.sides, device.precision, device.place


def inductor_options(kind: str) -> dict[str, Any]:
    """For a kind of device, as far as this torch knows them. Options and no global setting: inductor applies them to
    the backward too, while torch sets `deterministic` back after each forward that it compiles.
    """
    return {key: value for key, value in INDUCTOR.get(kind, {}).items() if key in torch._inductor.list_options()}


class Compiled:
    """The graph of one shape, and the students that all runs of that shape train.

    If compiling fails (no compiler, no memory), or computes another step than the plain one, all steps are plain; the
    log has the reason once, the records too.

    Args:
        distiller: of the first run.
    """

    def __init__(self, spec: TrainSpec, distiller: Distiller, features: TeacherFeatures, device: Device) -> None:
        self.batch, self.students, self.failure = spec.process_batch_size, distiller.students, ""
        torch._dynamo.reset()
        counters.clear()
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        options = inductor_options(device.place.type)
        self.kind, self.is_deterministic = device.place.type, "deterministic" in options
        self.graph: Forward | None = torch.compile(_loss, dynamic=False, backend=BACKEND, options=options or None)
        try:
            with section("compile"):
                _try(self.graph, distiller, features, self.batch, device)
        except Exception as error:  # whatever a compiler runs into or gets wrong, the training does not need it
            self.graph, self.failure = None, " ".join(f"{type(error).__name__}: {error}".split())[:300]
            log.warning("compiling failed, the training runs without: %s", self.failure)

    def forward(self, model: Distiller, images: Tensor, teacher: Sequence[Tensor]) -> Tensor:
        """The loss of a step; an incomplete batch goes through the plain one."""
        graph = self.graph if len(images) == self.batch else None
        return (graph or Distiller.loss)(model, images, teacher)

    def started_as(self, fresh: Students) -> Students:
        """The students to train, in the state of a run's `fresh` ones."""
        if fresh is not self.students:
            self.students.load_state_dict(fresh.state_dict())
            self.students.zero_grad()  # of a run that ended within a step
            self.students.method = fresh.method
        return self.students

    def facts(self) -> dict[str, Any]:
        """For a record, after the training: so many graphs were compiled for the shape, and on a GPU so many of them
        could not be CUDA graphs.
        """
        if self.graph is None:
            return {"compiled": False, "compile_failure": self.failure}
        return {"compiled": True, "graphs": counters["stats"]["unique_graphs"], **self._of_gpu()}

    def _of_gpu(self) -> dict[str, Any]:
        if self.kind != "cuda":
            return {}
        return {"cudagraph_skips": counters["inductor"]["cudagraph_skips"], "deterministic": self.is_deterministic}


def _loss(model: Distiller, images: Tensor, teacher: Sequence[Tensor]) -> Tensor:
    return model.loss(images, teacher)


def _try(forward: Forward, distiller: Distiller, features: TeacherFeatures, batch: int, device: Device) -> None:
    """Steps forward and backward, which compile both; students and generators of random numbers end as they were.

    Raises:
        RuntimeError: the last one's loss or gradient is not that of a plain step.
    """
    before = copy.deepcopy(distiller.students.state_dict())
    distiller.students.train()
    positions = np.arange(batch) % len(features.pixels)
    images = to_images(features.pixels[index_of(positions, device.place)])

    def step(loss_of: Forward) -> Tensor:
        distiller.students.zero_grad()
        with device.autocast():
            loss = loss_of(distiller, images, features[positions])
        loss.backward()
        return loss

    def gradients() -> dict[str, Tensor]:  # copies: a graph's next launch writes to the same memory
        named = distiller.students.named_parameters()
        return {name: p.grad.float().clone() for name, p in named if p.grad is not None}

    try:
        with torch.random.fork_rng([device.place] if device.place.type == "cuda" else []):
            plain = step(Distiller.loss).item(), gradients()
            for _ in range(STEPS_OF_A_TRIAL.get(device.place.type, 1)):
                loss = step(forward)
            if wrong := _wrong((loss.item(), gradients()), plain, device.precision):
                raise RuntimeError(wrong)
    finally:
        distiller.students.zero_grad()
        distiller.students.load_state_dict(before)


def _wrong(step: tuple[float, dict[str, Tensor]], plain: tuple[float, dict[str, Tensor]], precision: str) -> str:
    """What tells a compiled step's loss and gradients (by parameter) from a plain one's; empty if nothing does."""
    (loss, gradients), (expected, wanted) = step, plain
    if not abs(loss - expected) <= LOSS_APART[precision] * abs(expected):
        return f"the loss of a compiled step is {loss:.6g}, that of a plain one {expected:.6g}"
    norms = {name: one.norm().item() for name, one in wanted.items()}
    total = math.hypot(*norms.values())
    lost = [name for name, norm in norms.items() if norm > LEAST * total and not gradients.get(name, NOTHING).any()]
    if lost:
        return f"{len(lost)} of {len(norms)} parameters get no gradient from a compiled step: {', '.join(lost)}"
    apart = math.hypot(*((gradients.get(name, NOTHING) - one).norm().item() for name, one in wanted.items()))
    if not apart <= GRADIENT_APART[precision] * total:
        return f"the gradient of a compiled step is {apart / total:.2g} of its norm away from that of a plain one"
    return ""
