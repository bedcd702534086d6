"""A grid file: read within bounds, parsed, and checked as far as its own words go: no name is looked up.

A few hundred bytes of YAML can stand for more than any memory holds (aliases of aliases), or hold themselves, so what a
document comes to is counted before anything is made of it: whatever lies there, reading it ends soon.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import yaml

from dskd.config import ConfigError, coerce, dotted_keys, from_mapping, quoted, require, suggest
from dskd.switches import Method
from harness import labels
from harness.labels import Label
from harness.naming import LABELS
from harness.spec import Bench, EvaluateSpec, Save, Tracking, TrainSpec, settings

Settings = dict[str, Any]

RUN_KEYS = {each.key: field for field, each in settings(TrainSpec).items()}
METHOD_KEYS = [key for key in dotted_keys(Method) if key not in ("name", "revision")]
MEASURED_KEYS = {each.key: field for field, each in settings(EvaluateSpec).items()}
EVALUATE_KEYS = [*(key for key in METHOD_KEYS if key.startswith("map.")), *MEASURED_KEYS]
OWN_MEASURED_KEYS = [key for key in MEASURED_KEYS if key not in METHOD_KEYS]  # those that no method has a default of
SETTABLE = [*(key for key in RUN_KEYS if key != "seed"), *METHOD_KEYS, *OWN_MEASURED_KEYS]
AXES = ["method", "backbone", "dataset", "seed", *SETTABLE]
LOG = "log"  # of `evaluate.at`: spaced logarithmically
MOST_RUNS = 1_000_000  # of a grid, for each category

MOST_BYTES = 2**20
MOST_VALUES = 100_000  # keys and values, those that aliases repeat too
MOST_DEPTH = 32  # lists and mappings within each other
MOST_CHARACTERS = 4096  # of one value: a path may be so long
MOST_DIGITS = 100
EXAMPLES = "(see benchmarks/grids)"


@dataclass(frozen=True)
class Grid:
    """A grid file, of which every key exists; `harness.grid` checks names and rules (`resolve`) and values (`expand`).

    Attributes:
        axes: values by axis; every combination is a run of each category.
        defaults: settings of all runs.
        include: further axes, each with those of the grid that it does not name itself.
        exclude: rules; a run that meets one of them is left out.
        overrides: rules, each with the settings of the runs that meet it.
        evaluate: settings of each evaluation of a training, and its `label`.
        limit: images, as by `Source.limit`, of every data set; None for all.
        labels: of entries of axes, which are without them.
        path: where it was read; begins messages about it.
        text: the bytes that were read.
    """

    name: str
    axes: dict[str, list[Any]]
    defaults: Settings = field(default_factory=dict)
    include: list[dict[str, list[Any]]] = field(default_factory=list)
    exclude: list[Settings] = field(default_factory=list)
    overrides: list[tuple[Settings, Settings]] = field(default_factory=list)
    evaluate: list[Settings] = field(default_factory=lambda: [{}])
    bench: Bench | None = None
    save: Save = field(default_factory=Save)
    tracking: Tracking | None = None
    limit: int | None = None
    labels: list[Label] = field(default_factory=list)
    path: Path | None = field(default=None, compare=False)
    text: bytes = field(default=b"", compare=False, repr=False)


def read_grid(path: Path) -> Grid:
    """Raises ConfigError for a file that is not there, is not YAML or says something that cannot be meant."""
    text, document = read_document(path)
    with beginning(path):
        return replace(parse(document), path=path, text=text)


@contextmanager
def beginning(path: Path | None) -> Iterator[None]:
    """A ConfigError about a grid file begins with its path."""
    try:
        yield
    except ConfigError as error:
        raise (ConfigError(f"{path}: {error}") if path else error) from None


def parse(document: Any) -> Grid:
    """A grid from the parsed YAML. Raises ConfigError."""
    require_mapping(document, "a grid file")
    require("search" not in document, "this is a search file; write `harness search` and its path")
    known = ["name", "axes", "defaults", "include", "exclude", "overrides", "evaluate", "bench", "save", "tracking"]
    known += ["limit", "calibrate"]
    _require_keys(document, known, "")
    name = _name(document.get("name", ""))
    axes, called = labels.taken_out(_axes(document.get("axes"), "axes"))
    for axis in ("method", "backbone", "dataset"):
        require(axis in axes, f"axes: {axis!r} is missing; write axes: {{{axis}: [...]}}")
    axes.setdefault("seed", [0])
    include = []
    for entry in _list(document.get("include"), "include"):
        own, more = labels.taken_out(_axes(entry, "include"))
        include.append(axes | own)
        called += more
    rules = [flat_settings(rule, [*LABELS, *AXES], "exclude") for rule in _list(document.get("exclude"), "exclude")]
    overrides = []
    for rule in _list(document.get("overrides"), "overrides"):
        require_mapping(rule, "an entry of overrides")
        _require_keys(rule, ["when", "set"], "overrides: ")
        when = flat_settings(rule.get("when", {}), [*LABELS, *AXES], "overrides.when")
        overrides.append((when, flat_settings(rule.get("set", {}), SETTABLE, "overrides.set")))
    defaults = flat_settings(document.get("defaults") or {}, SETTABLE, "defaults")
    if "calibrate" in document:  # short for the default
        require("calibrate" not in defaults, "calibrate: is in defaults too; leave one of them out")
        defaults["calibrate"] = document["calibrate"]
    bench = document.get("bench")
    grid = Grid(
        name=name,
        axes=axes,
        defaults=defaults,
        include=include,
        exclude=rules,
        overrides=overrides,
        evaluate=_evaluate(document.get("evaluate")),
        bench=from_mapping(Bench, bench, "bench") if bench else None,
        save=from_mapping(Save, document.get("save") or {}, "save"),
        tracking=coerce(document.get("tracking"), Tracking | None, "tracking"),
        limit=coerce(document.get("limit"), int | None, "limit"),
        labels=called,
    )
    require_limit(grid.limit, "limit")
    runs = sum(math.prod(map(len, block.values())) for block in [grid.axes, *grid.include])
    require(runs <= MOST_RUNS, f"axes: they combine to {runs:,} runs of each category; write at most {MOST_RUNS:,}")
    return grid


def require_limit(limit: int | None, where: str) -> None:
    """Raises ConfigError for a limit that leaves no images."""
    require(limit is None or 2 <= limit < 2**31, f"{where}: {limit} is not possible; write 2 or more images")


def _evaluate(entries: Any) -> list[Settings]:
    """The settings of each evaluation. Raises ConfigError."""
    keys = [*EVALUATE_KEYS, "label"]
    found = [flat_settings(entry or {}, keys, "evaluate") for entry in _list(entries, "evaluate") or [{}]]
    said = [labels.check(entry["label"], "evaluate") for entry in found if "label" in entry]
    twice = next((label for label in said if said.count(label) > 1), None)
    require(twice is None, f"evaluate: two entries are called {quoted(twice)}; write a label of its own for each")
    return found


def _name(value: Any) -> str:
    """Of the results folder, so never a hidden one, and never `..`, whose files would be the user's own."""
    name = str(value)
    require(
        re.fullmatch(r"[\w-][\w.-]*", name) is not None and len(name.encode()) <= 255,
        f"name: {quoted(value)} is not possible; write letters, digits, . _ and -, not beginning with a dot",
    )
    return name


