"""The two students: same scale, inverted structure."""

from torch import Tensor, nn

from dskd.backbones import Backbone, get_backbone
from dskd.teacher import build_trunk


class EncoderStudent(nn.Module):
    """The teacher's trunk with random weights (official STFPM): images (B, 3, H, W) to maps shaped as the teacher's."""

    def __init__(self, backbone: str) -> None:
        super().__init__()
        self.trunk = build_trunk(backbone)

    def forward(self, images: Tensor) -> list[Tensor]:
        return self.trunk(images)


class DecoderStudent(nn.Module):
    """The inverted trunk (RD4AD's de-ResNet): embedding (B, 512*e, H/32, W/32) to maps shaped as the teacher's.

    Three stages of planes 256, 128, 64, each opened by a block whose 3x3/2 convolution became a 2x2/2 transposed one.
    Block counts stand in encoder order (resnet34: 3, 4, 6 from coarse to fine) as in RD4AD@6554076, not mirrored.
    Outputs are returned finest first and are non-negative, as the teacher's.
    """

    def __init__(self, backbone: str) -> None:
        super().__init__()
        facts = get_backbone(backbone)
        channels = 512 * facts.expansion
        self.stages = nn.ModuleList()
        for planes, depth in zip((256, 128, 64), facts.depths, strict=True):
            blocks = [up_block(facts, channels, planes, up=True)]
            channels = planes * facts.expansion
            blocks += [up_block(facts, channels, planes, up=False) for _ in range(depth - 1)]
            self.stages.append(nn.Sequential(*blocks))
        initialise(self)

    def forward(self, embedding: Tensor) -> list[Tensor]:
        maps = []
        for stage in self.stages:
            embedding = stage(embedding)
            maps.append(embedding)
        return maps[::-1]


class ResidualUp(nn.Module):
    """`relu(body(x) + shortcut(x))`: a residual block whose body and shortcut may double the size."""

    def __init__(self, body: nn.Module, shortcut: nn.Module) -> None:
        super().__init__()
        self.body = body
        self.shortcut = shortcut
        self.act = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.body(x) + self.shortcut(x))


def up_block(facts: Backbone, channels: int, planes: int, *, up: bool) -> ResidualUp:
    """One de-ResNet block: BasicBlock or Bottleneck of the trunk with its stride-2 convolution transposed."""
    out = planes * facts.expansion
    relu = nn.ReLU(inplace=True)
    if facts.block == "basic":
        first = _deconv2x2(channels, planes) if up else _conv(channels, planes, 3)
        body = [first, nn.BatchNorm2d(planes), relu, _conv(planes, planes, 3), nn.BatchNorm2d(planes)]
    else:
        width = planes * facts.base_width // 64
        middle = _deconv2x2(width, width) if up else _conv(width, width, 3)
        body = [_conv(channels, width, 1), nn.BatchNorm2d(width), relu, middle, nn.BatchNorm2d(width), relu]
        body += [_conv(width, out, 1), nn.BatchNorm2d(out)]
    shortcut = nn.Sequential(_deconv2x2(channels, out), nn.BatchNorm2d(out)) if up else nn.Identity()
    return ResidualUp(nn.Sequential(*body), shortcut)


def initialise(module: nn.Module) -> None:
    """Kaiming normal (fan out) for convolutions, as RD4AD. Transposed ones keep PyTorch's default, as there."""
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d):
            nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")


def _conv(channels: int, out: int, kernel: int) -> nn.Conv2d:
    return nn.Conv2d(channels, out, kernel, padding=kernel // 2, bias=False)


def _deconv2x2(channels: int, out: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, out, kernel_size=2, stride=2, bias=False)
