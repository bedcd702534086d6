"""From records to one comparison table: rows of models, columns of metrics per data set, mean and spread over seeds."""

import functools
import itertools
import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from dskd.config import ConfigError, require, suggest, to_mapping
from dskd.methods import METHODS, get_method
from harness.records import Damaged, Failure, Record, Results

METRICS = {
    "image_auroc": "image AUROC",
    "pixel_auroc": "pixel AUROC",
    "aupro_0.30": "AUPRO 0.3",
}
SPEED = "images_per_s"


@dataclass
class Found:
    """What a selection of results folders holds."""

    evaluations: list[Record] = field(default_factory=list)
    benches: list[Record] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    damaged: list[Damaged] = field(default_factory=list)


@dataclass(frozen=True)
class Cell:
    """Mean over categories of the mean over seeds; `spread`: standard deviation over the seeds that have every
    category.

    `runs` of `expected` went in: fewer is a hole, not a zero. `degenerate` of them collapsed.
    """

    mean: float
    spread: float | None
    runs: int
    expected: int
    degenerate: int = 0


@dataclass(frozen=True)
class Table:
    """`by`: names of the row keys; `columns`: (data set, metric) pairs, and ("", images_per_s) where speed was
    measured.

    `shared`: settings that all rows have in common; `provenance`: when, where and with what it was measured.
    """

    by: list[str]
    columns: list[tuple[str, str]]
    rows: list[tuple[tuple[str, ...], dict[tuple[str, str], Cell]]]
    shared: dict[str, str]
    seeds: list[int]
    provenance: str


def load(folders: Sequence[Path], wanted: Collection[str] | None = None) -> Found:
    """Records and failures of results folders (`runs/NAME`, or a folder of such folders), each run once.

    Args:
        wanted: ids to keep, all if None.

    Raises:
        ConfigError: a folder that is not there or holds no runs.
    """
    found = Found()
    seen: set[str] = set()
    for folder in folders:
        require(folder.is_dir(), f"{folder} is not a folder; write a results folder such as runs/NAME")
        own = (folder / "grid.yaml").exists()
        inner = [folder] if own else [path.parent for path in sorted(folder.glob("*/grid.yaml"))] or [folder]
        each = (Results(path) if wanted is None else Results(path).items(sorted(wanted)) for path in inner)
        for item in itertools.chain.from_iterable(each):
            if isinstance(item, Damaged):
                found.damaged.append(item)
                continue
            if item.id in seen:
                continue
            seen.add(item.id)
            if isinstance(item, Failure):
                found.failures.append(item)
            elif item.kind == "evaluate":
                found.evaluations.append(item)
            elif item.kind == "bench":
                found.benches.append(item)
    return found


def frame(found: Found) -> pd.DataFrame:
    """One line for each evaluation: labels, settings (dotted, as grids write them), metrics, speed of its model."""
    speeds = {_model_key(bench.spec): bench.result[SPEED] for bench in found.benches}
    lines = []
    for record in found.evaluations:
        train = record.spec["train"]
        labels = {"method": train["method"]["name"], "backbone": train["backbone"], "dataset": train["data"]["name"]}
        labels |= {"category": train["data"]["category"], "seed": train["seed"]}
        values = {key: record.result.get(key) for key in (*METRICS, "degenerate")}
        settings = _settings(record)
        lines.append({**labels, **values, SPEED: speeds.get(_model_key(train)), "settings": settings, "id": record.id})
    return pd.DataFrame(lines)


def _settings(record: Record) -> dict[str, str]:
    """All that decides the numbers of an evaluation but its labels (method, backbone, data set, category, seed)."""
    train = record.spec["train"]
    weights = train["weights"]
    settings = {
        "image_size": train["image_size"],
        "crop": train.get("crop", 0),
        # The file's hash tells weights apart; its name is for people.
        "weights": weights["name"] + (f" ({weights['sha256'][:8]})" if weights["sha256"] else ""),
        "precision": record.result["precision"],  # what `auto` became
        "eval.batch_size": train["eval_batch_size"],
        "processes": train.get("processes", 1),
        "strategy": train.get("strategy", "ddp"),
        **{f"data.{key}": value for key, value in train["data"]["options"]},
        **_flat({key: value for key, value in train["method"].items() if key not in ("name", "map", "score")}),
        **_flat({"map": record.spec["map"], "score": record.spec["score"]}),
        "aupro_limits": record.spec["aupro_limits"],
    }
    return {key: _text(value) for key, value in settings.items()}


