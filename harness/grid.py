"""From a grid file to runs, in two steps: `resolve` (effects: categories, manifests, weights) and `expand` (pure)."""

import functools
import importlib.util
import itertools
import marshal
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from dskd.config import ConfigError, coerce, field_types, replace, require
from dskd.methods import METHODS, get_method
from dskd.switches import Method, Score
from harness.backbones import remember
from harness.data import depth
from harness.data.catalog import Source
from harness.data.manifest import look
from harness.environment import device_name, thread_count
from harness.gridfile import (  # noqa: F401  (of a grid both halves are asked for here)
    LABELS,
    METHOD_KEYS,
    RUN_KEYS,
    Grid,
    Settings,
    method_entry,
    parse,
    read_grid,
    source_of,
)
from harness.spec import Bench, BenchSpec, Data, EvaluateSpec, Metrics, TrainSpec, Weights
from harness.weights import is_folded, locate

DEEPSPEED_PACKAGES = ("deepspeed", "transformers")  # Accelerate needs the second for the first
DeepPictures = dict[tuple[Source, str], tuple[depth.Deep, ...]]  # of the categories that have some

DEFAULT_WEIGHTS = "imagenet"
PLAIN = (str, int, float, bool, list, dict, type(None))


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
    deep: DeepPictures = field(default_factory=dict)


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
    deep: DeepPictures = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.trainings) + sum(len(training.evaluations) for training in self.trainings) + len(self.benches)

    def remarks(self) -> list[str]:
        """What there is to say of its data sets' deep pictures, a line each."""
        chosen = {(training.source, training.spec.data.category) for training in self.trainings} if self.deep else set()
        return depth.remarks({key: found for key, found in self.deep.items() if key in chosen})


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
    deep: DeepPictures = {}
    for source in dict.fromkeys(source_of(entry) for block in blocks for entry in block["dataset"]):
        report = functools.partial(progress, f"reading {source.name}") if progress else None
        looks = {category: look(source, category, report) for category in source.chosen()}
        categories[source] = [found.data for found in looks.values()]
        deep |= {(source, category): found.deep for category, found in looks.items() if found.deep}
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
    return Facts(categories, weights, device_name(device), thread_count(), folded, missing, deep)


def _trunks(grid: Grid) -> set[str]:
    """Every other trunk that an encoder student of the grid may have."""
    names = {METHODS[method_entry(entry)[0]].encoder.backbone for entry in _methods(grid)}
    places = [grid.defaults, *(method_entry(entry)[1] for entry in _methods(grid))]
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
        sources = [source_of(entry) for entry in block["dataset"]]
        for values in _combinations(block | {"dataset": sources}):
            for data in facts.categories[values["dataset"]]:
                training = _training(grid, facts, values, data)
                if training is None or training.spec.id in trainings:
                    continue
                trainings[training.spec.id] = training
                for bench in _benches(training.spec, grid.bench, facts):
                    benches.setdefault(bench.id, bench)
    return Plan(list(trainings.values()), list(benches.values()), facts.deep)


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
    name, own = method_entry(values["method"])
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
        found = (f"{key}: {str(value)[:20]}" for key, value in settings.items() if not isinstance(value, PLAIN))
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
    given = chosen.pop("aupro_limits", EvaluateSpec.aupro_limits)
    limits = coerce(given, field_types(EvaluateSpec)["aupro_limits"], "aupro_limits")
    if all(isinstance(limit, (int, float)) for limit in given):
        limits = tuple(given)  # 1 stays 1 and not 1.0, which would be another id
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
