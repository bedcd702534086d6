"""The forward of a training step as compiled graphs: a worker keeps those of several shapes, for all runs of each.

torch keeps a few graphs of a function and then runs eager without a word. Here each shape has a function of its own,
each size of its batches is static, and what goes wrong is seen before the first step. On a GPU a step is launched as
CUDA graphs, which know weights by their address: all runs of a shape train the students of the first, in place.
"""

import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any

import numpy as np
import torch
import torch._inductor
from torch import Tensor, nn
from torch._dynamo.utils import counters

from dskd.distiller import Distiller, Students
from harness.job import shape_of
from harness.run.batches import index_of, to_images
from harness.run.device import Device
from harness.run.features import TeacherFeatures
from harness.run.sections import section
from harness.spec import TrainSpec

Forward = Callable[[Distiller, Tensor, Sequence[Tensor]], Tensor]
State = tuple[Mapping[str, Any], Mapping[str, Tensor]]
BACKEND = "inductor"
# CUDA graphs (mode reduce-overhead); and no kernel that decides in which order is summed is chosen by timing it: else
# processes that compile for themselves end with other bits (seen on an H100).
INDUCTOR = {"cuda": {"triton.cudagraphs": True, "deterministic": True}}
STEPS_OF_A_TRIAL = {"cuda": 3}  # they are recorded at the second and used from the third
# Shapes of which a worker keeps the graphs and, for each, students with their gradients and (on a GPU) the memory that
# they are recorded in: a grid of all seven methods on one backbone compiles each once. One more drops them all, since
# torch gives back the memory of CUDA graphs only when none is left.
MOST_SHAPES = 8
MOST_SIZES = 64  # of batches of one shape: a category may end with an incomplete batch of any size
# Epochs from which an incomplete last batch has a graph of its own, by kind of device: an epoch has one, which a GPU's
# host launches in some 10 ms less, and a category's own size is compiled for as long as the whole batch was (our
# choice, not measured yet). On a CPU a step gains a tenth at most, and it runs plain.
TAIL_PAYS = {"cuda": 1000}
OURS = {"dskd", "torch", "timm"}  # packages whose modules differ in nothing but parameters and buffers
# How far a compiled step's loss and gradient may be from a plain one's, by precision; relative, the gradient in its
# norm. Nothing is 1 away, the unrelated more. With inductor on a CPU (STFPM, RD4AD, DSKD at 64x64, batch 4) gradients
# were 1e-5 to 4e-3 away in fp32, and 0.2 to 0.5 in bf16, where plain steps round after each operation; with STFPM on an
# H100 4e-6 and 0.2. The losses were 2e-7 and 2e-4 away at most.
LOSS_APART = {"fp32": 1e-3, "tf32": 1e-2, "bf16": 0.02}
GRADIENT_APART = {"fp32": 0.05, "tf32": 0.2, "bf16": 0.75}
LEAST = 1e-4  # of the whole gradient's norm: a parameter's below it may be rounding, before a BatchNorm
NOTHING = torch.zeros(())
COUNTED = {"graphs": ("stats", "unique_graphs"), "cudagraph_skips": ("inductor", "cudagraph_skips")}  # by torch
log = logging.getLogger(__name__)


def inductor_options(kind: str) -> dict[str, Any]:
    """For a kind of device, as far as this torch knows them. Options and no global setting: inductor applies them to
    the backward too, while torch sets `deterministic` back after each forward that it compiles.
    """
    return {key: value for key, value in INDUCTOR.get(kind, {}).items() if key in torch._inductor.list_options()}


def sizes_of_batches(kind: str, epochs: int, images: int, batch: int) -> list[int]:
    """Of the batches that are compiled, the whole ones' first: none on a CPU if no batch is whole. Pure.

    Args:
        kind: of device; images: trained on in an epoch.
    """
    whole, rest = [batch] * (images >= batch), images % batch
    has_tail = rest and kind in TAIL_PAYS and (not whole or epochs >= TAIL_PAYS[kind])
    return [*whole, rest] if has_tail else whole


def is_shared(students: Students) -> bool:
    """Whether two students of one method and backbone differ in nothing but parameters and buffers, so that one can be
    put in the state of the other. Modules of plug-ins must say so themselves, each class for itself: by `state_is_all`.
    """
    classes = {type(module) for module in students.modules()}
    return all(one.__module__.partition(".")[0] in OURS or vars(one).get("state_is_all", False) for one in classes)


class Graphs:
    """What a worker keeps of compiled shapes, MOST_SHAPES of them."""

    def __init__(self) -> None:
        self.kept: dict[object, Compiled] = {}
        self.made = 0  # those that are not kept count too

    def of(self, spec: TrainSpec, distiller: Distiller, device: Device) -> "Compiled":
        """Those of the run's shape. The model gets the students that all runs of it train, in the state of its own."""
        key = shape_of(spec), device.precision, device.place
        if (found := self.kept.get(key)) is not None:
            distiller.students = found.started_as(distiller.students)
            return found
        if self.made % MOST_SHAPES == 0:
            self.kept.clear()
            torch._dynamo.reset()
        self.made += 1
        made = Compiled(distiller.students, device)
        if is_shared(made.students):
            self.kept[key] = made
        return made


