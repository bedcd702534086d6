"""DeepSpeed without CUDA's compiler: refused by the plan where it cannot be imported, and nowhere else."""

import importlib.metadata
import importlib.util
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from dskd.config import ConfigError
from harness import prerequisites
from harness.grid import expand, resolve
from harness.gridfile import parse
from harness.prerequisites import asks_for_compiler, deepspeed_trouble

Installed = Callable[[str, str], None]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Installed:
    """These versions of DeepSpeed and torch, and no toolkit."""
    for name in ("CUDA_HOME", "CUDA_PATH", "DS_IGNORE_CUDA_DETECTION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    there = importlib.metadata.version
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: object())
    monkeypatch.setattr(prerequisites.Path, "exists", lambda path: "local" not in path.parts and path.is_file())

    def install(deepspeed: str, torch: str) -> None:
        versions = {"deepspeed": deepspeed, "torch": torch}
        monkeypatch.setattr(importlib.metadata, "version", lambda name: versions.get(name) or there(name))

    return install


def test_the_plan_says_that_deepspeed_would_ask_for_a_compiler(
    installed: Installed,
    tree: Path,
    write_grid: Callable[..., Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    installed("0.18.9", "2.13.0+cu130")
    parsed = parse(
        yaml.safe_load(write_grid(tree, defaults={"processes": 2, "strategy": "deepspeed_zero1"}).read_text())
    )
    with pytest.raises(ConfigError, match=r"^strategy: deepspeed_zero1 cannot be imported: DeepSpeed 0\.18\.9 .* nvcc"):
        expand(parsed, resolve(parsed, "cuda"))
    assert expand(parsed, resolve(parsed, "cpu")).trainings
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "nvcc").touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert not deepspeed_trouble("cuda")
    monkeypatch.setenv("CUDA_HOME", str(tmp_path / "runtime"))  # without a compiler
    assert "nvcc" in deepspeed_trouble("cuda")
    installed("0.19.8", "2.13.0+cu130")
    assert not deepspeed_trouble("cuda")


@pytest.mark.parametrize(
    ("deepspeed", "torch", "asks"),
    [
        ("0.16.0", "2.11.0", True),
        ("0.19.4+d254d75e", "2.13.0+cu130", True),
        ("0.19.4", "2.13.0+cpu", False),  # no GPU is seen
        ("0.19.4", "2.13.0+rocm7.0", False),
        ("0.19.5", "2.13.0+cu130", False),
        ("0.20.0", "2.13.0", False),
        ("1.0", "2.13.0", False),
        ("", "2.13.0", False),
    ],
)
def test_which_versions_ask_for_it(deepspeed: str, torch: str, asks: bool) -> None:
    assert asks_for_compiler(deepspeed, torch) is asks
