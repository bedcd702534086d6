"""DeepFeatureEmbedding: what lies between a pyramid and the decoder student."""

import torch
from torch import Tensor, nn

from dskd.backbones import Backbone
from dskd.students import initialise
from dskd.switches import Embedding
from dskd.timm_import import resnet


class DeepFeatureEmbedding(nn.Module):
    """Fuses a pyramid into the decoder student's input: maps at strides 4, 8, 16 to z (B, 512*e, H/32, W/32).

    DSKD's abstract names the module and its purpose only. Its inside is by default reverse distillation's bottleneck,
    MFF + OCE (our choice; RD4AD@6554076 without the conv4/bn4 pair that it never uses): the two finer maps are brought
    to stride 16 by 3x3/2 convolutions, concatenated with the third, and one layer4-type ResNet stage embeds the result.
    `config.kind` has the lighter ones. With `config.source` `both` the input has twice the backbone's channels.
    """

    def __init__(self, facts: Backbone, config: Embedding = Embedding()) -> None:
        super().__init__()
        fine, middle, coarse = facts.channels
        sources = 2 if config.source == "both" else 1
        self.fuses = config.kind != "oce_only"
        if self.fuses:
            self.from_fine = nn.Sequential(*_down(sources * fine, middle), *_down(middle, coarse))
            self.from_middle = nn.Sequential(*_down(sources * middle, coarse))
        inputs = (sources + 2 * self.fuses) * coarse
        if config.kind == "mff_1x1":
            out = facts.embedding_channels
            layers = [nn.Conv2d(inputs, out, 1, bias=False), nn.BatchNorm2d(out), nn.ReLU(inplace=True)]
            self.stage = nn.Sequential(*layers, nn.AvgPool2d(2))
        else:
            self.stage = _resnet_stage(facts, inputs, config)
        initialise(self)

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        fine, middle, coarse = pyramid
        if not self.fuses:
            return self.stage(coarse)
        return self.stage(torch.cat([self.from_fine(fine), self.from_middle(middle), coarse], dim=1))


def _resnet_stage(facts: Backbone, inputs: int, config: Embedding) -> nn.Sequential:
    """A ResNet's layer4 (the OCE); of bottleneck blocks for backbones that are no ResNets."""
    block = resnet.BasicBlock if facts.block == "basic" else resnet.Bottleneck
    out = facts.embedding_channels
    planes = out // block.expansion
    width = {"base_width": facts.base_width if config.width == "backbone" else config.width}
    shortcut = resnet.downsample_conv(inputs, out, kernel_size=1, stride=2)
    blocks = [block(inputs, planes, stride=2, downsample=shortcut, **width)]
    blocks += [block(out, planes, **width) for _ in range((config.blocks or facts.embedding_depth) - 1)]
    return nn.Sequential(*blocks)


def _down(channels: int, out: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, out, kernel_size=3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(inplace=True),
    ]
