"""What a model costs: parameters and multiply-adds, counted on the meta device, so without weights and memory."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dskd.backbones import Backbone
from dskd.config import ConfigError, require
from dskd.count import count
from dskd.distiller import Students
from dskd.embedding import DeepFeatureEmbedding
from dskd.lookup import get_backbone
from dskd.methods import STUDENTS
from dskd.size import Size, sides, simplest, size_text
from dskd.students import DecoderStudent
from dskd.switches import Method
from dskd.trunk import build_trunk


@dataclass(frozen=True)
class Costs:
    """Of a model, or of a part of one.

    Attributes:
        parameters: how many.
        gmac: multiply-adds in 1e9 for one image (matrix products and convolutions only).
    """

    parameters: int
    gmac: float


def check_size(backbone: str | Backbone, size: Size) -> None:
    """Raises ConfigError unless images of that size go through the backbone with a decoder."""
    facts = get_backbone(backbone)
    near = facts.nearest_size(size)
    require(
        simplest(size) == near,
        f"image size {size_text(size)} is not possible, {facts.name} with a decoder needs a multiple of "
        f"{facts.multiple}; write {size_text(near)}",
    )


def of_method(method: Method, backbone: str, size: Size = 256) -> Costs:
    """The trainable parameters of the students, and the multiply-adds of teacher and students for an image of `size`
    pixels.

    Raises:
        ConfigError: a size that the backbone does not take, or students that cannot be made or run with it.
    """
    facts = get_backbone(backbone)
    check_size(facts, size)
    try:
        with torch.device("meta"), torch.no_grad():
            trunk = build_trunk(facts).eval()
            students = STUDENTS.get(method.name, Students)(method, backbone).eval()
            image = torch.empty(1, 3, *sides(size))
            of_teacher, pyramid = count(trunk, image)
            of_students, _ = count(students, image, pyramid)
    except ConfigError:
        raise
    except Exception as error:  # a student of a plug-in may raise anything
        at = size_text(sides(size))
        raise ConfigError(f"it cannot be counted on {backbone} at {at} ({_one_line(error)})") from None
    learned = sum(parameter.numel() for parameter in students.parameters() if parameter.requires_grad)
    return Costs(learned, of_teacher / 1e9 + of_students / 1e9)


def of_backbone(backbone: str | Backbone, size: Size = 256) -> dict[str, Costs]:
    """Of the `trunk`, and of the `embedding` and the `decoder` that go with it by default, for an image of `size`
    pixels.

    Raises:
        ConfigError: a size that the backbone does not take.
    """
    facts = get_backbone(backbone)
    check_size(facts, size)
    costs = {}
    try:
        with torch.device("meta"), torch.no_grad():
            value: Tensor | Sequence[Tensor] = torch.empty(1, 3, *sides(size))
            parts = {"trunk": build_trunk(facts), "embedding": DeepFeatureEmbedding(facts)}
            for name, part in {**parts, "decoder": DecoderStudent(facts)}.items():
                macs, value = count(part.eval(), value)
                costs[name] = Costs(sum(parameter.numel() for parameter in part.parameters()), macs / 1e9)
    except ConfigError:
        raise
    except Exception as error:  # timm has many ways to refuse a size
        taken = f"{facts.name} does not take images of {size_text(sides(size))}"
        raise ConfigError(f"{taken} ({_one_line(error)})") from None
    return costs


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:160]
