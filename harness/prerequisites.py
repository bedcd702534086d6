"""What DeepSpeed needs of this machine. No torch is imported, nor DeepSpeed, whose import may be what fails."""

import importlib.metadata
import importlib.util
import os
import re
import shutil
from contextlib import suppress
from pathlib import Path

PACKAGES = ("deepspeed", "transformers")  # Accelerate needs the second for the first
# Of DeepSpeed: older ones ask for CUDA's version as they are imported (0.16.0 to 0.19.8 were read).
TOLERANT = (0, 19, 5)


def deepspeed_trouble(device: str) -> str:
    """Why no `strategy: deepspeed_...` can train on the device (cpu or cuda), and what to do; empty where one can."""
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        return (
            f"needs packages that are not installed ({', '.join(missing)}); run pip install 'dskd-harness[deepspeed]' "
            "or write strategy: ddp"
        )
    versions = {"deepspeed": "", "torch": ""}
    for name in versions:
        with suppress(importlib.metadata.PackageNotFoundError):
            versions[name] = importlib.metadata.version(name)
    if device != "cuda" or os.environ.get("DS_IGNORE_CUDA_DETECTION") or not asks_for_compiler(**versions) or _nvcc():
        return ""
    return (
        f"cannot be imported: DeepSpeed {versions['deepspeed']} asks for CUDA's compiler and there is no nvcc; set "
        f"CUDA_HOME, run pip install 'deepspeed>={'.'.join(map(str, TOLERANT))}' or write strategy: ddp"
    )


def asks_for_compiler(deepspeed: str, torch: str) -> bool:
    """Whether DeepSpeed of that version cannot be imported on a GPU, with that torch, without nvcc. Pure."""
    numbers = tuple(int(number) for number in re.findall(r"\d+", deepspeed)[:3])
    return bool(numbers) and numbers < TOLERANT and not re.search(r"\+(cpu|rocm)", torch)


def _nvcc() -> Path | None:
    """Where DeepSpeed looks for it: where torch does."""
    home, found = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH"), shutil.which("nvcc")
    path = Path(home) / "bin" / "nvcc" if home else Path(found or "/usr/local/cuda/bin/nvcc")
    return path if path.exists() else None
