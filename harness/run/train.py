"""Train one method's students on one category's normal images."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from dskd.anomaly_map import anomaly_map
from dskd.distiller import Distiller
from dskd.methods import Train
from harness.run.device import Device, to_images, whole_batches
from harness.run.features import TeacherFeatures
from harness.spec import TrainSpec


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


def train(
    distiller: Distiller,
    spec: TrainSpec,
    features: TeacherFeatures,
    chosen: np.ndarray,
    held_out: np.ndarray,
    device: Device,
    report: Report,
) -> tuple[list[Epoch], int]:
    """Train the students in place; they end at the epoch that the recipe selects, in eval mode.

    Args:
        features: the teacher's features of all normal images, and the images' pixels.
        chosen, held_out: positions in `features` to train on, and to select the epoch by (`select: val_normal`).
        report: called as (steps done, steps in all, the epoch if one just ended).

    Returns:
        The learning curve, and the epoch that was kept, from 1.

    Raises:
        DivergedError: the loss of an epoch is not finite.
    """
    recipe = spec.method.train
    accelerator = device.accelerator
    students = distiller.students
    students, optimizer = accelerator.prepare(students, make_optimizer(students, recipe))
    trained = _with_students(distiller, students)
    order = torch.Generator().manual_seed(spec.seed)
    steps_per_epoch = math.ceil(len(chosen) / recipe.batch_size)
    curve: list[Epoch] = []
    best_epoch, best_state, best_map = recipe.epochs, None, math.inf
    for epoch in range(1, recipe.epochs + 1):
        started = time.perf_counter()
        students.train()
        # Summed on the device and read once an epoch: reading it each step would make the host wait for the device.
        total = torch.zeros((), device=device.place)
        shuffled = chosen[torch.randperm(len(chosen), generator=order).numpy()]
        for step, start in enumerate(range(0, len(chosen), recipe.batch_size)):
            positions = shuffled[start : start + recipe.batch_size]
            images = to_images(features.pixels[torch.from_numpy(positions).to(device.place)])
            with device.autocast():
                loss = trained.loss(images, features[positions])
            accelerator.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
            total += loss.detach() * len(positions)
            report((epoch - 1) * steps_per_epoch + step + 1, recipe.epochs * steps_per_epoch, None)
        loss_value = (total / len(chosen)).item()
        if not math.isfinite(loss_value):
            raise DivergedError(f"the loss of epoch {epoch} is {loss_value}; a lower train.lr may help")
        seconds = time.perf_counter() - started
        held_out_map = None
        if recipe.select == "val_normal":
            held_out_map = mean_map(trained, spec, features, held_out, device)
            if held_out_map < best_map:
                best_epoch, best_map = epoch, held_out_map
                best_state = copy.deepcopy(distiller.students.state_dict())
        curve.append(Epoch(epoch, loss_value, held_out_map, seconds, len(chosen)))
        report(epoch * steps_per_epoch, recipe.epochs * steps_per_epoch, curve[-1])
    if best_state is not None:
        distiller.students.load_state_dict(best_state)
    distiller.students.eval()
    return curve, best_epoch


def _with_students(distiller: Distiller, prepared: torch.nn.Module) -> Distiller:
    """The same model seen through Accelerate's wrapper of its students."""
    view = copy.copy(distiller)
    view._modules = dict(distiller._modules) | {"students": prepared}
    return view


def make_optimizer(students: torch.nn.Module, recipe: Train) -> torch.optim.Optimizer:
    """The recipe's optimizer over all students, fused (one kernel instead of one per tensor)."""
    if recipe.optimizer == "sgd":
        settings = {"momentum": recipe.momentum, "weight_decay": recipe.weight_decay}
        return torch.optim.SGD(students.parameters(), lr=recipe.lr, fused=True, **settings)
    settings = {"betas": recipe.betas, "weight_decay": recipe.weight_decay}
    return torch.optim.Adam(students.parameters(), lr=recipe.lr, fused=True, **settings)


@torch.inference_mode()
def mean_map(
    distiller: Distiller, spec: TrainSpec, features: TeacherFeatures, positions: np.ndarray, device: Device
) -> float:
    """Mean of the anomaly maps of the positions (normal images): what official STFPM selects its epoch by."""
    distiller.students.eval()
    total = torch.zeros((), device=device.place, dtype=torch.float64)
    for batch, real in whole_batches(len(positions), spec.method.train.batch_size):
        images = to_images(features.pixels[torch.from_numpy(positions[batch]).to(device.place)])
        with device.autocast():
            discrepancies = distiller.discrepancies(images, features[positions[batch]])
        maps = anomaly_map(discrepancies, spec.method.map, tuple(images.shape[-2:]))
        total += maps[:real].double().sum()
    return (total / (len(positions) * spec.image_size**2)).item()
