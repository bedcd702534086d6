"""From results folders to tidy data: one line for each evaluation, with its labels, settings, metrics and speed."""

import functools
import json
import marshal
import operator
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from dskd.config import ConfigError, flat, require, suggest, to_mapping
from dskd.methods import METHODS, get_method
from dskd.size import size_text
from harness.foreign import Damaged
from harness.leaderboard import truth
from harness.records import Failure, FolderError, Record, Results
from harness.run_folder import ResultsFolder, RunFolder, is_metric
from harness.spec import EvaluateSpec, TrainSpec, later, settings

LABELS = ("method", "backbone", "dataset", "category", "seed")
METRICS = {  # in the order of tables; those of AUPRO are in a record by the limits of its evaluation
    "image_auroc": "image AUROC",
    "image_ap": "image AP",
    "image_f1_max": "image F1-max",
    "pixel_auroc": "pixel AUROC",
    "pixel_ap": "pixel AP",
    "pixel_f1_max": "pixel F1-max",
    "aupro_0.30": "AUPRO 0.3",
    "aupro_0.05": "AUPRO 0.05",
}
SHOWN = ("image_auroc", "pixel_auroc", "aupro_0.30")  # of a table that says nothing else
SPEED = "images_per_s"
# Settings that records from before there were any do not hold.
LATER = {kind: {field: to_mapping(value) for field, value in later(kind).items()} for kind in (TrainSpec, EvaluateSpec)}
# What decides whether two numbers may stand in one table; `images` tells apart test sets of one name, and what belongs
# to a data set alone (`data.split`) is its protocol too. The rest are settings of a model: rows of their own.
_PROTOCOL = sorted((each.protocol, each.key) for each in settings(TrainSpec).values() if each.protocol)
PROTOCOL = (*(key for _, key in _PROTOCOL), "images")


@dataclass
class Found:
    """What a selection of results folders holds. `folders`: of each run by its id; `damaged`: records that do not pass;
    `skipped`: other files that were passed over, which those who read them add to.
    """

    evaluations: list[Record] = field(default_factory=list)
    trainings: list[Record] = field(default_factory=list)
    benches: list[Record] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)
    damaged: list[Damaged] = field(default_factory=list)
    skipped: list[Damaged] = field(default_factory=list)
    folders: dict[str, RunFolder] = field(default_factory=dict)


def load(folders: Sequence[Path], wanted: Collection[str] | None = None) -> Found:
    """Records and failures of results folders (`runs/NAME`, or a folder of such folders), each run once.

    Args:
        wanted: ids to keep, all if None.

    Raises:
        ConfigError: a folder that is not there or holds no runs.
    """
    found = Found()
    kinds = {"evaluate": found.evaluations, "train": found.trainings, "bench": found.benches}
    for results in (Results(inner) for folder in folders for inner in _inner(folder)):
        try:
            for item in results if wanted is None else results.items(sorted(wanted)):
                if isinstance(item, Damaged):  # a run's record, or one of its attempts
                    (found.damaged if item.folder.parent == results.folder else found.skipped).append(item)
                elif item.id not in found.folders:
                    found.folders[item.id] = results.run_folder(item.id)
                    (found.failures if isinstance(item, Failure) else kinds[item.kind]).append(item)
        except FolderError as error:
            if results.folder in folders:
                raise
            found.skipped.append(Damaged(results.folder, str(error)))
    return found


def _inner(folder: Path) -> list[Path]:
    """The results folders that a folder is or has. Raises ConfigError."""
    try:
        require(folder.is_dir(), f"{folder} is not a folder; write a results folder such as runs/NAME")
        if (grid := ResultsFolder(folder).grid).exists():
            return [folder]
        return [path.parent for path in sorted(folder.glob(f"*/{grid.name}"))] or [folder]
    except OSError as error:
        raise ConfigError(f"{folder} cannot be read ({error.strerror}); name another folder") from None


