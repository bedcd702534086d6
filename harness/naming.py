"""What people call a run: its labels, and the one name that tells it from the others of its grid. No torch is imported
here.
"""

import functools
import marshal
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import fields
from typing import Any

from dskd.config import ConfigError, flat, to_mapping
from dskd.methods import METHODS, get_method
from dskd.size import size_text
from harness.spec import EvaluateSpec, Spec, TrainSpec, later, settings

LABELS = ("method", "recipe", "backbone", "dataset", "category", "seed")  # `--only` and a grid's rules choose by them
# Settings that records from before there were any do not hold.
LATER = {kind: {field: to_mapping(value) for field, value in later(kind).items()} for kind in (TrainSpec, EvaluateSpec)}
_OWN = {each.key for each in settings(EvaluateSpec).values()}  # beside `map.*`: those of an evaluation


def title_of(method: str, recipe: str = "own") -> str:
    """`stfpm`, or `stfpm (common)` under the common recipe."""
    return method if recipe == "own" else f"{method} ({recipe})"


def counted(runs: int = 0, measurements: int = 0, trainings: int | None = None, evaluations: int | None = None) -> str:
    """`3 runs (3 trainings, 6 evaluations), 1 measurement`. A run is a training with its evaluations, a measurement one
    of throughput. `nothing` for none of them.
    """

    def number(count: int, word: str) -> str:
        return f"{count} {word}{'' if count == 1 else 's'}"

    inner = "" if trainings is None else f" ({number(trainings, 'training')}, {number(evaluations or 0, 'evaluation')})"
    parts = [number(runs, "run") + inner] if runs else []
    return ", ".join([*parts, *([number(measurements, "measurement")] if measurements else [])]) or "nothing"


def labels_of(spec: Spec | Mapping[str, Any], *, called: bool = False) -> dict[str, Any]:
    """The labels of a run, those that its kind has; of a spec as records hold it, those that are there.

    Args:
        called: method, backbone and data set as the `label` of their entries calls them, where they have one.
    """
    if not isinstance(spec, Mapping):
        run = spec.train if isinstance(spec, EvaluateSpec) else spec
        labels: dict[str, Any] = {"method": run.method.name, "recipe": run.method.recipe, "backbone": run.backbone}
        if isinstance(run, TrainSpec):
            labels |= {"dataset": run.data.name, "category": run.data.category, "seed": run.seed}
        return labels | (dict(run.called) if called else {})
    train = spec.get("train", spec)
    method = train.get("method", {"name": "?"})
    labels = {"method": method["name"], "recipe": method.get("recipe", "own"), "backbone": train.get("backbone", "?")}
    if "data" in train:
        labels |= {"dataset": train["data"]["name"], "category": train["data"]["category"]}
    labels |= {"seed": train["seed"]} if "seed" in train else {}
    return labels | (dict(train.get("called", ())) if called else {})


def title(spec: Spec | Mapping[str, Any]) -> str:
    """`dskd resnet18 mtd/magnetic_tile seed 0`, of whatever `labels_of` takes: what is known without the others."""
    labels = labels_of(spec, called=True)
    where = f" {labels['dataset']}/{labels['category']}" if "category" in labels else ""
    seed = f" seed {labels['seed']}" if where and "seed" in labels else ""
    return f"{title_of(labels['method'], labels['recipe'])} {labels['backbone']}{where}{seed}"


def names_of(works: Iterable[tuple[str, Spec | Mapping[str, Any]]]) -> dict[str, str]:
    """By id the name of each piece of work among these: its title, then what tells it from the others of its kind,
    method, recipe, backbone and data set: settings that differ among them and are not the default, an evaluation's
    `label` in the place of its own. Two of one kind never have the same name.

    Args:
        works: ids with specs, as objects or as records hold them.
    """
    known: dict[Hashable, tuple[int, Spec | Mapping[str, Any]]] = {}  # the spec is kept, or others could take its id
    runs = []
    for run_id, spec in works:
        key = _configuration(spec)
        place, _ = known.setdefault(key, (len(known), spec))
        runs.append((run_id, title(spec), place))
    whole = [spec if isinstance(spec, Mapping) else to_mapping(spec) for _, spec in known.values()]
    texts = _variants(whole)
    kinds = [kind_of(spec) for spec in whole]
    names = {run_id: f"{text} {texts[place]}".rstrip() for run_id, text, place in runs}
    counts = Counter((kinds[place], names[run_id]) for run_id, _, place in runs)
    for run_id, _, place in runs:
        if counts[kinds[place], names[run_id]] > 1:  # of other images under one name, or another file of weights
            names[run_id] += f" [{run_id[:8]}]"
    return names


def kind_of(spec: Mapping[str, Any]) -> str:
    """train, evaluate or bench, of a spec as records hold it."""
    return "evaluate" if "train" in spec else "bench" if "threads" in spec else "train"


