"""From a grid file to runs, in two steps: `resolve` (effects: categories, manifests, weights) and `expand` (pure)."""

import functools
import importlib.util
import itertools
import marshal
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from dskd.config import ConfigError, coerce, dotted_keys, field_types, from_mapping, replace, require, suggest
from dskd.methods import METHODS, get_method
from dskd.switches import Method, Score
from harness.backbones import remember
from harness.data import builtin, layouts  # noqa: F401  (they register their data sets)
from harness.data.catalog import Source, get_source
from harness.data.manifest import describe
from harness.environment import device_name, thread_count
from harness.spec import Bench, BenchSpec, Data, EvaluateSpec, Metrics, Save, Tracking, TrainSpec, Weights
from harness.weights import is_folded, locate

Settings = dict[str, Any]

RUN_KEYS = {"image_size": "image_size", "weights": "weights", "precision": "precision", "seed": "seed"}
RUN_KEYS |= {"crop": "crop", "eval.batch_size": "eval_batch_size", "evaluate.at": "evaluate_at"}
RUN_KEYS |= {"processes": "processes", "strategy": "strategy", "compile": "compile"}
DEEPSPEED_PACKAGES = ("deepspeed", "transformers")  # Accelerate needs the second for the first
METHOD_KEYS = [key for key in dotted_keys(Method) if key not in ("name", "revision")]
EVALUATE_KEYS = [*(key for key in METHOD_KEYS if key.startswith("map.")), "score", "aupro_limits", "metrics"]
DEFAULT_WEIGHTS = "imagenet"
PLAIN = (str, int, float, bool, list, dict, type(None))
SETTABLE = [*(key for key in RUN_KEYS if key != "seed"), *METHOD_KEYS, "aupro_limits", "metrics"]
LABELS = ["method", "recipe", "backbone", "dataset", "category", "seed"]
AXES = ["method", "backbone", "dataset", "seed", *SETTABLE]


@dataclass(frozen=True)
class Grid:
    """A grid file, checked: every key exists and every rule can match. Values are checked by `expand`."""

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


@dataclass(frozen=True)
class Facts:
    """What `expand` needs to know of the world: per data set its categories, per (weights, backbone) the file, and
    which of these files no student can start from. `missing`: packages that DeepSpeed needs and that are not installed.
    """

    categories: dict[Source, list[Data]]
    weights: dict[tuple[str, str], tuple[Weights, str | None]]
    device: str
    threads: int
    folded: frozenset[tuple[str, str]] = frozenset()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True)
class Training:
    """One training with its evaluations, and where its data and weights lie on this machine (not part of any id)."""

    spec: TrainSpec
    evaluations: tuple[EvaluateSpec, ...]
    source: Source
    weights_path: str | None


@dataclass(frozen=True)
class Plan:
    """All work of a grid, each piece once, in the order of the grid."""

    trainings: list[Training]
    benches: list[BenchSpec]

    def __len__(self) -> int:
        return len(self.trainings) + sum(len(training.evaluations) for training in self.trainings) + len(self.benches)


