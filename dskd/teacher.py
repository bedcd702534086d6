"""Teacher: the frozen feature pyramid of a pre-trained timm backbone."""

import json
import shlex
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from dskd.backbones import IMAGENET_MEAN, IMAGENET_STD, TRUNKS, Backbone
from dskd.config import ConfigError
from dskd.lookup import get_backbone
from dskd.timm_import import timm
from dskd.trunk import build_trunk

TEACHER_SEED = 0  # of the `random` teacher: its own, so that a run's seed changes the students alone


class Teacher(nn.Module):
    """A trunk that never learns: always in eval mode, no gradients, its parameters and BatchNorm buffers constant.

    Args:
        backbone: a name of `dskd.backbones.BACKBONES`, any timm model with three usable scales, or a plug-in's.
        weights: `random` (seeded by TEACHER_SEED) or the path of a safetensors file in timm's names, of the whole
            model or of the trunk alone.

    Raises:
        ConfigError: unknown backbone, or a file whose keys or shapes are not the backbone's.
    """

    def __init__(self, backbone: str, weights: str | Path = "random") -> None:
        super().__init__()
        facts = get_backbone(backbone)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(TEACHER_SEED)
            self.trunk = build_trunk(facts)
        if weights != "random":
            self.trunk.load_state_dict(read_trunk_weights(self.trunk, backbone, Path(weights)))
        self.requires_grad_(False)
        super().train(False)
        self._renormalise(facts)

    def _renormalise(self, facts: Backbone) -> None:
        """Images come normalised by ImageNet's mean and deviation; some weights were made for another normalisation."""
        self.other = (facts.mean, facts.std) != (IMAGENET_MEAN, IMAGENET_STD)
        if self.other:
            mean, std, own_mean, own_std = (
                torch.tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD, facts.mean, facts.std)
            )
            self.register_buffer("scale", std / own_std, persistent=False)
            self.register_buffer("shift", (mean - own_mean) / own_std, persistent=False)

    def train(self, mode: bool = True) -> "Teacher":
        """Stays in eval mode whatever is asked for: a student's `.train()` on the whole model must not reach it."""
        return self

    @torch.no_grad()
    def forward(self, images: Tensor) -> list[Tensor]:
        """The pyramid F_T: maps (B, C_k, H/s_k, W/s_k) of normalised images (B, 3, H, W), strides s = 4, 8, 16."""
        return self.trunk(images * self.scale + self.shift if self.other else images)


def read_trunk_weights(trunk: nn.Module, backbone: str, path: Path) -> dict[str, Tensor]:
    """The trunk's state from a safetensors file. Keys of the backbone that the taps do not need may be present or
    missing.

    Raises:
        ConfigError: not a safetensors file; a missing, unexpected or wrongly shaped key, named; values that are not
            finite, from which every student would diverge.
    """
    try:
        state = load_file(path)
    except FileNotFoundError:
        raise ConfigError(f"weights: {path} does not exist; write the path of a safetensors file") from None
    except Exception as error:  # safetensors raises its own and OS errors for damaged or foreign files
        _refuse_pickle(path)
        raise ConfigError(f"weights: {path} is not a readable safetensors file ({error})") from None
    wanted = trunk.state_dict()
    if backbone in TRUNKS:
        whole = wanted
    else:
        with torch.device("meta"):
            whole = timm.create_model(backbone, pretrained=False).state_dict()
    # A tapped model of some families is flattened: `stages_0.x` where the whole model has `stages.0.x`.
    state, names = {_flat(key): value for key, value in state.items()}, {_flat(key): key for key in (*state, *whole)}
    needed = {_flat(key): key for key in wanted}
    # A counter that no evaluation reads: files saved from elsewhere lack it.
    counters = {key for key in needed if key.endswith("num_batches_tracked")}
    _refuse(path, backbone, "lacks", (names.get(key, key) for key in needed.keys() - counters - state.keys()))
    _refuse(path, backbone, "has unexpected", (names[key] for key in state.keys() - {_flat(key) for key in whole}))
    wrong = (names[key] for key in needed.keys() & state.keys() if state[key].shape != wanted[needed[key]].shape)
    _refuse(path, backbone, "has other shapes for", wrong)
    _refuse_infinite(path, {names[key]: state[key] for key in needed.keys() & state.keys()})
    return {key: state.get(flat, wanted[key]) for flat, key in needed.items()}


def _refuse_pickle(path: Path) -> None:
    """Raises ConfigError for a file of `torch.save` or another pickle: what it is, and how to convert it."""
    with suppress(OSError), path.open("rb") as stream:
        head = stream.read(4)
        if head == b"PK\x03\x04" or (head[:1] == b"\x80" and head[1:2] in b"\x02\x03\x04\x05"):
            made = path.with_suffix(".safetensors").name
            code = (
                "import torch, safetensors.torch as s; s.save_file({k: v.contiguous() for k, v in "
                f'torch.load({json.dumps(str(path))}, "cpu", weights_only=True).items()}}, {json.dumps(made)})'
            )
            raise ConfigError(
                f"weights: {path} is a pickle of PyTorch (.pth), which may run code when it is read; convert its "
                f"state dict once with python -c {shlex.quote(code)} and write weights: {made}"
            )


def _flat(key: str) -> str:
    return key.replace(".", "_")


def _refuse(path: Path, backbone: str, what: str, keys: Iterable[str]) -> None:
    named = sorted(keys)
    if named:
        rest = f" and {len(named) - 3} more" if len(named) > 3 else ""
        raise ConfigError(
            f"weights: {path} {what} {', '.join(named[:3])}{rest}; a file for {backbone} in timm's names is needed"
        )


def _refuse_infinite(path: Path, state: dict[str, Tensor]) -> None:
    named = sorted(key for key, value in state.items() if not torch.isfinite(value).all())
    if named:
        rest = f" and {len(named) - 1} more" if len(named) > 1 else ""
        raise ConfigError(
            f"weights: {path} has values that are not finite in {named[0]}{rest}; a file without NaN and infinity is "
            "needed"
        )