def _axes(axes: Any, where: str) -> dict[str, list[Any]]:
    require_mapping(axes, where)
    _require_keys(axes, AXES, f"{where}: ")
    lists = {axis: values if isinstance(values, list) else [values] for axis, values in axes.items()}
    for axis, values in lists.items():
        require(bool(values), f"{where}: {axis!r} is empty; write at least one value")
    return lists


def flat_settings(settings: Any, keys: Sequence[str], where: str) -> Settings:
    """Settings with dotted keys; `train: {epochs: 1}` is taken as `train.epochs: 1`. Raises ConfigError."""
    require_mapping(settings, where)
    flat: Settings = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and key not in keys:
            flat |= {f"{key}.{inner}": item for inner, item in value.items()}
        else:
            flat[key] = value
    _require_keys(flat, keys, f"{where}: ")
    return flat


def run_settings(settings: Settings, epochs: int) -> Settings:
    """Those of `TrainSpec` but the weights. `evaluate.at: log` becomes the powers of two, and the last of the recipe's
    epochs: its list is what is run.

    Raises:
        ConfigError: `evaluate.at` is neither a list nor `log`.
    """
    found = {key: settings[key] for key in RUN_KEYS if key in settings and key != "weights"}
    at = found.get("evaluate.at", [])
    require(
        isinstance(at, (list, tuple)) or at == LOG,
        f"evaluate.at: {quoted(at)} is not possible; write {LOG} (1, 2, 4, ... and the last), or a list of epochs",
    )
    spaced = {"evaluate.at": sorted({*(2**power for power in range(epochs.bit_length())), epochs})}
    return found | spaced if at == LOG else found


def _list(value: Any, where: str) -> list[Any]:
    """A mapping alone is a list of one."""
    value = [value] if isinstance(value, Mapping) and value else value
    require(not value or isinstance(value, list), f"{where}: {quoted(value)} is not possible; write a list")
    return value or []


