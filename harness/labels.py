"""What a grid calls its methods, backbones, data sets and evaluations: `label:` in an entry. Shown, and in no id."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dskd.backbones import BACKBONES
from dskd.config import ConfigError, quoted, require
from dskd.methods import METHODS
from harness.data.catalog import SOURCES, Source, get_source
from harness.files import user_path

if TYPE_CHECKING:
    from harness.gridfile import Grid

MOST_CHARACTERS = 60
KNOWN: dict[str, Mapping[str, Any]] = {"method": METHODS, "backbone": BACKBONES, "dataset": SOURCES}
Label = tuple[str, Any, str]  # axis, entry without its label, label


def taken_out(axes: Mapping[str, list[Any]]) -> tuple[dict[str, list[Any]], list[Label]]:
    """The axes without the labels of their entries, and these. What is left of an entry with a name alone is the name.

    Raises:
        ConfigError: a label that is not possible.
    """
    found: list[Label] = []
    rest = {}
    for axis, values in axes.items():
        kept = []
        for value in values:
            if axis in KNOWN and isinstance(value, Mapping) and "label" in value:
                label = check(value["label"], axis)
                entry = {key: inner for key, inner in value.items() if key != "label"}
                value = entry["name"] if entry.keys() == {"name"} else entry
                found.append((axis, value, label))
            kept.append(value)
        rest[axis] = kept
    return rest, found


def check(label: Any, where: str) -> str:
    """The label, where it is possible. Raises ConfigError."""
    require(
        isinstance(label, str)
        and 0 < len(label) <= MOST_CHARACTERS
        and label == label.strip()
        and label.isprintable()
        and not set(label) & set(",="),
        f"{where}: the label {quoted(label)} is not possible; write a text of 1 to {MOST_CHARACTERS} characters in one "
        "line, without comma and equals sign",
    )
    return label


def check_all(grid: "Grid", names: Mapping[str, Sequence[str]], sources: Iterable[Source]) -> None:
    """Raises ConfigError for two entries of one axis with the same label, two labels of one entry, or a label that is
    another's name.

    Args:
        names: by axis those of the grid's entries; sources: of its data sets.
    """
    sources = list(dict.fromkeys(sources))
    for axis, known in KNOWN.items():
        seen: dict[str, Any] = {}
        for entry, label in _labelled(grid, axis, sources):
            own = entry if isinstance(entry, str) else entry["name"] if isinstance(entry, Mapping) else entry.name
            if label != own and (label in known or label in names[axis]):
                raise ConfigError(f"{axis}: the label {quoted(label)} is the name of another; write another label")
            other = seen.setdefault(label, entry)
            if other != entry and not _same_folder(other, entry):
                where = f" ({other.root} and {entry.root})" if isinstance(entry, Source) else ""
                raise ConfigError(f"{axis}: two entries are called {quoted(label)}{where}; write a label: of its own")
    for axis, entry, label in grid.labels:
        for other_axis, other, text in grid.labels:
            if (axis, entry) == (other_axis, other) and text != label:
                raise ConfigError(f"{axis}: one entry has two labels, {quoted(label)} and {quoted(text)}; write one")


def called(values: Mapping[str, Any], grid: "Grid") -> tuple[tuple[str, str], ...]:
    """The labels of a run's method, backbone and data set, as `TrainSpec.called` has them.

    Args:
        values: by axis the entry; of the data set its source.
    """
    sources = [values["dataset"]]
    return tuple(
        (axis, label) for axis in KNOWN for entry, label in _labelled(grid, axis, sources) if entry == values[axis]
    )


def _labelled(grid: "Grid", axis: str, sources: Sequence[Source]) -> list[tuple[Any, str]]:
    """Entries of an axis (of data sets their sources) with their labels; a folder of one's own has that of its root."""
    own = [(entry, label) for where, entry, label in grid.labels if where == axis]
    if axis != "dataset":
        return own
    own = [(get_source(entry, grid.limit), label) for entry, label in own]
    told = {source for source, _ in own}
    defaults = [(source, _default(source)) for source in sources if source not in told]
    return own + [(source, label) for source, label in defaults if label]


def _default(source: Source) -> str:
    """Of a folder its root's name, unless that is what another data set is called."""
    name = user_path(source.root).name if source.name == "folder" and source.root else ""
    try:
        return "" if name in SOURCES else check(name, "dataset")
    except ConfigError:
        return ""


def _same_folder(first: Any, second: Any) -> bool:
    """Whether both are data sets of one folder, called by it."""
    return isinstance(first, Source) and isinstance(second, Source) and first.root == second.root
