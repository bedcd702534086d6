"""DeepFeatureEmbedding: what lies between a pyramid and the decoder student."""

import torch
from torch import Tensor, nn

from dskd.backbones import get_backbone
from dskd.students import initialise
from dskd.timm_import import resnet


class DeepFeatureEmbedding(nn.Module):
    """Fuses a pyramid into the decoder student's input: maps at strides 4, 8, 16 to z (B, 512*e, H/32, W/32).

    DSKD's abstract names the module and its purpose only. Its inside is reverse distillation's bottleneck, MFF + OCE
    (our choice; RD4AD@6554076 without the conv4/bn4 pair that it never uses): the two finer maps are brought to stride
    16 by 3x3/2 convolutions, concatenated with the third, and one layer4-type ResNet stage embeds the result.
    """

    def __init__(self, backbone: str) -> None:
        super().__init__()
        facts = get_backbone(backbone)
        fine, middle, coarse = facts.channels
        self.from_fine = nn.Sequential(*_down(fine, middle), *_down(middle, coarse))
        self.from_middle = nn.Sequential(*_down(middle, coarse))
        block = resnet.Bottleneck if facts.block == "bottleneck" else resnet.BasicBlock
        out = 512 * facts.expansion
        width = {"base_width": facts.base_width}
        shortcut = resnet.downsample_conv(3 * coarse, out, kernel_size=1, stride=2)
        blocks = [block(3 * coarse, 512, stride=2, downsample=shortcut, **width)]
        blocks += [block(out, 512, **width) for _ in range(facts.embedding_depth - 1)]
        self.stage = nn.Sequential(*blocks)
        initialise(self)

    def forward(self, pyramid: list[Tensor]) -> Tensor:
        fine, middle, coarse = pyramid
        return self.stage(torch.cat([self.from_fine(fine), self.from_middle(middle), coarse], dim=1))


def _down(channels: int, out: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, out, kernel_size=3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(out),
        nn.ReLU(inplace=True),
    ]
