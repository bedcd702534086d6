"""What a model costs: parameters and multiply-adds, counted on the meta device, so without weights and memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from dskd.backbones import Backbone, get_backbone
from dskd.config import ConfigError, require
from dskd.distiller import Students
from dskd.embedding import DeepFeatureEmbedding
from dskd.methods import STUDENTS
from dskd.students import DecoderStudent
from dskd.switches import Method
from dskd.teacher import build_trunk


@dataclass(frozen=True)
class Costs:
    """`parameters`: a number; `gmac`: multiply-adds in 1e9 for one image (matrix products and convolutions only)."""

    parameters: int
    gmac: float


def check_side(backbone: str | Backbone, side: int) -> None:
    """Raises ConfigError unless images of `side` x `side` pixels go through the backbone with a decoder."""
    facts = get_backbone(backbone)
    near = facts.nearest_side(side)
    require(
        side == near,
        f"image size {side} is not possible, {facts.name} with a decoder needs a multiple of {facts.multiple}; "
        f"write {near}",
    )


def of_method(method: Method, backbone: str, side: int = 256) -> Costs:
    """The trainable parameters of the students, and the multiply-adds of teacher and students for an image of
    `side` x `side` pixels.

    Raises:
        ConfigError: a side that the backbone does not take, or students that cannot be made or run with it.
    """
    check_side(backbone, side)
    try:
        with torch.device("meta"):
            trunk = build_trunk(backbone)
            students = STUDENTS.get(method.name, Students)(method, backbone)
            image = torch.empty(1, 3, side, side)
            teacher_gmac, pyramid = count(trunk, image)
            students_gmac, _ = count(students, image, pyramid)
    except ConfigError:
        raise
    except Exception as error:  # a student of a plug-in may raise anything
        raise ConfigError(f"it cannot be counted on {backbone} at {side}x{side} ({_one_line(error)})") from None
    learned = sum(parameter.numel() for parameter in students.parameters() if parameter.requires_grad)
    return Costs(learned, teacher_gmac + students_gmac)


def of_backbone(backbone: str | Backbone, side: int = 256) -> dict[str, Costs]:
    """Of the `trunk`, and of the `embedding` and the `decoder` that go with it by default, for an image of
    `side` x `side` pixels.

    Raises:
        ConfigError: a side that the backbone does not take.
    """
    facts = get_backbone(backbone)
    check_side(facts, side)
    costs = {}
    try:
        with torch.device("meta"):
            value: Tensor | Sequence[Tensor] = torch.empty(1, 3, side, side)
            parts = {"trunk": build_trunk(facts), "embedding": DeepFeatureEmbedding(facts)}
            for name, part in {**parts, "decoder": DecoderStudent(facts)}.items():
                gmac, value = count(part, value)
                costs[name] = Costs(sum(parameter.numel() for parameter in part.parameters()), gmac)
    except ConfigError:
        raise
    except Exception as error:  # timm has many ways to refuse a size
        raise ConfigError(f"{facts.name} does not take images of {side}x{side} ({_one_line(error)})") from None
    return costs


def count(module: nn.Module, *inputs: Tensor | Sequence[Tensor]) -> tuple[float, Tensor | list[Tensor]]:
    """Multiply-adds in 1e9, and the output."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        output = module.eval()(*inputs)
    return counter.get_total_flops() / 2e9, output


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
