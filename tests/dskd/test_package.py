"""The package's front door: names that are imported when they are first used, and what must not import torch."""

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

import dskd


def test_an_editor_is_told_the_names_that_are_there() -> None:
    (block,) = (node for node in ast.parse(Path(dskd.__file__).read_text()).body if isinstance(node, ast.If))
    told = {}
    for line in block.body:
        assert isinstance(line, ast.ImportFrom)
        for alias in line.names:
            assert alias.asname == alias.name  # else a type checker takes it for the package's own
            told[alias.name] = line.module
    assert told == {name: f"dskd.{home}" for name, home in dskd._HOMES.items()}
    assert all(getattr(dskd, name) is getattr(importlib.import_module(home), name) for name, home in told.items())


@pytest.mark.parametrize("module", ["backbones", "config", "lookup", "methods", "switches"])
def test_names_and_facts_need_no_torch(module: str) -> None:
    code = f"import sys, dskd.{module}; sys.exit('torch' in sys.modules or 'timm' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
