"""From a grid file to runs, in two steps: `resolve` (effects: names, data sets, weights) and `expand` (pure)."""

import functools
import itertools
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any, TypeVar

from dskd.config import ConfigError, coerce, field_types, quoted, replace, require, suggest
from dskd.methods import METHODS, get_method
from dskd.size import simplest, size_text
from dskd.switches import Method
from harness import calibration, labels
from harness.axes import backbone_entry, method_entry, source_of
from harness.backbones import remember
from harness.data import builtin, findings, hub, layouts, leftovers, presets, tables  # noqa: F401  (they register their data sets)
from harness.data.catalog import Source
from harness.data.manifest import Look, look
from harness.environment import device_name, thread_count
from harness.gridfile import (
    MEASURED_KEYS,
    METHOD_KEYS,
    OWN_MEASURED_KEYS,
    RUN_KEYS,
    Grid,
    Settings,
    beginning,
    run_settings,
)
from harness.naming import counted, names_of
from harness.prerequisites import deepspeed_trouble
from harness.spec import Bench, BenchSpec, Data, EvaluateSpec, Spec, TrainSpec, Weights
from harness.weights import is_folded, locate

T = TypeVar("T")
Looks = dict[tuple[Source, str], Look]  # what was found of each category

DEFAULT_WEIGHTS = "imagenet"


