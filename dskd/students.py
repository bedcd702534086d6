"""The two students: same scale, inverted structure."""

import torch
from torch import Tensor, nn

from dskd.backbones import Backbone
from dskd.inverted import Block, Conv, decoder_plan
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
    parameters, and with a linear end, since their maps are negative too. `config.mirror` runs the encoder's own stages
    backwards instead, `config.size` scales the inner widths (both our reading of "same scale, inverted structures").

    Args:
        facts: of the teacher's backbone.
        channels: of the input; those of the embedding by default.
        encoder_parameters: of the encoder student, for `size: encoder`; the trunk's by default.

    Raises:
        ConfigError: a mirror of blocks that are not known, or a size that cannot be met.
    """

    def __init__(
        self,
        facts: Backbone,
        config: Decoder = Decoder(),
        channels: int | None = None,
        encoder_parameters: int | None = None,
    ) -> None:
        super().__init__()
        channels = channels or facts.embedding_channels
        plan = decoder_plan(facts, config, channels, encoder_parameters or facts.parameters)
        self.stages = nn.ModuleList(nn.Sequential(*map(_block, stage)) for stage in plan)
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


def _block(block: Block) -> nn.Module:
    inner = (nn.ReLU6 if block.inner == "relu6" else nn.ReLU)(inplace=True)
    body = [layer for convolution in block.body for layer in (*_normalised(convolution), inner)][:-1]
    act = nn.ReLU(inplace=True) if block.act == "relu" else nn.Identity()
    if block.shortcut is None:
        return nn.Sequential(*body, act)
    shortcut = nn.Identity() if block.shortcut == "identity" else nn.Sequential(*_normalised(block.shortcut))
    return ResidualUp(nn.Sequential(*body), shortcut, act)


def _normalised(conv: Conv) -> list[nn.Module]:
    """The convolution and its BatchNorm, and what enlarges after them."""
    after = [nn.Upsample(scale_factor=2)] if conv.up == "nearest" else []
    return [_conv(conv), nn.BatchNorm2d(conv.out), *after]


def _conv(conv: Conv) -> nn.Module:
    pads = {"padding": conv.kernel // 2, "groups": conv.groups, "bias": False}
    if conv.up == "deconv":
        return nn.ConvTranspose2d(conv.channels, conv.out, kernel_size=2, stride=2, bias=False)
    if conv.up == "transposed":
        return nn.ConvTranspose2d(conv.channels, conv.out, conv.kernel, stride=2, output_padding=1, **pads)
    plain = nn.Conv2d(conv.channels, conv.out, conv.kernel, **pads)
    if conv.up == "bilinear":
        return nn.Sequential(nn.Upsample(scale_factor=2, mode="bilinear", align_corners=False), plain)
    return plain


def initialise(module: nn.Module) -> None:
    """Kaiming normal (fan out) for convolutions, as RD4AD. Transposed ones keep PyTorch's default, as there."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
            if layer.groups > 1:  # PyTorch takes all channels for the fan of each group
                with torch.no_grad():
                    layer.weight.mul_(layer.groups**0.5)
