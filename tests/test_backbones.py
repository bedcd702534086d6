"""Facts of inspected backbones, remembered on disk."""

import ast
import shutil
from pathlib import Path

import dskd
from harness import backbones

PACKAGE = Path(dskd.__file__).parent


def imported(path: Path) -> set[Path]:
    """The package's files that one of them imports, anywhere in it."""
    nodes = [node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, (ast.Import, ast.ImportFrom))]
    names = {getattr(node, "module", None) or "" for node in nodes} | {a.name for node in nodes for a in node.names}
    names |= {f"{node.module}.{a.name}" for node in nodes if isinstance(node, ast.ImportFrom) for a in node.names}
    files = {PACKAGE.joinpath(*name.split(".")[1:]).with_suffix(".py") for name in names if name.startswith("dskd.")}
    return {file for file in files if file.exists()}


def test_facts_are_of_every_module_that_inspection_imports(tmp_path: Path) -> None:
    found: set[Path] = set()
    ahead = {PACKAGE / "inspection.py"}
    while ahead:
        found |= ahead
        ahead = set().union(*map(imported, ahead)) - found
    assert {file.stem for file in found} >= {"backbones", "count", "embedding", "students", "switches", "trunk"}
    shutil.copytree(PACKAGE, tmp_path / "dskd")
    keys = [backbones._version.__wrapped__(tmp_path / "dskd")]
    assert keys == [backbones._version()]
    for file in found:
        with (tmp_path / "dskd" / file.name).open("a") as stream:
            stream.write("# changed\n")
        keys.append(backbones._version.__wrapped__(tmp_path / "dskd"))
    assert len({tuple(key) for key in keys}) == len(found) + 1
