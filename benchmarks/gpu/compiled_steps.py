"""Compiled training steps against plain ones, step by step: losses, gradients, weights, and who is to blame.

torch 2.11 gives no gradient to what a `torch.autograd.Function` returns if its forward changed it in place and it is
compiled (pytorch#180642), by any backend: the students then learned from plain steps only. `in_place` shows whether
this torch does; the other variants tell Dynamo, inductor, CUDA graphs and the harness's own path apart.
"""

from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import torch
from scene import Scene
from sheet import Sheet, figures
from torch import Tensor
from torch._dynamo.utils import counters

from dskd import Distiller
from harness.run.batches import index_of, to_images
from harness.run.compiled import Compiled, _loss
from harness.run.learner import make_optimizers

STEPS = 8
FP32, BF16 = 0.01, 0.05  # how far losses may be from plain ones, relative


@dataclass(frozen=True)
class Variant:
    """Args:
    backend: of torch.compile, none for plain steps.
    trial: as the harness compiles, with a trial before the training.
    mark: say where a step begins.
    clone: gradients are copied out of the graph's memory before they are used.
    fused: the optimizer.
    tail: every other batch is an incomplete one, which is never compiled.
    """

    name: str
    backend: str = ""
    mode: str | None = None
    trial: bool = False
    mark: bool = False
    clone: bool = False
    fused: bool = True
    tail: bool = True


GRAPHS = {"backend": "inductor", "mode": "reduce-overhead"}
PLAIN = Variant("plain")
ON_CPU = (Variant("Dynamo and AOTAutograd", "aot_eager"), Variant("as the harness does", "aot_eager", trial=True))
ON_CUDA = (
    ON_CPU[0],
    Variant("as the harness does", **GRAPHS, trial=True),
    Variant("inductor, CUDA graphs", **GRAPHS),
    Variant("inductor", "inductor"),
    Variant("graphs, whole batches only", **GRAPHS, tail=False),
    Variant("graphs, steps marked", **GRAPHS, mark=True),
    Variant("graphs, gradients cloned", **GRAPHS, clone=True),
    Variant("graphs, optimizer not fused", **GRAPHS, fused=False),
    Variant("AOTAutograd, CUDA graphs", "cudagraphs"),
)


@dataclass
class Trace:
    """Of a variant's steps: losses; gradients of the first three; weights after the first two; where gradients lay."""

    losses: list[float] = field(default_factory=list)
    gradients: list[dict[str, Tensor]] = field(default_factory=list)
    weights: list[dict[str, Tensor]] = field(default_factory=list)
    none: int = 0
    zero: int = 0
    other_strides: int = 0
    pointers: list[tuple[int, ...]] = field(default_factory=list)
    counted: dict[str, Any] = field(default_factory=dict)

    def after_backward(self, loss: Tensor, students: torch.nn.Module) -> None:
        self.losses.append(loss.item())
        named = dict(students.named_parameters())
        made = {name: p.grad for name, p in named.items() if p.grad is not None}
        self.pointers.append(tuple(one.data_ptr() for one in made.values()))
        self.none += len(named) - len(made)
        self.zero += sum(not bool(one.any()) for one in made.values())
        self.other_strides += sum(made[name].stride() != named[name].stride() for name in made)
        if len(self.gradients) < 3:
            self.gradients.append({name: one.detach().clone() for name, one in made.items()})

    def after_step(self, students: torch.nn.Module) -> None:
        if len(self.weights) < 2:
            self.weights.append({name: p.detach().clone() for name, p in students.named_parameters()})


def run(sheet: Sheet) -> None:
    """The block."""
    in_place(sheet)
    scene = Scene(sheet.kind, "stfpm", 32 if sheet.small else 64, 6, 4, "fp32")
    worst = 0.0
    for variant in ON_CPU if sheet.small else ON_CUDA:
        if not sheet.enough(variant.name, 15):
            continue
        with sheet.trying(variant.name):
            worst = max(worst, compare(sheet, scene, variant, FP32))
    if not sheet.small and sheet.enough("bf16", 35):
        with sheet.trying("as the harness does, bf16"):
            compare(
                sheet, Scene(sheet.kind, "stfpm", 64, 6, 4), Variant("as the harness does", **GRAPHS, trial=True), BF16
            )
    sheet.say(f"losses of {STEPS} compiled steps within {figures(worst, 2)} of plain ones (fp32, relative)")


