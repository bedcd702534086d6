"""The two students: same scale, inverted structure."""

from collections.abc import Callable

from torch import Tensor, nn

from dskd.backbones import Backbone
from dskd.switches import Decoder
from dskd.trunk import build_trunk


class EncoderStudent(nn.Module):
    """The teacher's trunk with random weights (official STFPM): images (B, 3, H, W) to maps shaped as the teacher's.

    Args:
        teacher: the facts of the teacher's backbone.
        trunk: those of another one to use instead; a 1x1 convolution per scale brings its maps to the teacher's
            channels.
        deep: also give the trunk's fourth map, at twice the last stride.

    Raises:
        ValueError: a trunk whose strides are not the teacher's, or without a fourth map.
    """

    def __init__(self, teacher: Backbone, trunk: Backbone | None = None, deep: bool = False) -> None:
        super().__init__()
        facts = trunk or teacher
        if facts.strides != teacher.strides:
            raise ValueError(f"{facts.name} has strides {facts.strides}, {teacher.name} has {teacher.strides}")
        self.trunk = build_trunk(facts, deep)
        pairs = zip(facts.channels, teacher.channels, strict=True)
        self.adapters = nn.ModuleList(nn.Conv2d(*pair, 1) for pair in pairs) if trunk else None

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = self.trunk(images)
        if self.adapters is None:
            return maps
        return [*(adapt(scale) for adapt, scale in zip(self.adapters, maps, strict=False)), *maps[3:]]


class DecoderStudent(nn.Module):
    """The inverted trunk: embedding (B, C, H/32, W/32) to maps shaped as the teacher's, finest first.

    For ResNets it is RD4AD's de-ResNet: three stages of planes 256, 128, 64, each opened by a block whose 3x3/2
    convolution became a 2x2/2 transposed one, outputs non-negative as the teacher's. Block counts stand in encoder
    order (resnet34: 3, 4, 6 from coarse to fine) as in RD4AD@6554076, unless mirrored. For other families (our choice)
    each stage is two bottleneck blocks with the pyramid's channels, as wide as gives the decoder the trunk's
    parameters, and with a linear end, since their maps are negative too.

    Args:
        facts: of the teacher's backbone.
        channels: of the input; those of the embedding by default.
    """

    def __init__(self, facts: Backbone, config: Decoder = Decoder(), channels: int | None = None) -> None:
        super().__init__()
        channels = channels or facts.embedding_channels
        if facts.block == "generic":
            stages = _generic_stages(facts, channels, config.up)
        else:
            stages = _resnet_stages(facts, channels, config)
        self.stages = nn.ModuleList(nn.Sequential(*stage) for stage in stages)
        initialise(self)

    def forward(self, embedding: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            embedding = stage(embedding)
            maps.append(embedding)
        return maps[::-1]


class ResidualUp(nn.Module):
    """`act(body(x) + shortcut(x))`: a residual block whose body and shortcut may double the size."""

    def __init__(self, body: nn.Module, shortcut: nn.Module, act: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut
        self.act = act

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.body(x) + self.shortcut(x))


def _resnet_stages(facts: Backbone, channels: int, config: Decoder) -> list[list[nn.Module]]:
    depths = facts.depths if config.block_order == "rd4ad" else facts.depths[::-1]
    stages = []
    for planes, depth in zip((256, 128, 64), depths, strict=True):
        blocks = [_resnet_block(facts, channels, planes, UP[config.up])]
        channels = planes * facts.expansion
        stages.append(blocks + [_resnet_block(facts, channels, planes, None) for _ in range(depth - 1)])
    return stages


Up = Callable[[int, int, int], nn.Module]


def _resnet_block(facts: Backbone, channels: int, planes: int, up: Up | None) -> ResidualUp:
    """One de-ResNet block: BasicBlock or Bottleneck of the trunk with its stride-2 convolution inverted."""
    out = planes * facts.expansion
    relu = nn.ReLU(inplace=True)
    make = up or _conv
    if facts.block == "basic":
        body = [make(channels, planes, 3), nn.BatchNorm2d(planes), relu, _conv(planes, planes, 3)]
        body += [nn.BatchNorm2d(planes)]
    else:
        width = planes * facts.base_width // 64
        body = [_conv(channels, width, 1), nn.BatchNorm2d(width), relu, make(width, width, 3), nn.BatchNorm2d(width)]
        body += [relu, _conv(width, out, 1), nn.BatchNorm2d(out)]
    shortcut = nn.Sequential(up(channels, out, 1), nn.BatchNorm2d(out)) if up else nn.Identity()
    return ResidualUp(nn.Sequential(*body), shortcut, nn.ReLU(inplace=True))


def _generic_stages(facts: Backbone, channels: int, up: str) -> list[list[nn.Module]]:
    """Two bottleneck blocks a stage; their width is the share of the channels that meets the trunk's parameters."""
    outs = facts.channels[::-1]
    ins = (channels, *outs[:2])
    lowest, highest = 1 / 16, 16.0
    for _ in range(40):
        share = (lowest + highest) / 2
        sizes = (_generic_size(c, out, _width(out, share), up) for c, out in zip(ins, outs, strict=True))
        lowest, highest = (share, highest) if sum(sizes) < facts.parameters else (lowest, share)
    return [
        [
            _generic_block(c, out, _width(out, highest), UP[up], nn.ReLU(inplace=True)),
            _generic_block(out, out, _width(out, highest), None, nn.Identity()),
        ]
        for c, out in zip(ins, outs, strict=True)
    ]


def _width(channels: int, share: float) -> int:
    return max(8, round(channels * share))


def _generic_size(channels: int, out: int, width: int, up: str) -> int:
    """Parameters of one generic stage."""
    taps = 4 if up == "deconv" else 9
    first = channels * width + taps * width**2 + width * out + channels * out + 4 * width + 4 * out
    return first + 2 * width * out + 9 * width**2 + 4 * width + 2 * out


def _generic_block(channels: int, out: int, width: int, up: Up | None, act: nn.Module) -> ResidualUp:
    relu = nn.ReLU(inplace=True)
    body = [_conv(channels, width, 1), nn.BatchNorm2d(width), relu, (up or _conv)(width, width, 3)]
    body += [nn.BatchNorm2d(width), relu, _conv(width, out, 1), nn.BatchNorm2d(out)]
    shortcut: nn.Module = nn.Identity()
    if up:  # not transposed: at a thousand channels that alone would outweigh the trunk
        shortcut = nn.Sequential(_conv(channels, out, 1), nn.BatchNorm2d(out), nn.Upsample(scale_factor=2))
    return ResidualUp(nn.Sequential(*body), shortcut, act)


def initialise(module: nn.Module) -> None:
    """Kaiming normal (fan out) for convolutions, as RD4AD. Transposed ones keep PyTorch's default, as there."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def _conv(channels: int, out: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False)


def _deconv2x2(channels: int, out: int, _kernel: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, out, kernel_size=2, stride=2, bias=False)


def _bilinear(channels: int, out: int, kernel: int) -> nn.Sequential:
    upsample = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False)
    return nn.Sequential(upsample, _conv(channels, out, kernel))


UP: dict[str, Up] = {"deconv": _deconv2x2, "bilinear": _bilinear}