@dataclass(frozen=True)
class Facts:
    """What `expand` needs to know of the world: per data set its categories, per (weights, backbone) the file, and
    which of these files no student can start from. `no_deepspeed`: why it cannot be used; empty where it can.
    `unread`: per data set, in words, the pictures that lie among its own.
    """

    categories: dict[Source, list[Data]]
    weights: dict[tuple[str, str], tuple[Weights, str | None]]
    device: str
    threads: int
    folded: frozenset[tuple[str, str]] = frozenset()
    no_deepspeed: str = ""
    looks: Looks = field(default_factory=dict)
    unread: dict[Source, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Training:
    """One training with its evaluations, and where its data and weights lie on this machine (not part of any id)."""

    spec: TrainSpec
    evaluations: tuple[EvaluateSpec, ...]
    source: Source
    weights_path: str | None


@dataclass(frozen=True)
class Plan:
    """All work of a grid, each piece once, in the order of the grid. `names`: by id, those of the whole grid in a part
    of it too.
    """

    trainings: list[Training]
    benches: list[BenchSpec]
    looks: Looks = field(default_factory=dict)
    unread: dict[Source, str] = field(default_factory=dict)
    names: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.names:
            self.names.update(names_of((spec.id, spec) for spec in self.works()))

    def counted(self, among: Set[str] | None = None) -> str:
        """`3 runs (3 trainings, 6 evaluations), 1 measurement`: the words and counts of every command.

        Args:
            among: ids to count, all if None; a run counts where any of its works does.
        """
        kinds = Counter(spec.kind for spec in self.works() if among is None or spec.id in among)
        ids = [(run.spec.id, *(each.id for each in run.evaluations)) for run in self.trainings]
        runs = sum(among is None or not among.isdisjoint(own) for own in ids)
        return counted(runs, kinds["bench"], kinds["train"], kinds["evaluate"])

    def works(self) -> Iterator[Spec]:
        """Every piece of work."""
        for training in self.trainings:
            yield training.spec
            yield from training.evaluations
        yield from self.benches

    def remarks(self) -> list[str]:
        """What there is to say of its data sets, a line each: what was found, and what follows from it."""
        chosen = self.chosen_looks()
        sources = dict.fromkeys(source for source, _ in chosen)
        unread = [f"{source.name}: {self.unread[source]}" for source in sources if self.unread.get(source)]
        return [*findings.remarks(chosen), *unread, *calibration.remarks(self.trainings, self.looks)]

    def chosen_looks(self) -> Looks:
        """At the categories of its trainings."""
        chosen = {(training.source, training.spec.data.category) for training in self.trainings} if self.looks else ()
        return {key: found for key, found in self.looks.items() if key in chosen}


Progress = Callable[[str, int, int], None]


def resolve(grid: Grid, device: str = "auto", progress: Progress | None = None) -> Facts:
    """Look up every name of the grid, then look at the data sets, the weights and the device that it needs. What there
    is to know of its backbones is in the table of `dskd.backbones` then.

    Args:
        device: where it will run (auto, cpu or cuda): throughput is known by the device's name.
        progress: called as (what, done, total) while files are read for the first time.

    Raises:
        ConfigError: a name that does not exist, a rule that nothing can meet, or a data set or weights that cannot be
            had, with what was expected and what was found.
    """
    with beginning(grid.path):
        _check_names(grid)
    blocks = [grid.axes, *grid.include]
    categories: dict[Source, list[Data]] = {}
    looks: Looks = {}
    unread: dict[Source, str] = {}
    for source in dict.fromkeys(source_of(entry, grid.limit) for block in blocks for entry in block["dataset"]):
        report = functools.partial(progress, f"reading {source.name}") if progress else None
        own = {(source, category): look(source, category, report) for category in source.chosen()}
        categories[source] = [found.data for found in own.values()]
        looks |= own
        unread[source] = leftovers.look(source, {name for found in own.values() for name in found.prints})
    for name in _trunks(grid):
        remember(name)
    chosen = (_chosen(grid, values, data) for values, data in _combinations(grid, categories))
    pairs = {(_weights_of(run.settings), run.backbone) for run in chosen if run}
    weights = {pair: locate(*pair) for pair in sorted(pairs)}
    folded = frozenset(key for key, (_, path) in weights.items() if path is None or is_folded(Path(path)))
    trouble = deepspeed_trouble(device)
    return Facts(categories, weights, device_name(device), thread_count(), folded, trouble, looks, unread)


def _trunks(grid: Grid) -> set[str]:
    """Every other trunk that an encoder student of the grid may have."""
    names = {METHODS[method_entry(entry)[0]].encoder.backbone for entry in _entries(grid, "method")}
    places = [grid.defaults, *(method_entry(entry)[1] for entry in _entries(grid, "method"))]
    places += [backbone_entry(entry)[1] for entry in _entries(grid, "backbone")]
    places += [extra for _, extra in grid.overrides]
    names |= {place.get("encoder.backbone") for place in places}
    names |= {name for block in [grid.axes, *grid.include] for name in block.get("encoder.backbone", [])}
    return {str(name) for name in names if name is not None}


def _entries(grid: Grid, axis: str) -> list[Any]:
    return [entry for block in [grid.axes, *grid.include] for entry in block[axis]]


def _check_names(grid: Grid) -> None:
    """Names of methods, backbones and data sets exist, and each rule's values are among the grid's."""
    blocks = [grid.axes, *grid.include]
    values: dict[str, list[str]] = {axis: [] for block in blocks for axis in block}
    for block in blocks:
        values["method"] += [method_entry(entry)[0] for entry in block["method"]]
        values["backbone"] += [remember(backbone_entry(entry)[0]).name for entry in block["backbone"]]
        values["dataset"] += [source_of(entry).name for entry in block["dataset"]]
        for axis in block.keys() - {"method", "backbone", "dataset"}:
            values[axis] += [_option(axis, value) for value in block[axis]]
    labels.check_all(grid, values, (source_of(entry, grid.limit) for block in blocks for entry in block["dataset"]))
    rules = [("exclude", rule) for rule in grid.exclude] + [("overrides.when", when) for when, _ in grid.overrides]
    for where, rule in rules:
        for key, wanted in rule.items():
            for value in wanted if isinstance(wanted, list) else [wanted]:
                if key in values and _option(key, value) not in values[key]:
                    raise ConfigError(
                        f"{where}: {key} {quoted(value)} is not in the grid; "
                        f"{suggest(value, dict.fromkeys(values[key]))}"
                    )


def expand(grid: Grid, facts: Facts) -> Plan:
    """Axes × include, less exclude, with defaults < entries of method and backbone < axes < overrides. Pure; equal runs
    are kept once.

    Raises:
        ConfigError: a value that is not possible, with the key.
    """
    trainings: dict[str, Training] = {}
    benches: dict[str, BenchSpec] = {}
    once = _Once()
    for values, data in _combinations(grid, facts.categories):
        run = _chosen(grid, values, data)
        training = run and _training(grid, facts, run, values, data, once)
        if training is None or training.spec.id in trainings:
            continue
        trainings[training.spec.id] = training
        for bench in _benches(training.spec, grid.bench, facts):
            benches.setdefault(bench.id, bench)
    calibration.check(trainings.values(), facts.looks)
    return Plan(list(trainings.values()), list(benches.values()), facts.looks, facts.unread)


def _combinations(grid: Grid, categories: Mapping[Source, list[Data]]) -> Iterator[tuple[Settings, Data]]:
    """Every combination of axis values, with the data set as its `Source`, and each category of that."""
    for block in [grid.axes, *grid.include]:
        block = block | {"dataset": [source_of(entry, grid.limit) for entry in block["dataset"]]}
        for combination in itertools.product(*block.values()):
            values = dict(zip(block, combination, strict=True))
            for data in categories[values["dataset"]]:
                yield values, data


def matches(labels: Mapping[str, Any], rule: Mapping[str, Any]) -> bool:
    """Whether every key of the rule has one of the rule's values; values are compared as text (`0` is `"0"`), sizes
    as `256x640`.
    """
    for key, wanted in rule.items():
        options = wanted if isinstance(wanted, (list, tuple)) else [wanted]
        if _option(key, labels.get(key)) not in {_option(key, option) for option in options}:
            return False
    return True


def _option(key: str, value: Any) -> str:
    is_size = key == "image_size" and isinstance(value, list) and len(value) == 2
    return size_text(simplest(value)) if is_size else str(value)


@dataclass(frozen=True)
class _Chosen:
    """What the grid says of one combination: names, and the settings that count."""

    method: str
    backbone: str
    settings: Settings


def _chosen(grid: Grid, values: Settings, data: Data) -> _Chosen | None:
    """None for a combination that a rule leaves out."""
    name, own = method_entry(values["method"])
    backbone, its = backbone_entry(values["backbone"])
    axes = {key: value for key, value in values.items() if key not in ("method", "backbone", "dataset", "seed")}
    settings = grid.defaults | own | its | axes
    about = settings | {
        "method": name,
        "recipe": settings.get("recipe", "own"),
        "backbone": backbone,
        "dataset": data.name,
        "category": data.category,
        "seed": values["seed"],
    }
    if any(matches(about, rule) for rule in grid.exclude):
        return None
    for when, extra in grid.overrides:
        if matches(about, when):
            settings = settings | extra
    return _Chosen(name, backbone, settings)


def _weights_of(settings: Settings) -> str:
    return str(settings.get("weights", DEFAULT_WEIGHTS))


def _training(grid: Grid, facts: Facts, chosen: _Chosen, values: Settings, data: Data, once: "_Once") -> Training:
    settings = chosen.settings
    method, run = once(_configured, settings, chosen.method, data.name)
    wanted = _weights_of(settings), chosen.backbone
    weights, path = facts.weights[wanted]
    seed = once(_run_values, {"seed": values["seed"]})  # apart from the settings, which stay few
    called = once(labels.called, {key: values[key] for key in ("method", "backbone", "dataset")}, grid)
    spec = TrainSpec(method, chosen.backbone, weights, data, **seed, **run, called=called)
    require(
        spec.strategy == "ddp" or not facts.no_deepspeed,
        f"strategy: {spec.strategy} {facts.no_deepspeed}",
    )
    if method.encoder.init == "imagenet":
        require(
            wanted not in facts.folded,
            f"encoder.init: imagenet needs weights with their BatchNorm statistics, {wanted[0]} for {wanted[1]} "
            "has none (folded into the convolutions, or random); write encoder.init: random",
        )
    evaluations: dict[str, EvaluateSpec] = {}
    if data.train_images and not data.test_images:  # normal images only: there is nothing to score
        return Training(spec, (), values["dataset"], path)
    for variant in once(_variants, settings, method, grid.evaluate):
        evaluation = EvaluateSpec(spec, **variant)
        evaluations.setdefault(evaluation.id, evaluation)
    return Training(spec, tuple(evaluations.values()), values["dataset"], path)


class _Once:
    """Brings settings to their types once per distinct settings: a grid of 10,000 runs has few.

    They are known by the objects that the grid holds, since 1, 1.0 and True are equal and do not mean the same.
    """

    def __init__(self) -> None:
        self.known: dict[tuple[Any, ...], tuple[Any, ...]] = {}

    def __call__(self, make: Callable[..., T], settings: Settings, *rest: Any) -> T:
        key = (make, *settings, *map(id, settings.values()), *map(id, rest))
        if key not in self.known:
            self.known[key] = make(settings, *rest), settings, rest  # kept, or others could take their ids
        return self.known[key][0]


def _configured(settings: Settings, name: str, data: str) -> tuple[Method, Settings]:
    """The method, for the data set of this name, and fields of `TrainSpec`."""
    changes = {key: settings[key] for key in METHOD_KEYS if key in settings}
    _refuse_dates(changes)
    method = replace(get_method(name, str(changes.pop("recipe", "own")), data), changes)
    return method, _run_values(run_settings(settings, method.train.epochs))


def _run_values(settings: Settings) -> Settings:
    """Fields of `TrainSpec`, which checks the rest."""
    _refuse_dates(settings)
    kinds = field_types(TrainSpec)
    return {RUN_KEYS[key]: coerce(value, kinds[RUN_KEYS[key]], key) for key, value in settings.items()}


def _variants(settings: Settings, method: Method, variants: list[Settings]) -> list[Settings]:
    """Of each evaluation the fields of `EvaluateSpec`, less the training."""
    measured = {key: settings[key] for key in OWN_MEASURED_KEYS if key in settings}
    return [_variant(measured | variant, method) for variant in variants]


def _variant(settings: Settings, method: Method) -> Settings:
    _refuse_dates(settings)
    label = settings.get("label", "")
    settings = {key: value for key, value in settings.items() if key != "label"}
    kinds, given = field_types(EvaluateSpec), {"score": method.score} | settings
    values = {field: coerce(given[key], kinds[field], key) for key, field in MEASURED_KEYS.items() if key in given}
    limits = given.get("aupro_limits")
    if limits and all(isinstance(limit, (int, float)) for limit in limits):
        values["aupro_limits"] = tuple(limits)  # 1 stays 1 and not 1.0, which would be another id
    changes = {key.removeprefix("map."): value for key, value in settings.items() if key not in MEASURED_KEYS}
    return values | {"map": replace(method.map, changes, "map."), "label": label}


def _refuse_dates(settings: Settings) -> None:
    """YAML reads 2026-01-01 as a date, which nothing here is. Raises ConfigError."""
    if _dated(settings):
        found = (f"{key}: {str(value)[:20]}" for key, value in settings.items() if isinstance(value, date))
        strange = next(found, "a date in a list")
        raise ConfigError(f"{strange} is not possible; write numbers, texts, true or false, or lists of them")


def _dated(value: Any) -> bool:
    """Whether a date lies in it, at whatever depth."""
    if isinstance(value, Mapping):
        return any(map(_dated, value)) or any(map(_dated, value.values()))
    return any(map(_dated, value)) if isinstance(value, list) else isinstance(value, date)


def _benches(spec: TrainSpec, bench: Bench | None, facts: Facts) -> list[BenchSpec]:
    if bench is None:
        return []
    model = (spec.method, spec.backbone, spec.sides, spec.precision, facts.device, facts.threads)
    called = tuple(pair for pair in spec.called if pair[0] != "dataset")
    return [BenchSpec(*model, bench.batch_sizes, bench.seconds, compiled, called) for compiled in bench.compile]


def check_processes(plan: Plan, kind: str, count: int, nodes: int = 1) -> None:
    """Raises ConfigError for a training that `count` devices of this kind (`cpu` or `cuda`) on each of `nodes` cannot
    do together.
    """
    for spec in (training.spec for training in plan.trainings):
        require(
            spec.processes <= count * nodes,
            f"processes: {spec.processes} is more than the devices to run on, {count * nodes} ({kind}); write "
            f"processes: {count * nodes}, give --devices more, or span nodes (slurm/multinode.sh)",
        )
        require(
            spec.processes % nodes == 0,
            f"processes: {spec.processes} does not divide over --nodes {nodes}; write processes: {count * nodes}",
        )
        require(  # steps of one job would wait for each other, and take each other's port and GPUs
            nodes == 1 or spec.processes == count * nodes,
            f"processes: {spec.processes} leaves devices of --nodes {nodes} idle; write processes: {count * nodes}, or "
            f"give --devices fewer",
        )
        require(spec.compile != "graph" or kind == "cuda", "compile: graph needs CUDA devices; write compile: auto")
        require(
            spec.method.train.batch_norm == "local" or kind == "cuda",
            "train.batch_norm: sync needs CUDA devices; write train.batch_norm: local",
        )
