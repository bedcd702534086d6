"""How far two feature maps are apart. Always in float32 with autocast off: under CPU autocast a cosine comes back in
bf16 (4 distinct values over 128 positions), and 1 - cos loses its digits near 0, where normal data live.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from dskd.switches import Loss

FACTORS = {"pixel_cos": 1.0, "l2norm": 2.0}  # of the half squared distance, by kind
EPSILON = 1e-12  # the least norm that a vector is divided by


def per_position(teacher: Tensor, student: Tensor) -> Tensor:
    """D(i, j) = 1 - cos over channels = half the squared distance of the normalised vectors (STFPM, RD4AD).

    Maps (B, C, h, w) to (B, h, w) in float32, in [0, 2]; [0, 1] for non-negative features. Differentiable in `student`.
    """
    with torch.autocast(teacher.device.type, enabled=False):
        return _HalfSquaredDistance.apply(teacher.detach().float(), student.float())


def per_image(teacher: Tensor, student: Tensor) -> Tensor:
    """1 - cos of the flattened maps (the loss of RD4AD's code): (B, C, h, w) to (B,) in float32."""
    return per_position(teacher.flatten(1), student.flatten(1))


def loss(teacher: Tensor, student: Tensor, config: Loss) -> Tensor:
    """Mean discrepancy of one scale of one student by `config.kind`, a float32 scalar; maps (B, C, h, w)."""
    if config.kind == "flat_cos":
        return per_image(teacher, student).mean()
    if config.kind == "mse":
        return _mse(teacher, student)
    mean = per_position(teacher, student).mean()
    if config.kind == "cos_mse":
        return mean + config.mse_weight * _mse(teacher, student)
    return FACTORS[config.kind] * mean


def _mse(teacher: Tensor, student: Tensor) -> Tensor:
    return functional.mse_loss(student.float(), teacher.detach().float())


def of_students(teacher: Tensor, students: Sequence[Tensor]) -> dict[str, Tensor]:
    """How far several students are, together, from the teacher (B, C, h, w) and from each other: each (B, h, w).

    With m the mean of the students' unit vectors ŝ: `mean_feature` is 1 - cos(t, m), `error` ½‖t̂ - m‖² and
    `disagreement` the variance ½(1 - ‖m‖²); error + disagreement is the mean of the students' discrepancies.
    """
    with torch.autocast(teacher.device.type, enabled=False):
        mean = torch.stack([functional.normalize(student.float(), eps=EPSILON) for student in students]).mean(dim=0)
        target = functional.normalize(teacher.float(), eps=EPSILON)
        return {
            "mean_feature": per_position(teacher, mean),
            "error": (target - mean).square().sum(dim=1) / 2,
            "disagreement": (1 - mean.square().sum(dim=1)) / 2,
        }


class _HalfSquaredDistance(torch.autograd.Function):
    """½‖t̂ - ŝ‖² over dim 1. Its own backward, -(e + D ŝ)/‖s‖ with e = t̂ - ŝ, passes over memory three times where the
    graph of the plain formula does about ten: at the fine scales that was a quarter of a training step on a CPU.
    """

    @staticmethod
    def forward(ctx: Any, teacher: Tensor, student: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(student, dim=1, keepdim=True).clamp_min_(EPSILON)
        unit = student / norm
        difference = teacher / torch.linalg.vector_norm(teacher, dim=1, keepdim=True).clamp_min_(EPSILON)
        difference -= unit
        # Not in place: compiled by torch 2.11, what is returned and was changed gets no gradient (pytorch#180642).
        distance = torch.linalg.vector_norm(difference, dim=1).square() / 2
        ctx.save_for_backward(difference, unit, norm, distance)
        return distance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        difference, unit, norm, distance = ctx.saved_tensors
        # A student vector of zeros has no direction to learn, and none is made up by dividing by EPSILON.
        scale = torch.where(norm > EPSILON, -gradient.unsqueeze(1) / norm, 0.0)
        return None, (unit * distance.unsqueeze(1)).add_(difference).mul_(scale)
