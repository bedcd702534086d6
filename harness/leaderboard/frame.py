"""From results folders to tidy data: one line for each evaluation, with its labels, settings, metrics and speed."""

import json
import marshal
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd

from dskd.config import ConfigError, require
from harness.foreign import Damaged
from harness.leaderboard import truth
from harness.naming import LATER, defaults_of, names_of, recorded_settings, tell_apart, variant
from harness.records import Failure, FolderError, Record, Results
from harness.run_folder import ResultsFolder, RunFolder, is_at_threshold, is_metric
from harness.spec import STEP, TrainSpec, settings

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
    "aupimo": "AUPIMO",
    "recall_at_threshold": "recall at threshold",
    "fpr_at_threshold": "FPR at threshold",
    "precision_at_threshold": "precision at threshold",
    "f1_at_threshold": "F1 at threshold",
    "pixel_fpr_at_threshold": "pixel FPR at threshold",
}
LOWER = frozenset({"fpr_at_threshold", "pixel_fpr_at_threshold"})  # of which the lowest is the best
SHOWN = ("image_auroc", "pixel_auroc", "aupro_0.30")  # of a table that says nothing else
SPEED = "images_per_s"
CALLED = ("method", "backbone", "dataset")  # what a grid's entries may have a `label` of
_BESIDE = ("manifest", "degenerate", "id", "model", "older", "row", "variant", "label", "own")
_GROUPS = ("configuration", "training")  # numbers that are equal for equal settings
# What decides whether two numbers may stand in one table; `step` is there where trainings on a GPU are of earlier ones,
# `images` tells apart test sets of one name, and what belongs to a data set alone (`data.split`) is its protocol too.
# The rest are settings of a model: rows of their own.
_PROTOCOL = sorted((each.protocol, each.key) for each in settings(TrainSpec).values() if each.protocol)
PROTOCOL = (*(key for _, key in _PROTOCOL), "step", "images")
# Of a training's spec what makes no row of a table: labels, and what moves no number of its evaluations.
_NO_ROW = {"data", "called", *(name for name, each in settings(TrainSpec).items() if not each.column)}


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