def build(found: Found, by: Sequence[str] = ("method", "backbone")) -> Table:
    """The comparison table. Rows that differ in a setting are never merged: the setting becomes part of the row's key.

    Raises:
        ConfigError: an unknown key in `by`, or no evaluation to show.
    """
    require(bool(found.evaluations), "no finished evaluation to show; `harness plan --grid GRID` tells what is to do")
    lines = frame(found)
    settings = list(lines["settings"])
    names = list(dict.fromkeys(key for entry in settings for key in entry))
    keys = ["method", "backbone", "category", "seed", *names]
    for key in by:
        if key not in keys:
            raise ConfigError(f"--by: unknown key {key!r}; {suggest(key, keys)}")
    shared = {key: settings[0][key] for key in names if len({entry.get(key) for entry in settings}) == 1}
    lines["variant"] = _variants(lines)
    chosen = [key for key in by if key in lines.columns]
    for key in by:
        if key not in lines.columns:
            lines[key] = [entry.get(key, "") for entry in settings]
            chosen.append(key)
    if (lines["variant"] != "").any():
        chosen.append("variant")
    columns = [(dataset, metric) for dataset in dict.fromkeys(lines["dataset"]) for metric in METRICS]
    if lines[SPEED].notna().any():
        columns.append(("", SPEED))
    expected = {
        dataset: (part["category"].unique(), part["seed"].unique()) for dataset, part in lines.groupby("dataset")
    }
    rows = []
    for key, part in lines.groupby(chosen, sort=False):
        cells = {}
        for dataset, metric in columns:
            if metric == SPEED:
                cell = _speed(part)
            else:
                cell = _cell(part[part["dataset"] == dataset], metric, by, *expected[dataset])
            if cell is not None:
                cells[dataset, metric] = cell
        rows.append((tuple(str(value) for value in key), cells))
    first = columns[0]
    rows.sort(key=lambda row: row[1][first].mean if first in row[1] else -1.0, reverse=True)
    seeds = sorted(int(seed) for seed in lines["seed"].unique())
    return Table(chosen, columns, rows, shared, seeds, _provenance(found.evaluations))


def _provenance(records: Sequence[Record]) -> str:
    """`measured 2026-01-01 to 2026-01-02 on NVIDIA H200; torch 2.11.0, dskd-harness 0.1.0, commit 0123456789ab`"""

    def listed(values: Iterable[object]) -> str:
        return ", ".join(dict.fromkeys(str(value) for value in values if value))

    days = sorted(record.started_at[:10] for record in records)
    text = f"measured {days[0]}" + (f" to {days[-1]}" if days[-1] != days[0] else "")
    devices = listed(f"{r.result.get('device')}, {r.result.get('threads')} threads" for r in records)
    packages = [record.environment.get("packages", {}) for record in records]
    versions = [f"{name} {listed(found.get(name) for found in packages)}" for name in ("torch", "dskd-harness")]
    commits = listed(record.environment.get("commit") for record in records)
    return f"{text} on {devices}; {', '.join(versions)}" + (f", commit {commits}" if commits else "")


def _cell(part: pd.DataFrame, metric: str, by: Sequence[str], categories: Any, seeds: Any) -> Cell | None:
    part = part.dropna(subset=[metric])
    if part.empty:
        return None
    categories = part["category"].unique() if "category" in by else categories
    seeds = part["seed"].unique() if "seed" in by else seeds
    grid = part.pivot_table(index="seed", columns="category", values=metric, aggfunc="mean")
    mean = float(grid.mean(axis=0).mean())
    whole = grid.dropna() if len(grid.columns) == len(categories) else grid.iloc[:0]
    spread = float(whole.mean(axis=1).std(ddof=1)) if len(whole) > 1 else None
    return Cell(mean, spread, len(part), len(categories) * len(seeds), int(part["degenerate"].sum()))


def _speed(part: pd.DataFrame) -> Cell | None:
    speeds = part[SPEED].dropna().unique()
    return Cell(float(speeds[0]), None, 1, 1) if len(speeds) else None


def _variants(lines: pd.DataFrame) -> list[str]:
    """What tells a row from the others of its method and backbone: settings that differ there and are not the default.

    Compared within a data set: what one data set alone has (`data.split`) does not tell rows apart.
    """
    keys = list(zip(lines["method"], lines["backbone"], lines["dataset"], strict=True))
    values: dict[tuple[str, ...], dict[str, set[str]]] = {}
    for key, settings in zip(keys, lines["settings"], strict=True):
        for name, value in settings.items():
            values.setdefault(key, {}).setdefault(name, set()).add(value)
    differing = {key: [name for name, seen in found.items() if len(seen) > 1] for key, found in values.items()}
    texts = []
    for key, settings in zip(keys, lines["settings"], strict=True):
        default = _defaults(key[0], settings.get("recipe", "own"))
        named = [name for name in differing[key] if settings.get(name) != default.get(name)]
        texts.append(" ".join(f"{name}={settings.get(name)}" for name in named))
    return texts


@functools.cache
def _defaults(method: str, recipe: str) -> dict[str, str]:
    """The named method's values under the recipe, as `_settings` writes them; `recipe` itself is own by default."""
    if method not in METHODS:
        return {}
    values = _flat(to_mapping(get_method(method, recipe)))
    return {key: _text(value) for key, value in (values | {"recipe": "own"}).items()}


def _model_key(spec: Mapping[str, Any]) -> str:
    """What decides the speed of a model and is known to its training and its bench alike."""
    parts = {key: value for key, value in spec["method"].items() if key not in ("train", "loss")}
    return json.dumps(
        [parts, spec["backbone"], spec.get("crop") or spec["image_size"], spec["precision"]], sort_keys=True
    )


def _flat(mapping: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in mapping.items():
        flat |= _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {prefix + key: value}
    return flat


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)
