"""Fixtures of the fault tests on data."""

from pathlib import Path

import pytest

from harness.data import builtin, layouts  # noqa: F401  (they register their data sets)
from harness.data.catalog import Source, get_source


@pytest.fixture
def new_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own: nothing was read or decoded before."""
    monkeypatch.setenv("HARNESS_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def source(tree: Path) -> Source:
    return get_source({"name": "folder", "root": str(tree)})