def names_in(found: Found) -> dict[str, str]:
    """By id what each record and failure is called, among all that were found."""
    items = (*found.trainings, *found.evaluations, *found.benches, *found.failures)
    return names_of((item.id, item.spec) for item in items)


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
    `model` (what a bench of it is known by), `older` (other test sets that the same was evaluated on before), `id`,
    `configuration` (equal for equal settings), `training` (the same of its training), `own` (whether map and score are
    its method's) and `label` (of its entry of `evaluate`).

    Method, backbone and data set are called as the newest record of the same one does (`label`); `method_name` and the
    like are their names.

    Of runs of equal content (a raised REVISION or another `evaluate.at` gives them other ids) the last one counts, and
    so it does of evaluations of one training on several test sets.

    Raises:
        ConfigError: there is no evaluation.
    """
    why = "; ".join(truth.unscored(found.trainings)) or "`harness plan --grid GRID` tells what is to do"
    require(bool(found.evaluations), f"no finished evaluation to show; {why}")
    known: dict[bytes, int] = {}
    trainings: dict[bytes, int] = {}
    configurations: list[dict[str, Any]] = []
    names: dict[str, str] = {}  # of weights by their hash: the first that a record calls them
    called = _Called()
    lines = []
    metrics = _metrics(found.evaluations)
    earlier = _earlier_steps(found.trainings)
    for record in sorted(found.evaluations, key=lambda record: record.started_at):
        train, result = record.spec["train"], record.result
        data = train["data"]
        rest = {key: value for key, value in train.items() if key not in _NO_ROW}
        own = {key: value for key, value in record.spec.items() if key not in ("train", "label")}
        steps = {"step": str(earlier.get(training_key(train), STEP))} if earlier else {}
        trained = [rest, data["options"], result["precision"], steps]
        key = marshal.dumps([*trained, own], 2)
        if key not in known:  # a grid of 10,000 runs has few
            known[key] = len(configurations)
            configurations.append(
                {
                    **_settings(record, names),
                    **steps,
                    "model": model_key(train, result),
                    "training": trainings.setdefault(marshal.dumps(trained, 2), len(trainings)),
                    "own": (own["map"], own["score"]) == (train["method"]["map"], train["method"]["score"]),
                }
            )
        called.hear(record, known[key])
        about = (data["manifest"], data.get("test_manifest", ""), bool(result.get("degenerate")), record.id)
        labels = (train["method"]["name"], train["backbone"], data["name"], data["category"], train["seed"])
        lines.append((*labels, known[key], *about, *map(result.get, metrics)))
    columns = [*LABELS, "configuration", "manifest", "tested", "degenerate", "id", *metrics]
    table = pd.DataFrame.from_records(lines, columns=columns)
    table = table.astype(dict.fromkeys(metrics, float))
    settings = pd.DataFrame(configurations).fillna("")
    table = table.join(settings.iloc[table["configuration"]].reset_index(drop=True))
    table = called.name(_newest(table, [*LABELS, "manifest", "configuration"]))
    table["manifest"] = (table["manifest"] + " " + table.pop("tested")).str.rstrip()
    # Of a category its sets of images are numbered in the order in which they were measured.
    of_category = table.groupby(["dataset", "category"])["manifest"]
    table["images"] = of_category.transform(lambda manifests: pd.factorize(manifests)[0] + 1).astype(str)
    return table.sort_values([*LABELS, "id"], ignore_index=True)  # whatever order the folders gave


class _Called:
    """What records call methods, backbones, data sets and evaluations: the newest of the same one counts."""

    def __init__(self) -> None:
        self.data: dict[tuple[str, str, str], str] = {}  # by name, category and images
        self.rest: dict[int, tuple[Record, dict[str, str]]] = {}  # by configuration, the newest last

    def hear(self, record: Record, configuration: int) -> None:
        """Of a record that is newer than those before."""
        train = record.spec["train"]
        said = dict(train.get("called", ()))
        if "dataset" in said:
            data = train["data"]
            self.data[data["name"], data["category"], data["manifest"]] = said["dataset"]
        if said or "label" in record.spec:
            self.rest.pop(configuration, None)
            self.rest[configuration] = record, said | {"label": record.spec.get("label", "")}

    def name(self, table: pd.DataFrame) -> pd.DataFrame:
        """With `label`, `method_name` and the like, and in the columns of CALLED what they are called."""
        table = table.assign(label="", **{f"{key}_name": table[key] for key in CALLED})
        if self.data:
            keys = zip(table["dataset"], table["category"], table["manifest"], strict=True)
            table["dataset"] = [self.data.get(key, key[0]) for key in keys]
        labels = {"label": {place: said["label"] for place, (_, said) in self.rest.items()}}
        for key in ("method", "backbone"):
            newest = {_content(key, record): said[key] for record, said in self.rest.values() if key in said}
            labels[key] = {place: newest.get(_content(key, record), "") for place, (record, _) in self.rest.items()}
        for key, of in labels.items():
            if any(of.values()):
                texts = table["configuration"].map(of)
                table[key] = texts.where(texts.fillna("") != "", table[key])
        return table


def _content(key: str, record: Record) -> tuple[object, ...]:
    """By what a method or a backbone is known to be the same."""
    train = record.spec["train"]
    if key == "method":
        return (json.dumps(train["method"], sort_keys=True),)
    return train["backbone"], train["weights"]["sha256"] or train["weights"]["name"]


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


def with_thresholds(lines: pd.DataFrame, asked: Sequence[str]) -> pd.DataFrame:
    """With a column of NaN for each metric at a threshold that is asked for and that no record has."""
    missing = [metric for metric in asked if is_at_threshold(metric) and metric not in lines]
    return lines.assign(**dict.fromkeys(missing, float("nan")))


def metrics_of(lines: pd.DataFrame) -> list[str]:
    return [column for column in lines.columns if is_metric(column)]


def settings_of(lines: pd.DataFrame) -> list[str]:
    """The columns that are settings, protocol first."""
    fixed = {*LABELS, *metrics_of(lines), *_BESIDE, *_GROUPS, *(f"{key}_name" for key in CALLED)}
    order = {key: place for place, key in enumerate(PROTOCOL)}
    found = [column for column in lines.columns if column not in fixed]
    return sorted(found, key=lambda key: order.get(key, len(order) + (not is_protocol(key))))


def is_protocol(key: str) -> bool:
    return key in PROTOCOL or key.startswith("data.")


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
    the default, and the recipe where there are several. Compared within a data set: what one data set alone has
    (`data.split`) does not tell rows apart.
    """
    names = [name for name in settings_of(lines) if not is_protocol(name)]
    few = lines.drop_duplicates(["configuration", "dataset"])
    places = list(zip(few["configuration"], few["dataset"], strict=True))
    about = few[["method", "backbone", "dataset"]].itertuples(index=False, name=None)
    each = zip(about, few["method_name"], few[names].to_dict("records"), strict=True)
    items = [(group, own, defaults_of(name, own["recipe"])) for group, name, own in each]
    found = tell_apart(items)
    if few["recipe"].nunique() > 1:  # of a method under one recipe too: the others' is another
        recipes = [{"recipe": recipe} if recipe != "own" else {} for recipe in few["recipe"]]
        found = [recipe | own for recipe, own in zip(recipes, found, strict=True)]
    texts = map(variant, found, few["label"])
    known = dict(zip(places, texts, strict=True))
    return [known[place] for place in zip(lines["configuration"], lines["dataset"], strict=True)]


def folded(lines: pd.DataFrame) -> pd.DataFrame:
    """One evaluation of each training: its method's own map and score stands for it, or else the variant with the
    fewest settings that are not the default. `lines` come with their `variant`.
    """
    few = lines.drop_duplicates("configuration")
    few = few.assign(words=few["variant"].str.count("=") + (few["label"] != ""), foreign=~few["own"].astype(bool))
    first = few.sort_values(["foreign", "words", "variant"], kind="stable").drop_duplicates("training")
    return lines[lines["configuration"].isin(first["configuration"])]


def _settings(record: Record, names: dict[str, str]) -> dict[str, str]:
    """All that decides the numbers of an evaluation but its labels and its test images."""
    train = record.spec["train"]
    known = {
        "weights": _weights(train["weights"]["name"], train["weights"]["sha256"], names),
        "precision": record.result["precision"],  # what `auto` became
    }
    return recorded_settings(record.spec | {"train": train | known})


def _earlier_steps(trainings: Iterable[Record]) -> dict[str, int]:
    """By their key those of trainings on a GPU that are not as they are now. Those on a CPU are what they were."""
    found = ((record, record.result.get("step", 1)) for record in trainings)
    return {
        training_key(record.spec): step
        for record, step in found
        if record.result.get("device_type") == "cuda" and step != STEP
    }


def _weights(name: str, sha256: str | None, names: dict[str, str]) -> str:
    """The file's hash tells weights apart; a name is for people: `imagenet (552b3ecf)`."""
    return f"{names.setdefault(sha256, name)} ({sha256[:8]})" if sha256 else name


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
    return json.dumps({**LATER[TrainSpec], **train, "method": method, "called": ()}, sort_keys=True)


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
