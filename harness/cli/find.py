"""Which piece of work a command means: by id, the start of one, a folder, or labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dskd.config import ConfigError, require, suggest
from harness.files import user_path

if TYPE_CHECKING:
    from harness.records import Failure, Record

MOST_LISTED = 5
RunsOption = Annotated[Path, typer.Option(help="The folder of results in which ids and labels are looked for.")]
ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="RUN",
        help="A run: an id, the start of one, a folder, labels such as method=dskd,category=cloth; or a pack.",
        show_default=False,
    ),
]
WeightsOption = Annotated[
    Path | None,
    typer.Option(metavar="FILE", help="The teacher's weights, where they are not where the run's grid says."),
]


def is_labels(run: str) -> bool:
    """Whether it is `method=dskd,seed=0`, not an id or a path."""
    return "=" in run and "/" not in run


def find(run: str, out: Path, option: str = "--out") -> Path:
    """The folder of a piece of work, by its id, the start of one, or itself. Raises ConfigError.

    Args:
        option: of the command, that names `out`.
    """
    if ("/" in run or run == ".") and Path(run).is_dir():
        return Path(run).resolve()
    found = sorted(path for path in out.glob(f"*/{run}*") if path.is_dir()) if run.isalnum() else []
    if not found:
        raise ConfigError(
            f"no run {run!r} in {out}; `harness plan --grid GRID --list` lists ids, {option} names the folder"
        )
    if len({path.name for path in found}) > 1:
        raise ConfigError(f"{run!r} is the start of {len(found)} runs: {', '.join(path.name for path in found[:5])}")
    return found[0].resolve()


@dataclass(frozen=True)
class Hit:
    """A piece of work that was found, with its name among those of its results folder."""

    item: "Record | Failure"
    name: str
    folder: Path

    @property
    def is_done(self) -> bool:
        from harness.records import Record

        return isinstance(self.item, Record)


def having(text: str, out: Path, option: str = "--out") -> list[Hit]:
    """What has a record or a failed attempt under `out` and all of the labels or settings; see `find`."""
    from harness.leaderboard.frame import load, names_in
    from harness.naming import LABELS, kind_of, labels_of, recorded_settings

    wanted = dict(_pair(part) for part in text.split(","))
    require(out.is_dir(), f"{out} is not a folder; {option} names the folder of results")
    found = load([out])
    names = names_in(found)
    hits, known = [], {"kind", *LABELS}
    has_settings = bool(wanted.keys() - known)
    for item in (*found.trainings, *found.evaluations, *found.benches, *found.failures):
        about = recorded_settings(item.spec) if has_settings else {}
        if item.kind == "bench":  # which is of no recipe
            about = {key: value for key, value in about.items() if not key.startswith(("train.", "loss."))}
        known |= about.keys()
        labels = {"kind": kind_of(item.spec)} | labels_of(item.spec)
        both = about | labels, about | labels | labels_of(item.spec, called=True)
        if all(any(str(one.get(key)) == value for one in both) for key, value in wanted.items()):
            hits.append(Hit(item, names[item.id], found.folders[item.id].path))
    for key in wanted:
        require(key in known, f"unknown key {key!r}; {suggest(key, known)}")
    require(bool(hits), f"nothing in {out} has {text}; `harness plan --grid GRID --list` lists what a grid has")
    return sorted(hits, key=lambda hit: (hit.folder.parent, hit.name, hit.item.kind))


def _pair(part: str) -> tuple[str, str]:
    key, equals, value = part.partition("=")
    require(bool(equals), f"{part!r} is not possible; write key=value,key=value or an id")
    return key.strip(), value.strip()


def model_path(run: str, runs: Path) -> Path:
    """What `harness.predict.model.load` takes: a pack's file, or the folder of a run.

    Args:
        run: as `ModelArgument` says; of labels what is meant is the one evaluation that has them.

    Raises:
        ConfigError: no run, or several, with what tells them apart.
    """
    path = user_path(run)
    if path.is_file():
        return path
    if not is_labels(run):
        return find(run, runs, "--runs")
    done = [hit for hit in having(run, runs, "--runs") if hit.is_done and hit.item.kind != "bench"]
    require(bool(done), f"nothing in {runs} that is done has {run}; run its grid, or write other labels")
    found = [hit for hit in done if hit.item.kind == "evaluate"] or done
    if len(found) > 1:
        listed = "; ".join(f"{hit.folder} ({hit.name})" for hit in found[:MOST_LISTED])
        more = f"; and {len(found) - MOST_LISTED} more" if len(found) > MOST_LISTED else ""
        raise ConfigError(f"{run} is {len(found)} models, {_telling(found)}: {listed}{more}")
    return found[0].folder


def _telling(hits: Sequence[Hit]) -> str:
    """What to write so that one of them is meant."""
    from harness.naming import labels_of

    each = [labels_of(hit.item.spec, called=True) for hit in hits]
    values = {key: list(dict.fromkeys(str(one[key]) for one in each)) for key in each[0]}
    differing = [(key, found) for key, found in values.items() if len(found) > 1]
    if not differing:
        return "which differ in their settings; name the folder of one"
    key, found = differing[-1] if differing[-1][0] != "seed" or len(differing) == 1 else differing[-2]
    return f"of {key} {', '.join(found[:MOST_LISTED])}; say which, such as {key}={found[0]}"