def frame(found: Found) -> pd.DataFrame:
    """One line for each evaluation: the labels, every setting as text (dotted, as grids write it; empty where a data
    set has no such setting), the metrics as shares (NaN where undefined), `degenerate`, `manifest` (its images),
    `model` (what a bench of it is known by), `older` (other test sets that the same was evaluated on before) and `id`.

    Of runs of equal content (a raised REVISION gives them other ids) the last one counts, and so it does of evaluations
    of one training on several test sets.

    Raises:
        ConfigError: there is no evaluation.
    """
    why = "; ".join(truth.unscored(found.trainings)) or "`harness plan --grid GRID` tells what is to do"
    require(bool(found.evaluations), f"no finished evaluation to show; {why}")
    known: dict[bytes, int] = {}
    configurations: list[dict[str, str]] = []
    names: dict[str, str] = {}  # of weights by their hash: the first that a record calls them
    lines = []
    metrics = _metrics(found.evaluations)
    for record in sorted(found.evaluations, key=lambda record: record.started_at):
        train, result = record.spec["train"], record.result
        data = train["data"]
        rest = {key: value for key, value in train.items() if key not in ("data", "seed")}
        key = marshal.dumps([rest, data["options"], result["precision"], {**record.spec, "train": None}], 2)
        if key not in known:  # a grid of 10,000 runs has few
            known[key] = len(configurations)
            configurations.append(_settings(record, names) | {"model": model_key(train, result)})
        own = (data["manifest"], data.get("test_manifest", ""), bool(result.get("degenerate")), record.id)
        labels = (train["method"]["name"], train["backbone"], data["name"], data["category"], train["seed"])
        lines.append((*labels, known[key], *own, *map(result.get, metrics)))
    columns = [*LABELS, "configuration", "manifest", "tested", "degenerate", "id", *metrics]
    table = pd.DataFrame.from_records(lines, columns=columns)
    table = table.astype(dict.fromkeys(metrics, float))
    settings = pd.DataFrame(configurations).fillna("")
    table = table.join(settings.iloc[table.pop("configuration")].reset_index(drop=True))
    table = _newest(table, [*LABELS, "manifest", *settings.columns])
    table["manifest"] = (table["manifest"] + " " + table.pop("tested")).str.rstrip()
    # Of a category its sets of images are numbered in the order in which they were measured.
    of_category = table.groupby(["dataset", "category"])["manifest"]
    table["images"] = of_category.transform(lambda manifests: pd.factorize(manifests)[0] + 1).astype(str)
    return table.sort_values([*LABELS, "id"], ignore_index=True)  # whatever order the folders gave