def require_mapping(value: Any, where: str) -> None:
    require(isinstance(value, Mapping), f"{where}: {quoted(value)} is not possible; write a mapping of keys to values")


def _require_keys(mapping: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    for key in mapping:
        if key not in keys:
            raise ConfigError(f"{where}unknown key {quoted(key)}; {suggest(key, keys)}")


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    def whole(self, node: yaml.ScalarNode) -> int:
        if len(node.value) > MOST_DIGITS:  # Python itself refuses to read or write some thousands of digits
            raise yaml.constructor.ConstructorError(None, None, "a number of too many digits", node.start_mark)
        return self.construct_yaml_int(node)


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.whole)


def read_document(path: Path) -> tuple[bytes, Any]:
    """The bytes of a grid file and what they hold as plain data. The file is read once: it may be a pipe.

    Raises:
        ConfigError: a file that is not there, is no text, is not YAML, or is more than a grid can mean.
    """
    content = _bytes(path)
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a text file; a grid file is YAML {EXAMPLES}") from None
    try:
        _check(text)
        return content, yaml.load(text, _Loader)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None
    except (yaml.YAMLError, ValueError) as error:  # a ValueError: 2026-13-45
        said = " ".join(str(error).split()).replace(' in "<unicode string>",', ",")  # the parser knows no file
        raise ConfigError(f"{path} is not YAML: {said[:300]}") from None


def _bytes(path: Path) -> bytes:
    try:
        with open(path, "rb") as stream:
            content = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; write the path of a grid file {EXAMPLES}") from None
    except ValueError:  # a NUL
        raise ConfigError(f"{quoted(str(path))} is no path; write the path of a grid file {EXAMPLES}") from None
    require(
        len(content) <= MOST_BYTES, f"{path} is more than {MOST_BYTES} bytes; write the path of a grid file {EXAMPLES}"
    )
    return content


@dataclass
class _Open:
    """A list or mapping that is being read: what it came to so far, and the keys of a mapping with their lines."""

    anchor: str | None
    keys: dict[tuple[str, bool], str] | None
    items: int = 0
    values: int = 1
    depth: int = 0

    def add(self, event: yaml.Event, values: int, depth: int) -> None:
        if self.keys is not None and self.items % 2 == 0 and isinstance(event, yaml.ScalarEvent):
            key = event.value, event.implicit[0]  # 1 is not "1"
            if key in self.keys:
                places = f"{self.keys[key]} and {_place(event)}"
                raise ConfigError(f"the key {quoted(event.value)} is written twice, {places}; leave one of them out")
            self.keys[key] = _place(event)
        self.items += 1
        self.values += values
        self.depth = max(self.depth, depth)


def _check(text: str) -> None:
    """Raises ConfigError for a document out of bounds. It is read as a stream, so nothing of it is held."""
    known: dict[str, tuple[int, int]] = {}  # of an anchor: how many values it stands for, and how deep it goes
    within = [_Open(None, None)]
    for event in yaml.parse(text, _Loader):
        tag, anchor = getattr(event, "tag", None), getattr(event, "anchor", None)
        if tag not in (None, "!"):
            raise ConfigError(f"the tag {quoted(tag)} is not possible; write plain values, {_place(event)}")
        if isinstance(event, yaml.ScalarEvent):
            if len(event.value) > MOST_CHARACTERS:
                raise ConfigError(f"a value of {len(event.value)} characters, {_place(event)}; write a shorter one")
            size = 1, 0
        elif isinstance(event, yaml.AliasEvent):
            if anchor not in known:  # one that is open still would hold itself
                raise ConfigError(f"*{anchor} names nothing that ended before it, {_place(event)}")
            size = known[anchor]
        elif isinstance(event, yaml.CollectionEndEvent):
            ended = within.pop()
            anchor, size = ended.anchor, (ended.values, ended.depth + 1)
        else:
            size = 0, 0
        if isinstance(event, yaml.CollectionStartEvent):
            within.append(_Open(anchor, {} if isinstance(event, yaml.MappingStartEvent) else None))
        elif size[0]:
            within[-1].add(event, *size)
            if anchor is not None:
                known[anchor] = size
        if within[-1].values > MOST_VALUES:
            raise ConfigError(f"more than {MOST_VALUES} values, counted as aliases repeat them")
        if len(within) - 1 + size[1] > MOST_DEPTH:
            raise ConfigError(f"more than {MOST_DEPTH} lists within each other, {_place(event)}")


def _place(event: yaml.Event) -> str:
    return f"line {event.start_mark.line + 1}"
