"""Train one method's students on one category's normal images."""

import copy
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR, LRScheduler, OneCycleLR
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from dskd.anomaly_map import anomaly_map
from dskd.distiller import Distiller
from dskd.switches import Train
from harness.run.checkpoint import Checkpointing, OfRank, ShardedEngine, Stateful
from harness.run.compiled import Forward
from harness.run.device import Device, index_of, to_images, whole_batches
from harness.run.features import TeacherFeatures
from harness.run.processes import dense_copy, fit_to_recipe, gather_parameters, part_of, share_batch_norm
from harness.run.profile import section
from harness.spec import TrainSpec

log = logging.getLogger(__name__)


class DivergedError(RuntimeError):
    """The loss is no finite number any more."""


@dataclass(frozen=True)
class Epoch:
    """One line of the learning curve. `held_out_map`: mean map over held-out normals, if the recipe selects by it."""

    epoch: int
    loss: float
    held_out_map: float | None
    seconds: float
    images: int


Report = Callable[[int, int, Epoch | None], None]
Along = Callable[[int, Distiller], None]


@dataclass
class _EpochLoss:
    """A rank's summed loss of the epoch so far, on the device: read once an epoch, since reading it in each step would
    make the host wait for the device.
    """

    total: torch.Tensor

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"total": self.total.cpu()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.total.copy_(state["total"])


