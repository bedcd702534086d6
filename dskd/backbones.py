"""Facts about the backbones that a plan needs without importing torch."""

from dataclasses import dataclass
from typing import Literal

from dskd.config import ConfigError, suggest


@dataclass(frozen=True)
class Backbone:
    """A ResNet trunk as timm builds it: conv1 to layer3, tapped after layer1, layer2 and layer3 (strides 4, 8, 16).

    `depths`: blocks of layer1 to layer3; `embedding_depth`: blocks of the embedding's layer4-type stage; `base_width`:
    128 for the wide ones; `imagenet`: timm's tag of the torchvision V1 weights that the baselines use; `gmac`:
    multiply-adds in 1e9 of trunk, embedding and decoder for one 256x256 image (convolutions only), for cost estimates.
    """

    name: str
    block: Literal["basic", "bottleneck"]
    depths: tuple[int, int, int]
    embedding_depth: int
    imagenet: str
    gmac: tuple[float, float, float]
    base_width: int = 64

    @property
    def expansion(self) -> int:
        return 4 if self.block == "bottleneck" else 1

    @property
    def channels(self) -> tuple[int, int, int]:
        """Channels of the three tapped maps, finest first."""
        return (64 * self.expansion, 128 * self.expansion, 256 * self.expansion)


BACKBONES: dict[str, Backbone] = {
    backbone.name: backbone
    for backbone in (
        Backbone("resnet18", "basic", (2, 2, 2), 2, "resnet18.tv_in1k", (1.832, 0.931, 1.560)),
        Backbone("resnet34", "basic", (3, 4, 6), 3, "resnet34.tv_in1k", (3.946, 1.233, 3.674)),
        Backbone("resnet50", "bottleneck", (3, 4, 6), 3, "resnet50.tv_in1k", (4.281, 5.218, 4.815)),
        Backbone(
            "wide_resnet50_2", "bottleneck", (3, 4, 6), 3, "wide_resnet50_2.tv_in1k", (11.999, 7.315, 11.140), 128
        ),
    )
}


def get_backbone(name: str) -> Backbone:
    """The named backbone's facts. Raises ConfigError with the near match for a name that does not exist."""
    if name not in BACKBONES:
        raise ConfigError(f"unknown backbone {name!r}; {suggest(name, BACKBONES)}")
    return BACKBONES[name]
