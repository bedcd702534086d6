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

from dskd.anomaly_map import anomaly_map
from dskd.distiller import Distiller
from harness.run.batches import index_of, whole_batches
from harness.run.checkpoint import Checkpointing, OfRank, Parts
from harness.run.device import Device
from harness.run.features import TeacherFeatures
from harness.run.learner import Learner
from harness.run.passes import Look
from harness.spec import TrainSpec

log = logging.getLogger(__name__)


class DivergedError(RuntimeError):
    """The loss is no finite number any more."""


@dataclass(frozen=True)
class Epoch:
    """One line of the learning curve.

    Attributes:
        held_out_map: the mean map over held-out normal images, if the recipe selects by it.
        images: trained on in it.
    """

    epoch: int
    loss: float
    held_out_map: float | None
    seconds: float
    images: int


Report = Callable[[int, int, Epoch | None], None]
Along = Callable[[int, Callable[[], Distiller]], None]


@dataclass
class _EpochLoss:
    """A rank's summed loss of the epoch so far: the learner's `total`."""

    total: torch.Tensor

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {"total": self.total.cpu()}

    def load_state_dict(self, state: dict[str, torch.Tensor]) -> None:
        self.total.copy_(state["total"])

    def end_epoch(self, images: int, device: Device) -> float:
        """The mean over the epoch's images, on all ranks; the next epoch's sum begins."""
        mean = (device.sum(self.total) / (images * device.processes)).item()
        self.total.zero_()
        return mean


@dataclass
class _Progress:
    """Where a training is and what it has found so far.

    Args:
        order: the state of the shuffling generator at the start of the epoch.
        best_epoch: the epoch that is kept, the last one unless `select: val_normal` finds a better one.
        best_map: the mean map of that one on held-out normals.
        best_state: its students; None for those that the training ends with.
        step: steps done in the epoch.
        seconds: that they took.
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

    def select(self, held_out_map: float, students: torch.nn.Module) -> None:
        """Remember the students, if no epoch had a lower mean map on held-out normals."""
        if held_out_map < self.best_map:
            self.best_epoch, self.best_map = self.epoch, held_out_map
            self.best_state = copy.deepcopy(students.state_dict())

    def state_dict(self) -> dict[str, Any]:
        return vars(self) | {"curve": [vars(epoch) for epoch in self.curve]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        curve = [Epoch(**epoch) for epoch in state["curve"]]
        vars(self).update(state | {"curve": curve})


def train(
    learner: Learner,
    features: TeacherFeatures,
    chosen: np.ndarray,
    held_out: np.ndarray,
    report: Report,
    along: Along = lambda _epoch, _settle: None,
    checkpointing: Checkpointing | None = None,
    look: Look | None = None,
) -> tuple[list[Epoch], int]:
    """Train the students in place; they end at the epoch that the recipe selects, in eval mode.

    Args:
        features: the teacher's features of all normal images, and the images' pixels.
        chosen: positions in `features` to train on; held_out: to select the epoch by (`select: val_normal`).
        report: called as (steps done, steps in all, the epoch if one just ended).
        along: called as (epoch, what gives the model as it then is) after each epoch of `evaluate_at`.
        checkpointing: saves the training now and then; one that was stopped goes on. look: at held-out images.

    Returns:
        The learning curve, and the epoch that was kept, from 1; the same on all ranks.

    Raises:
        DivergedError: the loss of an epoch is not finite.
        Interrupted: `checkpointing` was told to stop.
    """
    spec, device, recipe, steps = learner.spec, learner.device, learner.spec.method.train, learner.steps_per_epoch
    order = torch.Generator().manual_seed(spec.seed)
    progress, loss = _Progress(order.get_state(), recipe.epochs), _EpochLoss(learner.total)
    parts: Parts = {}
    if checkpointing is not None:
        parts = {"progress": progress, "loss": OfRank(loss, device), **learner.parts(checkpointing.shards)}
        if checkpointing.restore(parts):
            log.info("resumed at epoch %d step %d", progress.epoch, progress.step)
    for epoch in range(progress.epoch, recipe.epochs + 1):
        started = time.perf_counter() - progress.seconds
        order.set_state(progress.order)
        shuffled = chosen[torch.randperm(len(chosen), generator=order).numpy()]
        learner.begin_epoch(features, shuffled, epoch, progress.step)
        for step in range(progress.step, steps):
            learner.next_step()
            progress.step, progress.seconds = step + 1, time.perf_counter() - started
            report((epoch - 1) * steps + step + 1, recipe.epochs * steps, None)
            if checkpointing is not None:
                checkpointing.after_step(parts, f"in epoch {epoch} of {recipe.epochs}")
        found, seconds = loss.end_epoch(len(chosen), device), time.perf_counter() - started
        if not math.isfinite(found):
            raise DivergedError(f"the loss of epoch {epoch} is {found}; a lower train.lr may help")
        held_out_map = None
        if recipe.select == "val_normal":
            held_out_map = mean_map(learner.settle(features, chosen), spec, features, held_out, device, look)
            progress.select(held_out_map, learner.measured.students)
        elif epoch == recipe.epochs:
            learner.settle(features, chosen)
        progress.end_epoch(Epoch(epoch, found, held_out_map, seconds, len(chosen)), order.get_state())
        report(epoch * steps, recipe.epochs * steps, progress.curve[-1])
        if epoch in spec.evaluate_at:
            along(epoch, lambda: learner.settle(features, chosen))
    learner.finish(progress.best_state)
    return progress.curve, progress.best_epoch


@torch.inference_mode()
def mean_map(
    distiller: Distiller,
    spec: TrainSpec,
    features: TeacherFeatures,
    positions: np.ndarray,
    device: Device,
    look: Look | None = None,
) -> float:
    """Mean of the anomaly maps of the positions (normal images): what official STFPM selects its epoch by. Batches are
    dealt to the ranks, and all know the result. `look`: as of `train`.
    """
    look = look or Look(device)
    look.begin(distiller)
    total = torch.zeros((), device=device.place, dtype=torch.float64)
    for batch, real in whole_batches(len(positions), spec.process_batch_size)[device.rank :: device.processes]:
        pixels = features.pixels[index_of(positions[batch], device.place)]
        discrepancies = look(distiller, pixels, features[positions[batch]])
        maps = anomaly_map(discrepancies, spec.method.map, tuple(pixels.shape[1:3]))
        total += maps[:real].double().sum()
    return (device.sum(total) / (len(positions) * math.prod(spec.sides))).item()
