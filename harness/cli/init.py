"""`harness init`"""

from pathlib import Path
from typing import Annotated

import typer

from dskd.config import ConfigError


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
            target.parent.mkdir(parents=True, exist_ok=True)
            with target.open("xb") as stream:
                stream.write(content)
            target.chmod(0o755 if target.suffix == ".sh" else 0o644)
            written += 1
        except FileExistsError:
            if not target.is_file() or target.read_bytes() != content:
                kept.append(str(place))
        except OSError as error:
            raise ConfigError(f"{target} cannot be written ({error.strerror}); name another folder") from None
    typer.echo(f"{written} files written to {folder}")
    for place in kept:
        typer.echo(f"kept {place}, which differs from the one that ships")
