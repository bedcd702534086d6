"""Facts about backbones that a plan needs without importing torch: a table, to which `dskd.lookup` adds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

from dskd.config import require
from dskd.size import Size, sides, simplest

T = TypeVar("T", bound=type)
IMAGENET_MEAN = (0.485, 0.456, 0.406)  # of pixels in [0, 1]; images reach every network normalised by these
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Backbone:
    """A trunk: a timm model up to its third pyramid scale, tapped at three strides that double.

    Attributes:
        name: a key of BACKBONES or TRUNKS, or timm's.
        block: the ResNet block that the inverted student mirrors; `generic` for every other family.
        channels: of the three maps, finest first.
        depths: blocks of the ResNet's layer1 to layer3, and so of the decoder.
        embedding_depth: blocks of the embedding's layer4-type stage.
        imagenet: timm's tag of the ImageNet weights, empty if there are none. The table's are torchvision's V1, which
            the baselines use.
        gmac: multiply-adds in 1e9 of trunk, embedding and decoder for one 256x256 image (matrix products and
            convolutions only).
        parameters: of the trunk.
        base_width: 128 for wide ResNets.
        strides: of the three maps, finest first.
        taps: timm's indices of the maps.
        deep_tap: timm's index of the next map, at twice the last stride, if there is one.
        deep_channels: of that map.
        mean: of the images that the weights expect, for pixels in [0, 1].
        std: their standard deviation.
    """

    name: str
    block: Literal["basic", "bottleneck", "generic"]
    channels: tuple[int, int, int]
    depths: tuple[int, int, int]
    embedding_depth: int
    imagenet: str
    gmac: tuple[float, float, float]
    parameters: int
    base_width: int = 64
    strides: tuple[int, int, int] = (4, 8, 16)
    taps: tuple[int, int, int] = (1, 2, 3)
    deep_tap: int | None = 4
    deep_channels: int = 0
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    @property
    def expansion(self) -> int:
        return 1 if self.block == "basic" else 4

    @property
    def embedding_channels(self) -> int:
        """Channels of the decoder's input: twice the coarsest map's, as of a ResNet's layer4; a multiple of 4."""
        return -(-2 * self.channels[2] // 4) * 4

    @property
    def multiple(self) -> int:
        """What the side of an image must be a multiple of: the embedding halves the coarsest map."""
        return 2 * self.strides[2]

    def nearest_size(self, size: Size) -> Size:
        """The possible size of an image that is nearest to `size`, side by side: that one itself if it is possible."""
        height, width = (max(self.multiple, round(side / self.multiple) * self.multiple) for side in sides(size))
        return simplest((height, width))


def _resnet(name: str, depths: tuple[int, int, int], gmac: tuple[float, float, float], parameters: int) -> Backbone:
    basic = name in ("resnet18", "resnet34")
    expansion = 1 if basic else 4
    return Backbone(
        name,
        block="basic" if basic else "bottleneck",
        channels=(64 * expansion, 128 * expansion, 256 * expansion),
        depths=depths,
        embedding_depth=2 if name == "resnet18" else 3,
        imagenet=f"{name}.tv_in1k",
        gmac=gmac,
        parameters=parameters,
        base_width=128 if name.startswith("wide") else 64,
        deep_channels=512 * expansion,
    )


def _lite(
    size: int, channels: tuple[int, int, int], deep: int, gmac: tuple[float, float, float], parameters: int
) -> Backbone:
    """EfficientNet-Lite, as TensorFlow's weights want it."""
    name, half = f"tf_efficientnet_lite{size}", (0.5, 0.5, 0.5)
    return Backbone(
        name,
        block="generic",
        channels=channels,
        depths=(2, 2, 2),
        embedding_depth=2,
        imagenet=f"{name}.in1k",
        gmac=gmac,
        parameters=parameters,
        deep_channels=deep,
        mean=half,
        std=half,
    )


BACKBONES: dict[str, Backbone] = {
    backbone.name: backbone
    for backbone in (
        _resnet("resnet18", (2, 2, 2), (1.832, 0.931, 1.560), 2_782_784),
        _resnet("resnet34", (3, 4, 6), (3.946, 1.233, 3.674), 8_170_304),
        _resnet("resnet50", (3, 4, 6), (4.281, 5.218, 4.815), 8_543_296),
        _resnet("resnet101", (3, 4, 23), (9.130, 5.218, 9.664), 27_535_424),
        _resnet("wide_resnet50_2", (3, 4, 6), (11.999, 7.315, 11.140), 24_862_528),
        _lite(0, (24, 40, 112), 320, (0.318, 0.045, 0.249), 700_768),
        _lite(1, (24, 40, 112), 320, (0.441, 0.045, 0.358), 989_280),
        _lite(2, (24, 48, 120), 352, (0.503, 0.055, 0.417), 1_161_584),
    )
}
# Of other families, tried here: `harness backbones` lists them, and any timm model with `features_only` can be named.
TRIED = (
    "resnext50_32x4d",
    "efficientnet_b0",
    "convnext_tiny",
    "mobilenetv3_large_100",
    "regnety_008",
    "densenet121",
)
TRUNKS: dict[str, type] = {}  # of plug-ins, by name


def register_backbone(name: str) -> Callable[[T], T]:
    """Class decorator of a plug-in: make a module known as a backbone.

    The class is made without arguments. Its `forward` takes normalised images (B, 3, H, W) and returns three maps,
    finest first, at strides that double. A weights file of it holds its `state_dict` as safetensors.

    Raises:
        ConfigError: a name that is taken.
    """

    def decorate(cls: T) -> T:
        require(name not in BACKBONES and name not in TRUNKS, f"backbone {name!r} exists already; choose another name")
        TRUNKS[name] = cls
        return cls

    return decorate


def lacks_statistics(state: Mapping[str, Any]) -> bool:
    """Whether weights (tensors or arrays by key) have BatchNorm layers whose running means are all 0: folded into
    convolutions, or random. No student can be trained from them.
    """
    means = [value for key, value in state.items() if key.endswith("running_mean")]
    return bool(means) and not any(value.any() for value in means)
