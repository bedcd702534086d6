"""A backbone that is made and trained in a fraction of ResNet18's time, for what holds of any network.

That numbers come back bit for bit, that graphs are shared, that folds are apart. Where kernels or sizes of real
networks decide, ResNet18 stays, and in all that start `harness run`.
"""

import torch
from torch import Tensor, nn

from dskd.students import ResidualUp

SMALL = "small_resnet"


def _block(inputs: int, outputs: int, stride: int) -> nn.Module:
    body = nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
        nn.Conv2d(outputs, outputs, 3, padding=1, bias=False),
        nn.BatchNorm2d(outputs),
    )
    same = stride == 1 and inputs == outputs
    shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
    return ResidualUp(body, nn.Identity() if same else shortcut, nn.ReLU(inplace=True))


class SmallResNet(nn.Module):
    """One block for each scale, with a quarter of ResNet18's channels: images (B, 3, H, W) to three maps."""

    state_is_all = True  # as timm's: runs may share compiled or recorded steps

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 7, 2, padding=3, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.stages = nn.ModuleList([_block(16, 16, 2), _block(16, 32, 2), _block(32, 64, 2)])

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [torch.relu(self.bn1(self.conv1(images)))]
        for stage in self.stages:
            maps.append(stage(maps[-1]))
        return maps[1:]