class Compiled:
    """The graphs of one shape, one for each size of its batches, and the students that all runs of that shape train.

    If compiling fails (no compiler, no memory), or computes another step than the plain one, steps of that size are
    plain; the log has the reason once, the records too.

    Args:
        students: of the first run.
    """

    def __init__(self, students: Students, device: Device) -> None:
        self.students, self.kind = students, device.place.type
        torch._dynamo.config.recompile_limit = MOST_SIZES
        torch._dynamo.config.fail_on_recompile_limit_hit = True
        options = inductor_options(self.kind)
        self.is_deterministic = "deterministic" in options
        self.graph: Forward = torch.compile(_own(_loss), dynamic=False, backend=BACKEND, options=options or None)
        self.failures: dict[int, str] = {}  # by size of batch, empty where it is compiled
        self.sizes: list[int] = []  # that the training at hand has graphs for
        self.counted, self.before = dict.fromkeys(COUNTED, 0), _counts()

    def begin(
        self, sizes: Sequence[int], distiller: Distiller, features: TeacherFeatures, device: Device
    ) -> "Compiled":
        """Before a training on batches of these sizes: compile and try those that are new.

        Args:
            distiller: the model, with the shape's students.
        """
        self.before = _counts()
        for size in sizes:
            if size in self.failures:
                continue
            self.failures[size] = ""
            try:
                with section("compile"):
                    _try(self.graph, distiller, features, size, device)
            except Exception as error:  # whatever a compiler runs into or gets wrong, the training does not need it
                self.failures[size] = " ".join(f"{type(error).__name__}: {error}".split())[:300]
                log.warning("compiling failed, batches of %d run without: %s", size, self.failures[size])
        self.sizes = [size for size in sizes if not self.failures[size]]
        self.failure = next((self.failures[size] for size in sizes if self.failures[size]), "")
        return self

    def forward(self, model: Distiller, images: Tensor, teacher: Sequence[Tensor]) -> Tensor:
        """The loss of a step; a batch of a size that is not compiled goes through the plain one."""
        return (self.graph if len(images) in self.sizes else Distiller.loss)(model, images, teacher)

    def started_as(self, fresh: Students) -> Students:
        """The students to train, in the state of a run's `fresh` ones."""
        put_state(self.students, state_of(fresh))
        self.students.zero_grad()  # of a run that ended within a step
        self.students.method = fresh.method
        return self.students

    def facts(self) -> dict[str, Any]:
        """For a record, after the training: for the shape so many graphs were compiled, of which on a GPU so many could
        not be CUDA graphs; and the sizes of batches that went through them.
        """
        now = _counts()
        self.counted = {key: self.counted[key] + now[key] - self.before[key] for key in COUNTED}
        self.before = now
        failure = {"compile_failure": self.failure} if self.failure else {}
        if not self.sizes:
            return {"compiled": False, **failure}
        of_gpu = {"deterministic": self.is_deterministic} if self.kind == "cuda" else {}
        counted = self.counted if self.kind == "cuda" else {"graphs": self.counted["graphs"]}
        return {"compiled": True, "compiled_batches": self.sizes, **counted, **of_gpu, **failure}


def _own(function: Forward) -> Forward:
    """A copy that has a code object of its own: torch keeps compiled graphs, and counts them, by that."""
    code = function.__code__.replace()
    return FunctionType(code, function.__globals__, function.__name__, function.__defaults__, function.__closure__)


def _counts() -> dict[str, int]:
    """Of this process so far."""
    return {key: counters[group][name] for key, (group, name) in COUNTED.items()}


def state_of(students: nn.Module) -> State:
    """What a step can change: `state_dict`, and the buffers that are not in it too."""
    return students.state_dict(), dict(students.named_buffers())


@torch.no_grad()
def put_state(students: nn.Module, state: State) -> None:
    saved, buffers = state
    students.load_state_dict(saved)
    for name, buffer in students.named_buffers():
        buffer.copy_(buffers[name])


def _loss(model: Distiller, images: Tensor, teacher: Sequence[Tensor]) -> Tensor:
    return model.loss(images, teacher)


def _try(forward: Forward, distiller: Distiller, features: TeacherFeatures, batch: int, device: Device) -> None:
    """Steps forward and backward, which compile both; students and generators of random numbers end as they were.

    Raises:
        RuntimeError: the last one's loss or gradient is not that of a plain step.
    """
    before = copy.deepcopy(state_of(distiller.students))
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
        put_state(distiller.students, before)


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