def in_place(sheet: Sheet) -> None:
    """Whether this torch loses the gradient of an output that was changed in place; a fact, not a check: the package
    does no such thing any more.
    """

    class Halved(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return (x + 0).div_(2)

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient / 2

    with sheet.trying("in place"):
        torch._dynamo.reset()
        x = torch.ones(3, requires_grad=True)
        torch.compile(lambda given: Halved.apply(given * 2).sum(), backend="aot_eager")(x).backward()
        lost = not torch.equal(x.grad, torch.ones(3))
        sheet.fact("compiled in-place outputs of autograd.Function lose their gradient (pytorch#180642)", lost)


def compare(sheet: Sheet, scene: Scene, variant: Variant, tolerance: float) -> float:
    """A variant's row and check; the largest relative difference of its losses."""
    plain = steps(scene, Variant("plain", fused=variant.fused, tail=variant.tail))
    found = steps(scene, variant)
    losses = max(abs(a - b) / abs(b) for a, b in zip(found.losses, plain.losses, strict=True))
    gradients = [apart(*pair) for pair in zip(found.gradients, plain.gradients, strict=True)]
    weights = [apart(*pair) for pair in zip(found.weights, plain.weights, strict=True)]
    worst = sorted(gradients[0], key=gradients[0].get, reverse=True)[:5]
    name = f"{variant.name}, {scene.precision}"
    sheet.row(
        "compiled steps",
        variant=name,
        losses=[round(loss, 5) for loss in found.losses],
        plain=[round(loss, 5) for loss in plain.losses],
        gradients_none_zero_strides=f"{found.none}/{found.zero}/{found.other_strides}",
        plain_none_zero_strides=f"{plain.none}/{plain.zero}/{plain.other_strides}",
        gradient_apart=[figures(max(one.values()), 2) for one in gradients],
        weights_apart=[figures(max(one.values()), 2) for one in weights],
        worst_gradients={one: figures(gradients[0][one], 2) for one in worst},
        gradient_addresses_seen=len(set(found.pointers)),
        **found.counted,
    )
    sheet.check(name, losses <= tolerance, f"losses within {figures(losses, 2)}, allowed {tolerance}")
    return losses


def apart(found: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, float]:
    """Of each parameter |a - b| / |b|; infinite where it is missing. Where b is next to nothing beside the largest, it
    is measured by that.
    """
    sizes = {name: one.norm().item() for name, one in expected.items()}
    least = 1e-4 * max(sizes.values())
    return {
        name: (found[name] - one).norm().item() / max(sizes[name], least) if name in found else float("inf")
        for name, one in expected.items()
    }


def steps(scene: Scene, variant: Variant) -> Trace:
    """Train STEPS steps from the same start."""
    torch._dynamo.reset()
    counters.clear()
    model, features, trace = scene.model(), scene.features(), Trace()
    forward = forward_of(scene, variant, model, features)
    optimizer = optimizer_of(scene, variant, model)
    whole = (positions for positions in scene.batches() if variant.tail or len(positions) == scene.batch)
    for positions in islice(whole, STEPS):
        if variant.mark:
            torch.compiler.cudagraph_mark_step_begin()
        images, expected = to_images(scene.pixels[index_of(positions, scene.place)]), features[positions]
        call = forward if len(positions) == scene.batch else Distiller.loss
        with scene.device.autocast():
            loss = call(model, images, expected) * 1.0
        loss.backward()
        if variant.clone:
            for p in model.students.parameters():
                p.grad = p.grad.clone()
        trace.after_backward(loss, model.students)
        optimizer.step()
        optimizer.zero_grad()
        trace.after_step(model.students)
    trace.counted = {
        "graphs": counters["stats"]["unique_graphs"],
        "cudagraph_skips": counters["inductor"]["cudagraph_skips"],
        "static_inputs_copied": counters["inductor"]["cudagraph_recorded_non_static_inputs"],
    }
    return trace


def forward_of(scene: Scene, variant: Variant, model: Distiller, features: Any) -> Any:
    if not variant.backend:
        return Distiller.loss
    if variant.trial:
        import harness.run.compiled as module

        kept, module.BACKEND = module.BACKEND, variant.backend
        try:
            made = Compiled(model.students, scene.device).begin([scene.batch], model, features, scene.device)
        finally:
            module.BACKEND = kept
        if made.failure:
            raise RuntimeError(made.failure)
        return made.forward
    return torch.compile(_loss, dynamic=False, backend=variant.backend, mode=variant.mode)


def optimizer_of(scene: Scene, variant: Variant, model: Distiller) -> torch.optim.Optimizer:
    recipe = scene.config.train
    if variant.fused:
        return make_optimizers(model.students, recipe)[0]
    rest = {"momentum": recipe.momentum, "weight_decay": recipe.weight_decay, "foreach": False}
    return torch.optim.SGD(model.students.parameters(), lr=recipe.lr, **rest)