def _configuration(spec: Spec | Mapping[str, Any]) -> Hashable:
    """All of a spec but its category and seed, to compare by: a grid of 10,000 runs has few."""
    if isinstance(spec, Mapping):
        train = spec.get("train", spec)
        data = train.get("data", {})
        rest = {key: value for key, value in train.items() if key not in ("data", "seed")}
        parts = [data.get("name"), data.get("options"), rest, {**spec, "train": None} if "train" in spec else None]
        return marshal.dumps(parts, 2)
    train = spec.train if isinstance(spec, EvaluateSpec) else spec
    own: tuple[Hashable, ...] = ()
    if train is not spec:
        own = (id(spec.map), *(getattr(spec, each.name) for each in fields(spec) if each.name not in ("train", "map")))
    data = (train.data.name, train.data.options) if isinstance(train, TrainSpec) else ()
    rest = (getattr(train, each.name) for each in fields(train) if each.name not in ("method", "data", "seed"))
    return (type(spec), id(train.method), *data, *rest, *own)


def _variants(specs: Sequence[Mapping[str, Any]]) -> list[str]:
    """For each of these recorded specs the part of its name behind the title."""
    items = []
    for spec in specs:
        labels = labels_of(spec, called=True)
        recipe = labels["recipe"]
        kind = kind_of(spec)
        defaults = defaults_of(labels_of(spec)["method"], recipe) | ({"compile": "False"} if kind == "bench" else {})
        group = kind, labels["method"], recipe, labels["backbone"], labels.get("dataset")
        items.append((group, recorded_settings(spec), defaults))
    return [variant(found, spec.get("label", "")) for spec, found in zip(specs, tell_apart(items), strict=True)]


def variant(found: Mapping[str, str], label: str = "") -> str:
    """What `tell_apart` found as text: `train.lr=0.1 map.sigma=2`; an evaluation's label stands for its settings."""
    kept = {key: value for key, value in found.items() if not (label and is_of_evaluation(key))}
    return " ".join([*(f"{key}={value}" for key, value in kept.items()), *([label] if label else [])])


def is_of_evaluation(key: str) -> bool:
    """Whether a setting is one of evaluations: several of them share one training."""
    return key.startswith("map.") or key in _OWN


def tell_apart(items: Sequence[tuple[Hashable, Mapping[str, str], Mapping[str, str]]]) -> list[dict[str, str]]:
    """For each of the items (group, settings, their defaults) those settings that differ within its group and are not
    the default: within a group equal settings have the same, and others another. Pure.
    """
    groups: dict[Hashable, list[Mapping[str, str]]] = {}
    for group, own, _ in items:
        groups.setdefault(group, []).append(own)
    differing = {
        group: [key for key in members[0] if len({member.get(key, "") for member in members}) > 1]
        for group, members in groups.items()
    }
    return [
        {key: own[key] for key in differing[group] if key in own and own[key] != defaults.get(key)}
        for group, own, defaults in items
    ]


def recorded_settings(spec: Mapping[str, Any]) -> dict[str, str]:
    """All that decides the numbers of a recorded spec but its labels and its images, as texts by the keys of grids. Of
    a training not what is the evaluation's, of a measurement not what is the training's.
    """
    kind, train = kind_of(spec), spec.get("train", spec)
    method = train.get("method", {})
    hidden = {"name", "map", "score"} if kind != "bench" else {"name", "train", "loss"}
    found = flat({key: value for key, value in method.items() if key not in hidden})
    if kind == "bench":
        keys = ("image_size", "precision", "compile", "device", "threads", "batch_sizes", "seconds")
        found |= {key: spec[key] for key in keys if key in spec}
    else:
        found = _columns(TrainSpec, train) | found
        found |= {f"data.{key}": value for key, value in train.get("data", {}).get("options", ())}
    if kind == "evaluate":
        found |= flat({"map": spec.get("map", {}), **_columns(EvaluateSpec, spec)})
    # A record from before there was a switch has its default.
    defaults = defaults_of(method.get("name", "?"), method.get("recipe", "own"))
    return {key: as_text(value) for key, value in found.items()} | {
        key: value for key, value in defaults.items() if key not in found
    }


def _columns(kind: type, spec: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a recorded spec of that kind, by their columns; weights by name, sizes as people write them."""
    values = LATER[kind] | spec
    found = {each.key: values[field] for field, each in settings(kind).items() if each.column and field in values}
    found |= {"image_size": size_text(found["image_size"])} if "image_size" in found else {}
    return found | ({"weights": found["weights"]["name"]} if isinstance(found.get("weights"), Mapping) else {})


@functools.cache
def defaults_of(method: str, recipe: str) -> dict[str, str]:
    """The named method's values under the recipe, and those of a run, as `recorded_settings` writes them; none of a
    method or recipe that is not known.
    """
    if method not in METHODS:
        return {}
    try:
        config = get_method(method, recipe)
    except ConfigError:  # a recipe of another commit
        return {}
    values = {key: value for key, value in flat(to_mapping(config)).items() if key != "name"} | {"recipe": "own"}
    for kind, added in LATER.items():
        values |= {each.key: added[field] for field, each in settings(kind).items() if field in added and each.column}
    return {key: as_text(value) for key, value in values.items()}


def as_text(value: Any) -> str:
    """A setting's value as tables and names have it."""
    if isinstance(value, list):
        return f"[{', '.join(map(as_text, value))}]"
    if isinstance(value, Mapping):
        return f"{{{', '.join(f'{key}: {as_text(each)}' for key, each in value.items())}}}"
    return f"{value:g}" if isinstance(value, float) else str(value)
