"""What people call a run: its labels, and the texts that are made of them. No torch is imported here."""

from collections.abc import Mapping
from typing import Any

from harness.spec import BenchSpec, TrainSpec

LABELS = ("method", "recipe", "backbone", "dataset", "category", "seed")  # `--only` and a grid's rules choose by them


def title_of(method: str, recipe: str = "own") -> str:
    """`stfpm`, or `stfpm (common)` under the common recipe."""
    return method if recipe == "own" else f"{method} ({recipe})"


def labels_of(spec: TrainSpec | BenchSpec | Mapping[str, Any]) -> dict[str, Any]:
    """The labels of a run, those that its kind has; of a spec as records hold it, those that are there."""
    if isinstance(spec, Mapping):
        return _recorded(spec)
    labels: dict[str, Any] = {"method": spec.method.name, "recipe": spec.method.recipe, "backbone": spec.backbone}
    if isinstance(spec, TrainSpec):
        labels |= {"dataset": spec.data.name, "category": spec.data.category, "seed": spec.seed}
    return labels


def title(spec: TrainSpec | BenchSpec | Mapping[str, Any]) -> str:
    """`dskd resnet18 mtd/magnetic_tile seed 0`, of whatever `labels_of` takes."""
    labels = labels_of(spec)
    where = f" {labels['dataset']}/{labels['category']}" if "dataset" in labels else ""
    seed = f" seed {labels['seed']}" if where and "seed" in labels else ""
    return f"{title_of(labels['method'], labels['recipe'])} {labels['backbone']}{where}{seed}"


def tracked_name(spec: TrainSpec) -> str:
    """Of a run in an experiment tracker. Without a slash: some trackers make a folder of it."""
    return f"{spec.method.name} {spec.backbone} {spec.data.name} {spec.data.category} seed {spec.seed} {spec.id}"


def _recorded(spec: Mapping[str, Any]) -> dict[str, Any]:
    train = spec.get("train", spec)
    method = train.get("method", {"name": "?"})
    labels = {"method": method["name"], "recipe": method.get("recipe", "own"), "backbone": train.get("backbone", "?")}
    if "data" in train:
        labels |= {"dataset": train["data"]["name"], "category": train["data"]["category"]}
    return labels | ({"seed": train["seed"]} if "seed" in train else {})
