"""From the folder of a run to what a model is made of: its content, and the files of its teacher and students. No torch
is imported here.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dskd.config import ConfigError, from_mapping, require
from harness import plugins, weights
from harness.axes import backbone_entry, method_entry, source_of
from harness.foreign import Damaged
from harness.gridfile import Grid, read_grid
from harness.naming import names_of
from harness.predict.content import Content, content_of
from harness.records import Record, RecordError, Results
from harness.run_folder import ResultsFolder, read_calibration
from harness.spec import EvaluateSpec, TrainSpec, Weights

MOST_NAMED = 5


@dataclass(frozen=True)
class Stored:
    """A done run on this machine. `teacher`: the file of its weights, None for random ones; `notes`: what there is to
    say of it, a line each.
    """

    content: Content
    students: Path
    teacher: Path | None
    notes: tuple[str, ...] = ()


def read(folder: Path, given: str | Path | None = None) -> Stored:
    """The training or the evaluation in this folder; of a training its one evaluation.

    Args:
        given: the teacher's weights, where they are not to be looked for: a file, or a name as grids write it.

    Raises:
        ConfigError: a run that is not done, was done by another revision, or whose weights were not kept or cannot be
            found here; a training with several evaluations, or with none.
    """
    folder = folder.resolve()
    require(
        not ResultsFolder(folder).grid.exists(),
        f"{folder} holds the runs of a grid; name the folder of one of them, which `harness show method=...` lists",
    )
    results = Results(folder.parent)
    evaluation = _evaluation(results, _record(results, folder))
    own = results.run_folder(evaluation.id)
    spec = _spec(evaluation, own.path)
    training = _record(results, results.run_folder(spec.train.id).path)
    trained = results.run_folder(training.id)
    require(
        trained.students.is_file(),
        f"{trained.path} has no {trained.students.name}: its weights were not kept (save: {{weights: false}}) or were "
        "removed; write save: {weights: true} in its grid and train again with harness run --grid GRID --force",
    )
    skipped: list[Damaged] = []
    content = content_of(training, evaluation, spec, read_calibration(own, skipped))
    check_plugins(content)
    require(
        spec.map.student_fuse != "error_disagreement" or content.standardisation is not None,
        f"{own.path} was evaluated before its statistics of normal images were kept, which map.student_fuse: "
        f"error_disagreement needs; remove that folder and run its grid again, which only evaluates",
    )
    grid = _grid(ResultsFolder(folder.parent).grid)
    preparation = replace(content.preparation, max_megapixels=_max_megapixels(grid, content))
    notes = [f"{each.folder}: {each.message}; there are no p-values" for each in skipped]
    teacher = _teacher(spec.train, given, grid)
    return Stored(replace(content, preparation=preparation), trained.students, teacher, tuple(notes))


def _record(results: Results, folder: Path) -> Record:
    """The run's record. Raises ConfigError where it is not done."""
    try:
        found = results.record(folder.name)
    except RecordError as error:
        raise ConfigError(f"{folder}: {error}; run its grid again") from None
    if found is None:
        failure = results.last_failure(folder.name)
        why = f"its last attempt failed ({failure.reason})" if failure else "it has no record"
        raise ConfigError(f"{folder} is no run that is done: {why}; run its grid, or name another folder")
    require(found.kind != "bench", f"{folder} is a measurement of throughput; name a training or an evaluation")
    return found


def _spec(record: Record, folder: Path) -> EvaluateSpec:
    """Of an evaluation. Raises ConfigError where today's code would make other numbers of it."""
    try:
        spec = from_mapping(EvaluateSpec, record.spec)
    except ConfigError as error:
        raise ConfigError(f"{folder}: its settings are not known here ({error})") from None
    commit = record.environment.get("commit") or "an earlier one"
    require(
        spec.id == record.id,
        f"{folder} is of another revision of the methods or metrics (commit {commit}), so its scores and thresholds "
        "are not those of this one; run its grid again, or install that commit",
    )
    return spec