@dataclass
class _Progress:
    """Where a training is and what it has found so far.

    Args:
        order: the state of the shuffling generator at the start of the epoch.
        step: steps done in the epoch; seconds: that they took.
        best_epoch, best_map, best_state: of `select: val_normal`.
    """

    order: torch.Tensor
    best_epoch: int
    best_map: float = math.inf
    best_state: dict[str, torch.Tensor] | None = None
    epoch: int = 1
    step: int = 0
    seconds: float = 0.0
    curve: list[Epoch] = field(default_factory=list)

    def end_epoch(self, found: Epoch, order: torch.Tensor) -> None:
        """Move on to the next epoch's start."""
        self.curve.append(found)
        self.order = order
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0

    def state_dict(self) -> dict[str, Any]:
        return vars(self) | {"curve": [vars(epoch) for epoch in self.curve]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        curve = [Epoch(**epoch) for epoch in state["curve"]]
        vars(self).update(state | {"curve": curve})


def train(
    distiller: Distiller,
    spec: TrainSpec,
    features: TeacherFeatures,
    chosen: np.ndarray,
    held_out: np.ndarray,
    device: Device,
    report: Report,
    along: Along = lambda _epoch, _distiller: None,
    checkpointing: Checkpointing | None = None,
    forward: Forward | None = None,
) -> tuple[list[Epoch], int]:
    """Train the students in place; they end at the epoch that the recipe selects, in eval mode.

    On several processes the batches are those of one process (same seed, same order) and each trains on its part of
    each (`part_of`), so that the gradient is the mean over the global batch and the curve's loss is too. It equals one
    process that adds up gradients of micro-batches, not one that sees whole batches: BatchNorm normalises each part by
    itself (unless `train.batch_norm: sync`), and rank 0's running statistics are those that are kept and measured. All
    ranks end with the same students, curve and epoch.

    Args:
        features: the teacher's features of all normal images, and the images' pixels.
        chosen, held_out: positions in `features` to train on, and to select the epoch by (`select: val_normal`).
        report: called as (steps done, steps in all, the epoch if one just ended).
        along: called as (epoch, the model as it then is) after each epoch of `spec.evaluate_at`.
        checkpointing: saves the training now and then; if it has one that was stopped, that one goes on.
        forward: a step's loss of (model, images, teacher's features), see `harness.run.compiled`; None for the plain
            one.

    Returns:
        The learning curve, and the epoch that was kept, from 1.

    Raises:
        DivergedError: the loss of an epoch is not finite.
        Interrupted: `checkpointing` was told to stop.
    """
    recipe = spec.method.train
    accelerator = device.accelerator
    if recipe.batch_norm == "sync":
        share_batch_norm(distiller.students)
    device.share(distiller.students)  # one seed, one start; but nothing else guards it under every strategy
    average = AveragedModel(distiller.students, **_average(recipe.ema)) if recipe.ema else None
    learners = distiller.students if device.strategy == "ddp" else dense_copy(distiller.students)
    optimizers = make_optimizers(learners, recipe)
    steps_per_epoch = math.ceil(len(chosen) / recipe.batch_size)
    schedulers = [scheduler(optimizer, recipe, recipe.epochs * steps_per_epoch) for optimizer in optimizers]
    fit_to_recipe(accelerator, recipe, spec.process_batch_size)
    if device.processes > 1:
        students, *optimizers = accelerator.prepare(learners, *optimizers)
    else:  # for one process Accelerate's wrapper only casts the students' maps to float32, which their loss does itself
        students, optimizers = learners, [accelerator.prepare(optimizer) for optimizer in optimizers]
    trained = _with_students(distiller, students)
    # Without the wrappers around what is trained: in those every pass would be a meeting of all ranks.
    measured = _with_students(distiller, average.module) if average else distiller

    def settle() -> None:
        """Bring what is measured to where the training is, equal on all ranks."""
        if learners is not distiller.students:
            gather_parameters(learners, distiller.students)
        device.share(measured.students)

    order = torch.Generator().manual_seed(spec.seed)
    progress = _Progress(order.get_state(), recipe.epochs)
    loss_so_far = _EpochLoss(torch.zeros((), device=device.place))
    parts: dict[str, Stateful] = {"progress": progress, "loss": OfRank(loss_so_far, device)}
    if learners is distiller.students:
        parts |= {"students": learners}
        parts |= {f"optimizer {number}": optimizer for number, optimizer in enumerate(optimizers)}
    elif checkpointing is not None:
        parts |= {"engine": ShardedEngine(students, checkpointing.shards)}
    parts |= {f"schedule {number}": schedule for number, schedule in enumerate(schedulers) if schedule is not None}
    parts |= {"average": average} if average else {}
    if checkpointing is not None and checkpointing.restore(parts):
        log.info("resumed at epoch %d step %d", progress.epoch, progress.step)
    for epoch in range(progress.epoch, recipe.epochs + 1):
        started = time.perf_counter() - progress.seconds
        students.train()
        order.set_state(progress.order)
        shuffled = chosen[torch.randperm(len(chosen), generator=order).numpy()]
        for step in range(progress.step, steps_per_epoch):
            positions = shuffled[step * recipe.batch_size :][: recipe.batch_size]
            part, weight = part_of(positions, device.rank, device.processes)
            with section("batch"):
                images = to_images(features.pixels[index_of(part, device.place)])
                expected = features[part]
            with section("forward", len(part)), device.autocast():
                loss = (forward or Distiller.loss)(trained, images, expected) * weight
            with section("backward", len(part)):
                accelerator.backward(loss)
            with section("optimizer"):
                if recipe.clip:
                    accelerator.clip_grad_norm_(students.parameters(), recipe.clip)
                for optimizer, schedule in zip(optimizers, schedulers, strict=True):
                    optimizer.step()
                    optimizer.zero_grad()
                    if schedule is not None:
                        schedule.step()
                if average:
                    average.update_parameters(learners)
            loss_so_far.total += loss.detach() * len(positions)
            progress.step, progress.seconds = step + 1, time.perf_counter() - started
            report((epoch - 1) * steps_per_epoch + step + 1, recipe.epochs * steps_per_epoch, None)
            if checkpointing is not None:
                checkpointing.after_step(parts, f"in epoch {epoch} of {recipe.epochs}")
        loss_value = (device.sum(loss_so_far.total) / (len(chosen) * device.processes)).item()
        loss_so_far.total.zero_()
        if not math.isfinite(loss_value):
            raise DivergedError(f"the loss of epoch {epoch} is {loss_value}; a lower train.lr may help")
        seconds = time.perf_counter() - started
        held_out_map = None
        if recipe.select == "val_normal" or epoch in (*spec.evaluate_at, recipe.epochs):
            settle()
        if recipe.select == "val_normal":
            held_out_map = mean_map(measured, spec, features, held_out, device)
            if held_out_map < progress.best_map:
                progress.best_epoch, progress.best_map = epoch, held_out_map
                progress.best_state = copy.deepcopy(measured.students.state_dict())
        progress.end_epoch(Epoch(epoch, loss_value, held_out_map, seconds, len(chosen)), order.get_state())
        report(epoch * steps_per_epoch, recipe.epochs * steps_per_epoch, progress.curve[-1])
        if epoch in spec.evaluate_at:
            along(epoch, measured)
    best_state = progress.best_state
    if best_state is None and average:
        best_state = average.module.state_dict()
    if best_state is not None:
        distiller.students.load_state_dict(best_state)
    distiller.students.eval()
    if learners is not distiller.students:
        accelerator.free_memory()  # the engine of DeepSpeed does not go by itself
    return progress.curve, progress.best_epoch


def _with_students(distiller: Distiller, prepared: torch.nn.Module) -> Distiller:
    """The same model seen through Accelerate's wrapper of its students."""
    view = copy.copy(distiller)
    view._modules = dict(distiller._modules) | {"students": prepared}
    return view


def make_optimizers(students: torch.nn.Module, recipe: Train) -> list[torch.optim.Optimizer]:
    """The recipe's optimizer over all students, or one for the encoder and one for the rest (`split`); fused (one
    kernel instead of one per tensor).
    """
    sgd = {"momentum": recipe.momentum, "weight_decay": recipe.weight_decay, "fused": True}
    adam = {"lr": recipe.lr, "betas": recipe.betas, "fused": True}
    if recipe.optimizer == "sgd":
        return [torch.optim.SGD(students.parameters(), lr=recipe.lr, **sgd)]
    if recipe.optimizer == "adam":
        return [torch.optim.Adam(students.parameters(), weight_decay=recipe.weight_decay, **adam)]
    named = dict(students.named_parameters())
    encoder = {name for name in named if name.startswith("encoder.")}
    return [
        torch.optim.SGD([named[name] for name in named if name in encoder], lr=recipe.encoder_lr, **sgd),
        torch.optim.Adam([named[name] for name in named if name not in encoder], **adam),
    ]


def scheduler(optimizer: torch.optim.Optimizer, recipe: Train, steps: int) -> LRScheduler | None:
    """The recipe's schedule of the learning rate over `steps`; None for a constant one."""
    if recipe.schedule == "cosine":
        return CosineAnnealingLR(optimizer, T_max=steps)
    if recipe.schedule == "one_cycle":
        peak = optimizer.param_groups[0]["lr"]
        # Momentum stays the recipe's: torch would by default cycle it, and with Adam beta1, between 0.85 and 0.95.
        return OneCycleLR(optimizer, max_lr=peak, total_steps=steps, cycle_momentum=False)
    return None


def _average(decay: float) -> dict[str, Any]:
    """Of BatchNorm's buffers too: the averaged students see other activations than those that were trained."""
    return {"multi_avg_fn": get_ema_multi_avg_fn(decay), "use_buffers": True}


@torch.inference_mode()
def mean_map(
    distiller: Distiller, spec: TrainSpec, features: TeacherFeatures, positions: np.ndarray, device: Device
) -> float:
    """Mean of the anomaly maps of the positions (normal images): what official STFPM selects its epoch by. Batches are
    dealt to the ranks, and all know the result.
    """
    distiller.students.eval()
    total = torch.zeros((), device=device.place, dtype=torch.float64)
    for batch, real in whole_batches(len(positions), spec.process_batch_size)[device.rank :: device.processes]:
        images = to_images(features.pixels[index_of(positions[batch], device.place)])
        with device.autocast():
            discrepancies = distiller.discrepancies(images, features[positions[batch]])
        maps = anomaly_map(discrepancies, spec.method.map, tuple(images.shape[-2:]))
        total += maps[:real].double().sum()
    return (device.sum(total) / (len(positions) * spec.side**2)).item()
