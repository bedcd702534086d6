"""Teacher: the frozen feature pyramid of a pre-trained timm backbone."""

from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dskd.backbones import get_backbone
from dskd.config import ConfigError
from dskd.timm_import import timm

TEACHER_SEED = 0  # of the `random` teacher: its own, so that a run's seed changes the students alone


def build_trunk(backbone: str) -> nn.Module:
    """conv1 to layer3 of the backbone with random weights; `trunk(images)` returns the maps of layer1, layer2, layer3.

    Shapes at 256x256 for resnet18: (B, 64, 64, 64), (B, 128, 32, 32), (B, 256, 16, 16).
    """
    get_backbone(backbone)
    # timm zeroes the last BatchNorm of each block by default; the official STFPM student (torchvision) does not.
    return timm.create_model(
        backbone, pretrained=False, features_only=True, out_indices=(1, 2, 3), zero_init_last=False
    )


class Teacher(nn.Module):
    """A trunk that never learns: always in eval mode, no gradients, its parameters and BatchNorm buffers constant.

    Args:
        backbone: a name of `dskd.backbones.BACKBONES`.
        weights: `random` (seeded by TEACHER_SEED) or the path of a safetensors file in timm's names, of the whole
        model or
            of the trunk alone.

    Raises:
        ConfigError: unknown backbone, or a file whose keys or shapes are not the backbone's.
    """

    def __init__(self, backbone: str, weights: str | Path = "random") -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(TEACHER_SEED)
            self.trunk = build_trunk(backbone)
        if weights != "random":
            self.trunk.load_state_dict(read_trunk_weights(self.trunk, backbone, Path(weights)))
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> "Teacher":
        """Stays in eval mode whatever is asked for: a student's `.train()` on the whole model must not reach it."""
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """The pyramid F_T: maps (B, C_k, H/s_k, W/s_k) of normalised images (B, 3, H, W), strides s = 4, 8, 16."""
        return self.trunk(images)


def read_trunk_weights(trunk: nn.Module, backbone: str, path: Path) -> dict[str, Tensor]:
    """The trunk's state from a safetensors file. Keys of the backbone that the taps do not need may be present or
    missing.

    Raises:
        ConfigError: not a safetensors file; a missing, unexpected or wrongly shaped key, named.
    """
    try:
        state = load_file(path)
    except FileNotFoundError:
        raise ConfigError(f"weights: {path} does not exist; write the path of a safetensors file") from None
    except Exception as error:  # safetensors raises its own and OS errors for damaged or foreign files
        raise ConfigError(f"weights: {path} is not a readable safetensors file ({error})") from None
    wanted = trunk.state_dict()
    with torch.device("meta"):
        whole = timm.create_model(backbone, pretrained=False).state_dict()
    # A counter that no evaluation reads: files saved from elsewhere lack it.
    counters = {key for key in wanted if key.endswith("num_batches_tracked")}
    _refuse(path, backbone, "lacks", wanted.keys() - counters - state.keys())
    _refuse(path, backbone, "has unexpected", state.keys() - whole.keys())
    wrong = {key for key in wanted.keys() & state.keys() if state[key].shape != wanted[key].shape}
    _refuse(path, backbone, "has other shapes for", wrong)
    return {key: state.get(key, value) for key, value in wanted.items()}


def _refuse(path: Path, backbone: str, what: str, keys: Iterable[str]) -> None:
    named = sorted(keys)
    if named:
        rest = f" and {len(named) - 3} more" if len(named) > 3 else ""
        raise ConfigError(
            f"weights: {path} {what} {', '.join(named[:3])}{rest}; a file for {backbone} in timm's names is needed"
        )
