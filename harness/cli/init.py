"""`harness init`"""

import os
from pathlib import Path
from typing import Annotated

import typer

from dskd.config import ConfigError
from harness.files import write_atomic
from harness.text import one_line


def init(
    folder: Annotated[Path, typer.Argument(metavar="[DIR]", help="Where to; made if it is not there.")] = Path("."),
) -> None:
    """Copy the files to start from into a folder: batch scripts for SLURM (`slurm/`) and grids (`benchmarks/`).

    Files that are there already stay as they are; those that differ from what ships are named.
    """
    from harness import shipped

    written, kept = 0, []
    for source, place in shipped.files():
        target, content = folder / place, source.read_bytes()
        try:
            if os.path.lexists(target):
                if not target.is_file() or target.read_bytes() != content:
                    kept.append(place)
                continue
            target.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(target, content)
            target.chmod(0o755 if target.suffix == ".sh" else 0o644)
            written += 1
        except OSError as error:
            raise ConfigError(f"{target} cannot be written ({error.strerror}); name another folder") from None
    typer.echo(f"{written} files written to {one_line(str(folder))}")
    for place in kept:
        typer.echo(f"kept {place}, which differs from the one that ships")
