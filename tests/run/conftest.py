"""The small backbone is known to the tests of this folder, and in their grids unless they name another."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dskd.backbones import BACKBONES, TRUNKS
from tests.run.small import SMALL, SmallResNet


@pytest.fixture(scope="package", autouse=True)
def small_backbone() -> Iterator[None]:
    TRUNKS[SMALL] = SmallResNet
    yield
    del TRUNKS[SMALL]
    BACKBONES.pop(SMALL, None)


@pytest.fixture
def write_grid(write_grid: Callable[..., Path]) -> Callable[..., Path]:
    def write(root: Path | None = None, axes: dict[str, Any] | None = None, **sections: object) -> Path:
        return write_grid(root, axes={"backbone": [SMALL]} | (axes or {}), **sections)

    return write