def read_grid(path: Path) -> Grid:
    """Raises ConfigError for a file that is not there, is not YAML or says something that cannot be meant."""
    try:
        document = yaml.load(path.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; write the path of a grid file (see benchmarks/grids)") from None
    except UnicodeDecodeError:
        raise ConfigError(f"{path} is not a text file; a grid file is YAML (see benchmarks/grids)") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    try:
        return parse(document)
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from None


def parse(document: Any) -> Grid:
    """A grid from the parsed YAML. Raises ConfigError."""
    _require_mapping(document, "a grid file")
    known = ["name", "axes", "defaults", "include", "exclude", "overrides", "evaluate", "bench", "save", "tracking"]
    _require_keys(document, known, "")
    name = str(document.get("name", ""))
    require(bool(re.fullmatch(r"[\w.-]+", name)), f"name: {name!r} is not possible; write letters, digits, . _ and -")
    axes = _axes(document.get("axes"), "axes")
    for axis in ("method", "backbone", "dataset"):
        require(axis in axes, f"axes: {axis!r} is missing; write axes: {{{axis}: [...]}}")
    axes.setdefault("seed", [0])
    include = [axes | _axes(entry, "include") for entry in _list(document.get("include"), "include")]
    rules = [_settings(rule, [*LABELS, *AXES], "exclude") for rule in _list(document.get("exclude"), "exclude")]
    overrides = []
    for rule in _list(document.get("overrides"), "overrides"):
        _require_mapping(rule, "an entry of overrides")
        _require_keys(rule, ["when", "set"], "overrides: ")
        when = _settings(rule.get("when", {}), [*LABELS, *AXES], "overrides.when")
        overrides.append((when, _settings(rule.get("set", {}), SETTABLE, "overrides.set")))
    bench = document.get("bench")
    grid = Grid(
        name=name,
        axes=axes,
        defaults=_settings(document.get("defaults") or {}, SETTABLE, "defaults"),
        include=include,
        exclude=rules,
        overrides=overrides,
        evaluate=[
            _settings(entry or {}, EVALUATE_KEYS, "evaluate")
            for entry in _list(document.get("evaluate"), "evaluate") or [{}]
        ],
        bench=from_mapping(Bench, bench, "bench") if bench else None,
        save=from_mapping(Save, document.get("save") or {}, "save"),
        tracking=coerce(document.get("tracking"), Tracking | None, "tracking"),
    )
    _check_names(grid)
    return grid


def _axes(axes: Any, where: str) -> dict[str, list[Any]]:
    _require_mapping(axes, where)
    _require_keys(axes, AXES, f"{where}: ")
    lists = {axis: values if isinstance(values, list) else [values] for axis, values in axes.items()}
    for axis, values in lists.items():
        require(bool(values), f"{where}: {axis!r} is empty; write at least one value")
    return lists


def _settings(settings: Any, keys: Sequence[str], where: str) -> Settings:
    """Settings with dotted keys; `train: {epochs: 1}` is taken as `train.epochs: 1`."""
    _require_mapping(settings, where)
    flat: Settings = {}
    for key, value in settings.items():
        if isinstance(value, Mapping) and key not in keys:
            flat |= {f"{key}.{inner}": item for inner, item in value.items()}
        else:
            flat[key] = value
    _require_keys(flat, keys, f"{where}: ")
    return flat


def _list(value: Any, where: str) -> list[Any]:
    require(value is None or isinstance(value, list), f"{where}: {value!r} is not possible; write a list")
    return value or []


def _require_mapping(value: Any, where: str) -> None:
    require(isinstance(value, Mapping), f"{where}: {value!r} is not possible; write a mapping of keys to values")


def _require_keys(mapping: Mapping[str, Any], keys: Sequence[str], where: str) -> None:
    for key in mapping:
        if key not in keys:
            raise ConfigError(f"{where}unknown key {key!r}; {suggest(key, keys)}")


def _method_entry(entry: Any) -> tuple[str, Settings]:
    """Name and settings of a method axis value: `dskd` or `{name: dskd, embedding.source: teacher}`."""
    if isinstance(entry, str):
        return get_method(entry).name, {}
    _require_mapping(entry, "method")
    require("name" in entry, f"method: {dict(entry)} has no `name`")
    settings = {key: value for key, value in entry.items() if key != "name"}
    return get_method(entry["name"]).name, _settings(settings, METHOD_KEYS, f"method {entry['name']}")


def _check_names(grid: Grid) -> None:
    """Names of methods, backbones and data sets exist, and each rule's values are among the grid's."""
    blocks = [grid.axes, *grid.include]
    values: dict[str, list[str]] = {axis: [] for block in blocks for axis in block}
    for block in blocks:
        values["method"] += [_method_entry(entry)[0] for entry in block["method"]]
        values["backbone"] += [remember(name).name for name in block["backbone"]]
        values["dataset"] += [get_source(entry).name for entry in block["dataset"]]
        for axis in block.keys() - {"method", "backbone", "dataset"}:
            values[axis] += [str(value) for value in block[axis]]
    rules = [("exclude", rule) for rule in grid.exclude] + [("overrides.when", when) for when, _ in grid.overrides]
    for where, rule in rules:
        for key, wanted in rule.items():
            for value in wanted if isinstance(wanted, list) else [wanted]:
                if key in values and str(value) not in values[key]:
                    raise ConfigError(
                        f"{where}: {key} {value!r} is not in the grid; {suggest(value, dict.fromkeys(values[key]))}"
                    )


Progress = Callable[[str, int, int], None]


def resolve(grid: Grid, device: str = "auto", progress: Progress | None = None) -> Facts:
    """Look at the data sets, the weights and the device that the grid needs.

    Args:
        device: where it will run (auto, cpu or cuda): throughput is known by the device's name.
        progress: called as (what, done, total) while files are read for the first time.

    Raises:
        ConfigError: a data set or weights that cannot be had, with what was expected and what was found.
    """
    blocks = [grid.axes, *grid.include]
    categories: dict[Source, list[Data]] = {}
    for source in dict.fromkeys(get_source(entry) for block in blocks for entry in block["dataset"]):
        report = functools.partial(progress, f"reading {source.name}") if progress else None
        categories[source] = [describe(source, category, report) for category in source.chosen()]
    for name in _trunks(grid):
        remember(name)
    default = grid.defaults.get("weights", DEFAULT_WEIGHTS)
    wanted = {str(value) for block in blocks for value in block.get("weights", [default])}
    wanted |= {str(extra["weights"]) for _, extra in grid.overrides if "weights" in extra}
    weights = {
        (name, backbone): locate(name, backbone)
        for name in sorted(wanted)
        for backbone in sorted({backbone for block in blocks for backbone in block["backbone"]})
    }
    folded = frozenset(key for key, (_, path) in weights.items() if path is None or is_folded(Path(path)))
    missing = tuple(name for name in DEEPSPEED_PACKAGES if importlib.util.find_spec(name) is None)
    return Facts(categories, weights, device_name(device), thread_count(), folded, missing)


def _trunks(grid: Grid) -> set[str]:
    """Every other trunk that an encoder student of the grid may have."""
    names = {METHODS[_method_entry(entry)[0]].encoder.backbone for entry in _methods(grid)}
    places = [grid.defaults, *(_method_entry(entry)[1] for entry in _methods(grid))]
    places += [extra for _, extra in grid.overrides]
    names |= {place.get("encoder.backbone") for place in places}
    names |= {name for block in [grid.axes, *grid.include] for name in block.get("encoder.backbone", [])}
    return {str(name) for name in names if name is not None}


def _methods(grid: Grid) -> list[Any]:
    return [entry for block in [grid.axes, *grid.include] for entry in block["method"]]


def expand(grid: Grid, facts: Facts) -> Plan:
    """Axes × include, less exclude, with defaults < method entry < axes < overrides. Pure; equal runs are kept once.

    Raises:
        ConfigError: a value that is not possible, with the key.
    """
    trainings: dict[str, Training] = {}
    benches: dict[str, BenchSpec] = {}
    for block in [grid.axes, *grid.include]:
        sources = [get_source(entry) for entry in block["dataset"]]
        for values in _combinations(block | {"dataset": sources}):
            for data in facts.categories[values["dataset"]]:
                training = _training(grid, facts, values, data)
                if training is None or training.spec.id in trainings:
                    continue
                trainings[training.spec.id] = training
                for bench in _benches(training.spec, grid.bench, facts):
                    benches.setdefault(bench.id, bench)
    return Plan(list(trainings.values()), list(benches.values()))


def _combinations(block: Mapping[str, list[Any]]) -> Iterator[Settings]:
    for values in itertools.product(*block.values()):
        yield dict(zip(block, values, strict=True))


def matches(labels: Mapping[str, Any], rule: Mapping[str, Any]) -> bool:
    """Whether every key of the rule has one of the rule's values; values are compared as text (`0` is `"0"`)."""
    for key, wanted in rule.items():
        options = wanted if isinstance(wanted, (list, tuple)) else [wanted]
        if str(labels.get(key)) not in {str(option) for option in options}:
            return False
    return True


def _training(grid: Grid, facts: Facts, values: Settings, data: Data) -> Training | None:
    name, own = _method_entry(values["method"])
    axes = {key: value for key, value in values.items() if key not in ("method", "backbone", "dataset")}
    settings = grid.defaults | own | axes
    labels = settings | {
        "method": name,
        "recipe": settings.get("recipe", "own"),
        "backbone": values["backbone"],
        "dataset": data.name,
        "category": data.category,
    }
    if any(matches(labels, rule) for rule in grid.exclude):
        return None
    for when, extra in grid.overrides:
        if matches(labels, when):
            settings = settings | extra
    method = _configured(name, _packed({key: settings[key] for key in METHOD_KEYS if key in settings}))
    wanted = str(settings.get("weights", DEFAULT_WEIGHTS))
    weights, path = facts.weights[wanted, values["backbone"]]
    run = {RUN_KEYS[key]: settings[key] for key in RUN_KEYS if key in settings and key != "weights"}
    spec = TrainSpec(method, values["backbone"], weights, data, **_run_values(_packed(run)))
    require(
        spec.strategy == "ddp" or not facts.missing,
        f"strategy: {spec.strategy} needs packages that are not installed ({', '.join(facts.missing)}); run "
        "pip install 'dskd-harness[deepspeed]' or write strategy: ddp",
    )
    measured = {key: settings[key] for key in ("aupro_limits", "metrics") if key in settings}
    if method.encoder.init == "imagenet":
        require(
            (wanted, values["backbone"]) not in facts.folded,
            f"encoder.init: imagenet needs weights with their BatchNorm statistics, {wanted} for {values['backbone']} "
            "has none (folded into the convolutions, or random); write encoder.init: random",
        )
    evaluations = {}
    for variant in grid.evaluate:
        evaluation = EvaluateSpec(spec, **_variant(method, _packed(measured | variant)))
        evaluations.setdefault(evaluation.id, evaluation)
    return Training(spec, tuple(evaluations.values()), values["dataset"], path)


def _packed(settings: Settings) -> bytes:
    """Settings as what a cache can know them by; marshal is several times faster than JSON."""
    try:
        return marshal.dumps(settings, 2)
    except ValueError:  # YAML reads 2026-01-01 as a date
        found = (f"{key}: {value}" for key, value in settings.items() if not isinstance(value, PLAIN))
        strange = next(found, "a date in a list")
        raise ConfigError(f"{strange} is not possible; write numbers, texts, true or false, or lists of them") from None


@functools.lru_cache(maxsize=4096)
def _configured(name: str, settings: bytes) -> Method:
    changes = marshal.loads(settings)
    return replace(get_method(name, changes.pop("recipe", "own")), changes)


@functools.lru_cache(maxsize=4096)
def _run_values(run: bytes) -> Settings:
    """Brought to their types once per distinct setting (a grid of 10,000 runs has few); `TrainSpec` checks the rest."""
    kinds, keys = field_types(TrainSpec), {field: key for key, field in RUN_KEYS.items()}
    return {field: coerce(value, kinds[field], keys[field]) for field, value in marshal.loads(run).items()}


@functools.lru_cache(maxsize=4096)
def _variant(method: Method, settings: bytes) -> Settings:
    """`map`, `score`, `aupro_limits` and `metrics` of one evaluation of a method."""
    chosen = marshal.loads(settings)
    limits = tuple(chosen.pop("aupro_limits", EvaluateSpec.aupro_limits))
    score = coerce(chosen.pop("score", method.score), Score, "score")
    kind = coerce(chosen.pop("metrics", EvaluateSpec.metrics), Metrics, "metrics")
    changes = {key.removeprefix("map."): value for key, value in chosen.items()}
    return {"map": replace(method.map, changes, "map."), "score": score, "aupro_limits": limits, "metrics": kind}


def _benches(spec: TrainSpec, bench: Bench | None, facts: Facts) -> list[BenchSpec]:
    if bench is None:
        return []
    model = (spec.method, spec.backbone, spec.side, spec.precision, facts.device, facts.threads)
    return [BenchSpec(*model, bench.batch_sizes, bench.seconds, compiled) for compiled in bench.compile]


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
        require(
            spec.method.train.batch_norm == "local" or kind == "cuda",
            "train.batch_norm: sync needs CUDA devices; write train.batch_norm: local",
        )


def labels_of(spec: TrainSpec | BenchSpec) -> dict[str, Any]:
    """What `--only` and tables call a run by."""
    labels: dict[str, Any] = {"method": spec.method.name, "recipe": spec.method.recipe, "backbone": spec.backbone}
    if isinstance(spec, TrainSpec):
        labels |= {"dataset": spec.data.name, "category": spec.data.category, "seed": spec.seed}
    return labels