def _newest(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """The last line of each of the keys, with the number of other test sets in those before it as `older`."""
    twice = table.duplicated(keys, keep="last")
    if not twice.any():
        return table.assign(older=0)
    sets = table.groupby(keys)["tested"].transform("nunique")
    return table.assign(older=sets - 1)[~twice]


def _metrics(records: Iterable[Record]) -> list[str]:
    """Those that the records hold, in the order of METRICS."""
    found = set(filter(is_metric, set().union(*(record.result for record in records))))
    return [*(key for key in METRICS if key in found), *sorted(found - METRICS.keys())]


def metric_title(metric: str) -> str:
    """`image AUROC`, `AUPRO 0.1`"""
    return METRICS.get(metric) or f"AUPRO {float(metric.removeprefix('aupro_')):g}"


def metrics_of(lines: pd.DataFrame) -> list[str]:
    return [column for column in lines.columns if is_metric(column)]


def settings_of(lines: pd.DataFrame) -> list[str]:
    """The columns that are settings, protocol first."""
    fixed = {*LABELS, *metrics_of(lines), "manifest", "degenerate", "id", "model", "older", "row", "variant"}
    order = {key: place for place, key in enumerate(PROTOCOL)}
    found = [column for column in lines.columns if column not in fixed]
    return sorted(found, key=lambda key: order.get(key, len(order) + (not is_protocol(key))))


def is_protocol(key: str) -> bool:
    return key in PROTOCOL or key.startswith("data.")


_CONDITION = re.compile("(.+?)(!=|<=|>=|=|<|>)(.*)", re.DOTALL)
_COMPARED = {"<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge}


def select(lines: pd.DataFrame, conditions: Sequence[str], costs: pd.DataFrame | None = None) -> pd.DataFrame:
    """Those lines that meet every condition `key=value`, `key!=value` or `key<number` (also `<=`, `>`, `>=`); of the
    same key, `=` means one or the other.

    Keys are labels, settings and `degenerate`, and for `<` and `>` also what `costs` has of a line's model.

    Args:
        costs: numbers by `model`; of several lines for one model, for its devices, all have to meet the condition.

    Raises:
        ConfigError: a condition that cannot be read, an unknown key, or nothing left (with what there is).
    """
    keys = [*LABELS, "degenerate", *settings_of(lines)]
    known = [] if costs is None else [key for key in costs.columns if key != "model"]
    wanted: dict[tuple[str, str], list[str]] = {}
    for condition in conditions:
        parts = _CONDITION.fullmatch(condition)
        require(
            parts is not None,
            f"--where: {condition!r} is not possible; write key=value, key!=value or key<number (also >, <=, >=)",
        )
        key, sign, value = parts.groups()
        if key not in keys and not (key in known and sign in _COMPARED):
            require(
                key not in known, f"--where: {key} is a number; write {key}<{value or '20'} or {key}>{value or '20'}"
            )
            raise ConfigError(f"--where: unknown key {key!r}; {suggest(key, [*keys, *known])}")
        wanted.setdefault((key, sign), []).append(value)
    for (key, sign), values in wanted.items():
        if sign in _COMPARED:
            found = lines[key] if key in keys else _worst(lines, costs, key, sign)
            for value in values:
                lines, found = _compared(lines, found, key, sign, value)
            continue
        texts = lines[key].astype(str)
        kept = lines[texts.isin(values) != (sign == "!=")]
        _require_some(kept, texts.unique(), key, sign, ",".join(values))
        lines = kept
    return lines.reset_index(drop=True)


def _worst(lines: pd.DataFrame, costs: pd.DataFrame, key: str, sign: str) -> pd.Series:
    """Of each line's model the value that is hardest to keep below, or above, a bound."""
    of_model = costs.groupby("model")[key].agg("max" if sign.startswith("<") else "min")
    return lines["model"].map(of_model)


def _compared(lines: pd.DataFrame, found: pd.Series, key: str, sign: str, value: str) -> tuple[pd.DataFrame, pd.Series]:
    """The lines that meet the condition, and their values."""
    try:
        bound = float(value)
    except ValueError:
        raise ConfigError(f"--where: {key}{sign}{value}: {value!r} is no number; write {key}{sign}20") from None
    meets = _COMPARED[sign](pd.to_numeric(found, errors="coerce"), bound)  # what is no number meets nothing
    _require_some(lines[meets], found.dropna().unique(), key, sign, value)
    return lines[meets], found[meets]


def _require_some(kept: pd.DataFrame, there: Iterable[Any], key: str, sign: str, value: str) -> None:
    if kept.empty:
        listed = ", ".join(sorted(map(str, there))) or "not known of any"
        raise ConfigError(f"--where: no evaluation has {key}{sign}{value}; {key} is {listed}")


def mixed(lines: pd.DataFrame, named: Collection[str] = ()) -> list[str]:
    """The protocol keys in which lines of one data set differ, less those that are `named` (rows of their own). Weights
    are those of a backbone: two backbones cannot have the same.
    """
    keys = [key for key in settings_of(lines) if is_protocol(key) and key not in named]
    differ = lines.groupby("dataset")[keys].nunique() > 1
    differ["weights"] = lines.groupby(["dataset", "backbone"])["weights"].nunique().groupby("dataset").max() > 1
    return [key for key in keys if differ[key].any()]


def split(lines: pd.DataFrame, named: Collection[str], allow_mixed: bool) -> list[tuple[str, pd.DataFrame]]:
    """One (protocol, lines) for each protocol; the text is empty where there is only one.

    Raises:
        ConfigError: several, unless `allow_mixed`.
    """
    keys = mixed(lines, named)
    if not keys:
        return [("", lines)]
    if not allow_mixed:
        key = next((key for key in keys if key != "images"), "images")  # of which other images may be a consequence
        first, *_ = values = sorted(lines[key].unique())
        if key == "images":
            raise ConfigError(
                "mixed protocols: runs of one category were tested on different images; name one results folder, or "
                "write --allow-mixed for a table each"
            )
        raise ConfigError(
            f"mixed protocols: {key} is {' and '.join(value or 'not set' for value in values)}; write --where "
            f"{key}={first}, --by method,backbone,{key} for rows of their own, or --allow-mixed for a table each"
        )
    parts = lines.groupby(keys, sort=True)
    return [
        (" · ".join(f"{key} {value or '–'}" for key, value in zip(keys, values, strict=True)), part)
        for values, part in parts
    ]


def variants(lines: pd.DataFrame) -> list[str]:
    """For each line what tells it from the others of its method and backbone: settings that differ there and are not
    the default. Compared within a data set: what one data set alone has (`data.split`) does not tell rows apart.
    """
    names = [name for name in settings_of(lines) if not is_protocol(name)]
    texts = pd.Series("", index=lines.index)
    for (method, *_), part in lines.groupby(["method", "backbone", "dataset"], sort=False):
        differing = [name for name in names if part[name].nunique() > 1]
        for values, same in part.groupby(differing, sort=False) if differing else []:
            found = dict(zip(differing, values, strict=True))
            default = defaults_of(str(method), str(found.get("recipe", same["recipe"].iloc[0])))
            texts[same.index] = " ".join(f"{k}={v}" for k, v in found.items() if v != default.get(k))
    return list(texts)


def _settings(record: Record, names: dict[str, str]) -> dict[str, str]:
    """All that decides the numbers of an evaluation but its labels and its test images."""
    train = record.spec["train"]
    known = {
        "weights": _weights(train["weights"]["name"], train["weights"]["sha256"], names),
        "precision": record.result["precision"],  # what `auto` became
        "image_size": size_text(train["image_size"]),
    }
    found = {
        **_columns(TrainSpec, train | known),
        **{f"data.{key}": value for key, value in train["data"]["options"]},
        **flat({key: value for key, value in train["method"].items() if key not in ("name", "map", "score")}),
        **flat({"map": record.spec["map"], **_columns(EvaluateSpec, record.spec)}),
    }
    texts = {key: _text(value) for key, value in found.items()}
    # A record from before there was a switch has its default.
    defaults = defaults_of(train["method"]["name"], train["method"].get("recipe", "own"))
    return texts | {key: value for key, value in defaults.items() if key not in texts}


def _columns(kind: type, spec: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a recorded spec of that kind, by their columns."""
    values = LATER[kind] | spec
    return {each.key: values[field] for field, each in settings(kind).items() if each.column}


def _weights(name: str, sha256: str | None, names: dict[str, str]) -> str:
    """The file's hash tells weights apart; a name is for people: `imagenet (552b3ecf)`."""
    return f"{names.setdefault(sha256, name)} ({sha256[:8]})" if sha256 else name


@functools.cache
def defaults_of(method: str, recipe: str) -> dict[str, str]:
    """The named method's values under the recipe, and those of a run, as `_settings` writes them."""
    if method not in METHODS:
        return {}
    try:
        config = get_method(method, recipe)
    except ConfigError:  # a recipe of another commit
        return {}
    values = {key: value for key, value in flat(to_mapping(config)).items() if key != "name"}
    values |= {"recipe": "own"}
    for kind, added in LATER.items():
        values |= {each.key: added[field] for field, each in settings(kind).items() if field in added and each.column}
    return {key: _text(value) for key, value in values.items()}


def model_key(spec: Mapping[str, Any], result: Mapping[str, Any]) -> str:
    """What decides the speed of a model and is known to its evaluation and its bench alike; of the precision, what
    `auto` became.
    """
    parts = {key: value for key, value in spec["method"].items() if key not in ("train", "loss")}
    return json.dumps(
        [parts, spec["backbone"], spec.get("crop") or spec["image_size"], result["precision"]], sort_keys=True
    )


def training_key(train: Mapping[str, Any]) -> str:
    """What a training and its evaluations share: the spec without map and score, which are the evaluation's."""
    method = {name: value for name, value in train["method"].items() if name not in ("map", "score")}
    return json.dumps({**LATER[TrainSpec], **train, "method": method}, sort_keys=True)


def _text(value: Any) -> str:
    if isinstance(value, list):
        return f"[{', '.join(map(_text, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def provenance(records: Sequence[Record]) -> str:
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
