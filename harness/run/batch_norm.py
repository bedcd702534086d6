"""BatchNorm's running statistics, computed anew over the training images for weights that are done.

Training leaves an exponential average over its last batches, made while the weights still moved; with a high rate or an
average of weights it fits them badly. Here it is the mean over all batches, as in `torch.optim.swa_utils.update_bn`.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from harness.run.batches import index_of, part_of, to_images
from harness.run.device import Device
from harness.run.features import TeacherFeatures
from harness.run.sections import section

Kept = list[tuple[Tensor, Tensor]]  # buffers with their values


def renewal_batches(positions: np.ndarray, size: int) -> list[np.ndarray]:
    """The training images in whole batches of `size`, one incomplete batch if none is whole. Their order is one fixed
    shuffle: neighbours are often alike, so batches of them would vary less than those that were trained on. Pure.
    """
    order = torch.randperm(len(positions), generator=torch.Generator().manual_seed(0)).numpy()
    whole = len(positions) // size
    return np.split(positions[order[: whole * size]], whole) if whole else [positions[order]]


@torch.no_grad()
def renew(students: nn.Module, features: TeacherFeatures, batches: Sequence[np.ndarray], device: Device) -> Kept:
    """Make the running statistics the mean over the batches of those of each, as a training step computes them, and
    change nothing else, random numbers included. Without BatchNorm nothing is done. The students end in train mode.

    On several processes each takes its part of every batch, as in a step, and all get the mean over the parts.

    Args:
        batches: positions in `features`; all of one size.

    Returns:
        All buffers as they were, for `put_back`.
    """
    layers = [layer for layer in students.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    if not layers:
        return []
    means = [tensor for layer in layers for tensor in (layer.running_mean, layer.running_var)]
    renewed = {id(tensor) for tensor in (*means, *(layer.num_batches_tracked for layer in layers))}
    before = [(buffer, buffer.clone()) for buffer in students.buffers()]
    momenta = [layer.momentum for layer in layers]
    students.train()
    try:
        for layer in layers:
            layer.reset_running_stats()
            layer.momentum = None  # for torch: the mean over all batches since
        with torch.random.fork_rng([device.place] if device.place.type == "cuda" else []):
            for batch in batches:
                part, weight = part_of(batch, device.rank, device.processes)
                _look(students, features, part, device)
    finally:  # the next run may train the same modules
        for layer, momentum in zip(layers, momenta, strict=True):
            layer.momentum = momentum
    if device.processes > 1:
        for tensor in means:
            device.sum(tensor.mul_(weight)).div_(device.processes)
    put_back([(buffer, value) for buffer, value in before if id(buffer) not in renewed])
    return before


@torch.no_grad()
def put_back(kept: Kept) -> None:
    """The buffers get the values that were kept."""
    for buffer, value in kept:
        buffer.copy_(value)


def _look(students: nn.Module, features: TeacherFeatures, positions: np.ndarray, device: Device) -> None:
    images, expected = to_images(features.pixels[index_of(positions, device.place)]), features[positions]
    with section("renew", len(positions)), device.autocast():
        students(images, expected)
