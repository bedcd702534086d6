"""The files beside the packages that users start from: the batch scripts in `slurm/`, and `benchmarks/grids/`."""

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

FOLDERS = ("slurm", "benchmarks/grids")
_CHECKOUT = Path(__file__).resolve().parents[1]


def files() -> Iterator[tuple[Path, Path]]:
    """(where it lies, its path from the repository's root) of each: of the checkout, else as the wheel installed it."""
    if (_CHECKOUT / "pyproject.toml").exists():
        for folder in FOLDERS:
            for path in sorted((_CHECKOUT / folder).rglob("*")):
                if path.is_file() and "__pycache__" not in path.parts:
                    yield path, path.relative_to(_CHECKOUT)
        return
    for entry in importlib.metadata.files("dskd-harness") or ():
        path = entry.as_posix()
        if "share/dskd-harness/" in path:
            yield Path(entry.locate()).resolve(), Path(path.partition("share/dskd-harness/")[2])


def text(name: str) -> str:
    """Of a shipped file by its path from the repository's root."""
    return next(path for path, place in files() if place == Path(name)).read_text()