def _evaluation(results: Results, record: Record) -> Record:
    """The record itself, or that of the training's one evaluation."""
    if record.kind == "evaluate":
        return record
    found = [
        each
        for each in results
        if isinstance(each, Record) and each.kind == "evaluate" and _is_of(each.spec["train"], record)
    ]
    if len(found) == 1:
        return found[0]
    folder = results.run_folder(record.id).path
    require(bool(found), f"{folder} is a training without an evaluation, which decides map and score; run its grid")
    names = names_of((each.id, each.spec) for each in found)
    listed = ", ".join(f"{results.run_folder(each.id).path} ({names[each.id]})" for each in found[:MOST_NAMED])
    more = f" and {len(found) - MOST_NAMED} more" if len(found) > MOST_NAMED else ""
    raise ConfigError(f"{folder} has {len(found)} evaluations, each with a map and a score; name one: {listed}{more}")


def _is_of(train: Mapping[str, Any], record: Record) -> bool:
    """Whether a recorded spec is that of the training: all that decides numbers is equal, and then its id."""
    if (train["seed"], train["backbone"], train["data"]["manifest"]) != (
        record.spec["seed"],
        record.spec["backbone"],
        record.spec["data"]["manifest"],
    ):
        return False
    try:
        return from_mapping(TrainSpec, train).id == record.id
    except ConfigError:
        return False


def check_plugins(content: Content) -> None:
    """Raises ConfigError for one that the run was done with and that is not loaded."""
    plugins.load()
    missing = sorted(content.plugins.keys() - plugins.loaded().keys())
    require(
        not missing,
        f"the run was done with the plug-in {', '.join(missing)}, which is not loaded; give --plugin, or call "
        "harness.plugins.load([MODULE]) before",
    )


def _grid(path: Path) -> Grid | None:
    """Of a results folder; None where there is none that can be read."""
    try:
        return read_grid(path)
    except ConfigError:
        return None


def _blocks(grid: Grid | None) -> list[dict[str, list[Any]]]:
    return [grid.axes, *grid.include] if grid else []


def _max_megapixels(grid: Grid | None, content: Content) -> float:
    """The most that the grid allows pictures of the data set."""
    found = [content.preparation.max_megapixels]
    for entry in (entry for block in _blocks(grid) for entry in block["dataset"]):
        try:
            source = source_of(entry)
        except ConfigError:
            continue
        if source.name == content.preparation.name:
            found.append(source.max_megapixels)
    return max(found)


def _teacher(spec: TrainSpec, given: str | Path | None, grid: Grid | None) -> Path | None:
    """The file of the run's teacher. Raises ConfigError where it is not here."""
    wanted = spec.weights
    if wanted.sha256 is None:
        require(
            given is None or str(given) == "random", f"weights: the run's teacher is random, not {given}; leave it out"
        )
        return None
    names = [str(given)] if given is not None else list(dict.fromkeys(_named(wanted, grid)))
    why = ""
    for name in names:
        try:
            found, path = weights.locate(name, spec.backbone)
        except ConfigError as error:
            why = str(error)
            continue
        if found.sha256 == wanted.sha256:
            return Path(path)
        why = f"weights: {name} is not the teacher of the run (sha256 {str(found.sha256)[:16]})"
    raise ConfigError(
        f"{why or 'nothing says where the weights of the teacher are'}; the run needs {wanted.name} with sha256 "
        f"{wanted.sha256[:16]}: give its path as weights=PATH (--weights PATH)"
    )


def _named(wanted: Weights, grid: Grid | None) -> Iterator[str]:
    """What the grid calls these weights: a name that says where they are, or the paths that end in their name."""
    if wanted.name in ("imagenet", "packaged"):
        yield wanted.name
        return
    if grid is None:
        return
    places = [grid.defaults, *(extra for _, extra in grid.overrides)]
    for block in _blocks(grid):
        for entries, settings_of in ((block["method"], method_entry), (block["backbone"], backbone_entry)):
            for entry in entries:
                with suppress(ConfigError):  # of a name that is not known any more
                    places.append(settings_of(entry)[1])
        places += [{"weights": value} for value in block.get("weights", [])]
    yield from (str(place["weights"]) for place in places if Path(str(place.get("weights", ""))).name == wanted.name)
