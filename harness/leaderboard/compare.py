"""Two sets of results against each other, run by run: what became better, worse, faster or slower."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from dskd.config import ConfigError, require, suggest
from harness.leaderboard import truth, verdict
from harness.leaderboard.evidence import Scores, difference_cells, paired
from harness.leaderboard.frame import (
    CALLED,
    LABELS,
    LOWER,
    SHOWN,
    SPEED,
    Found,
    frame,
    load,
    metric_title,
    metrics_of,
    mixed,
    provenance,
    settings_of,
    variants,
)
from harness.leaderboard.sections import Section
from harness.leaderboard.speed import speeds
from harness.leaderboard.table import SPREAD, Cell, Column, Table, disturbed_note, label
from harness.leaderboard.verdict import Verdict
from harness.spec import STEP

AFTER = " after"  # ends the names of the second side's columns
NEVER = ("images", "aupro_limits")  # `manifest` says which images; a metric's name says its limit
COLUMNS = [
    Column("before", "before", "share"),
    Column("after", "after", "share"),
    Column("difference", "after - before\n[95 %]", "points", SPREAD),
    Column("pairs", "runs", "number"),
    Column("equal", "equal", "number"),
    Column("over", "interval over", "text"),
]
SPEED_COLUMNS = [
    Column("before", "before\nimages/s", "speed"),
    Column("after", "after\nimages/s", "speed"),
    Column("ratio", "after :\nbefore", "number"),
]


@dataclass(frozen=True)
class Side:
    """One of the two: its name as the user wrote it, and its runs."""

    name: str
    found: Found


def read_side(text: str) -> Side:
    """`runs/NAME`, or `runs/NAME@COMMIT` for the runs of one commit (the start of its hash is enough).

    Raises:
        ConfigError: no such folder, no runs in it, or none of that commit (with those that there are).
    """
    path, _, commit = text.rpartition("@") if not Path(text).is_dir() and "@" in text else (text, "", "")
    found = load([Path(path)])
    require(bool(found.evaluations), f"{path}: no finished evaluation to compare")
    if commit:
        commits = sorted({record.environment.get("commit") or "unknown" for record in found.evaluations})
        for records in (found.evaluations, found.trainings, found.benches):
            records[:] = [record for record in records if (record.environment.get("commit") or "").startswith(commit)]
        require(bool(found.evaluations), f"{path}: no run is of commit {commit}; there are: {', '.join(commits)}")
    return Side(text, found)


def compare(
    first: Side, second: Side, metrics: Sequence[str] = SHOWN, ignore: Sequence[str] = ()
) -> tuple[Section, list[str]]:
    """The section of two tables, `differences` (second minus first, of the runs of equal content) and `speed` (on the
    same device), and a line for each side's runs that the other has not.

    Args:
        ignore: settings in which matched runs may differ.

    Raises:
        ConfigError: no run is in both (with the settings in which they differ), or an unknown metric or setting.
    """
    lines = [frame(side.found) for side in (first, second)]
    settings = list(dict.fromkeys(name for each in lines for name in settings_of(each)))
    known = [metric for metric in metrics_of(lines[0]) if metric in metrics_of(lines[1])]
    _check("--ignore", ignore, settings)
    _check("--metric", metrics, known) if tuple(metrics) != SHOWN else None
    metrics = [metric for metric in metrics if metric in known]
    lines = [_comparable(each, settings) for each in lines]
    labels = [f"{name}_name" if name in CALLED else name for name in LABELS]
    keys = [*labels, "manifest", *(name for name in settings if name not in (*ignore, *NEVER))]
    for side, each in zip((first, second), lines, strict=True):
        require(
            not each.duplicated(keys).any(),
            f"{side.name}: several runs differ only in what --ignore leaves out; ignore less",
        )
    matched = lines[0].merge(lines[1], on=keys, suffixes=("", AFTER))
    require(not matched.empty, f"no run is in both {first.name} and {second.name}; {_reason(*lines, keys)}")
    rest = [
        f"{len(each) - len(matched)} of {len(each)} evaluations are in {side.name} alone"
        for side, each in zip((first, second), lines, strict=True)
        if len(each) > len(matched)
    ]
    own = matched[[name for name in matched if not name.endswith(AFTER)]]
    matched = matched.assign(variant=variants(own))
    tables = [_differences(first.found, second.found, matched, metrics), *_speed(first, second, matched)]
    said = [f"{side.name}: {provenance(side.found.evaluations)}" for side in (first, second)]
    about = {"first": first.name, "second": second.name, "unmatched": rest}
    return Section("", tables, about, [*rest, *said], _verdict(matched, tables[0], metrics)), rest


def _verdict(matched: pd.DataFrame, table: Table, metrics: Sequence[str]) -> Verdict:
    """What became better or worse beyond noise, and how many runs are the same to the last digit."""
    equal = pd.Series(True, index=matched.index)
    for metric in metrics:
        first, second = matched[metric], matched[metric + AFTER]
        equal &= (first == second) | (first.isna() & second.isna())
    differences = []
    for (dataset, metric, *key), cells in table.rows:
        cell = cells.get("difference")
        if cell is not None and cell.value is not None:
            what = f"{label(key)} on {dataset} by {metric_title(metric)}"
            differences.append((what, float(cell.value), cell.sign))
    lines = verdict.of_comparison(len(matched), int(equal.sum()), differences)
    seeds = int(matched.groupby("dataset")["seed"].nunique().min())
    few = [] if equal.all() else verdict.few(seeds)
    return Verdict([*lines, *(f"Caution: {line}." for line in few)], [])


def _check(option: str, words: Sequence[str], known: Sequence[str]) -> None:
    for word in words:
        if word not in known:
            raise ConfigError(f"{option}: unknown name {word!r}; {suggest(word, known)}")


def _comparable(lines: pd.DataFrame, settings: Sequence[str]) -> pd.DataFrame:
    """With every setting as a column, and weights by their hash alone."""
    missing = {name: str(STEP) if name == "step" else "" for name in settings if name not in lines}
    return lines.assign(**missing, weights=lines["weights"].str.extract(r"([^ ()]+)\)?$", expand=False))


def _reason(first: pd.DataFrame, second: pd.DataFrame, keys: Sequence[str]) -> str:
    """`they differ in train.lr (0.4, 0.1)`"""
    differing: dict[str, str] = {}
    for key in keys:
        values = [set(side[key].astype(str)) for side in (first, second)]
        if not values[0] & values[1]:
            told = " and ".join(", ".join(sorted(found)[:3]) or "nothing" for found in values)
            differing[key] = f"{key.removesuffix('_name')} ({told})"
    if not differing:
        return "no two have the same settings and images"
    said = f"they differ in {', '.join(list(differing.values())[:3])}"
    if set(differing) - set(settings_of(first)):
        return said
    return f"{said}; write --ignore {','.join(differing)} to compare them all the same"


def _differences(first: Found, second: Found, matched: pd.DataFrame, metrics: Sequence[str]) -> Table:
    own = matched[[name for name in matched if not name.endswith(AFTER)]]
    by = ["method", "backbone", *(name for name in mixed(own) if name not in NEVER)]
    by += ["variant"] if (matched["variant"] != "").any() else []
    read = Scores(first.skipped)
    rows = []
    for dataset, of_dataset in matched.groupby("dataset"):
        for metric in metrics:
            for key, part in of_dataset.groupby(by):
                columns = (metric, metric + AFTER)
                grids = [part.pivot(index="seed", columns="category", values=column) for column in columns]
                places = part.set_index(["category", "seed"])
                folders = places["id"].map(first.folders), places["id" + AFTER].map(second.folders)
                pairs = paired(grids[1], grids[0], folders[1], folders[0], metric, read)
                cells = difference_cells(pairs, metric in LOWER)
                cells.pop("probability", None)
                if pairs:
                    cells["before"] = Cell(float(sum(pair.second.mean() for pair in pairs) / len(pairs)))
                    cells["after"] = Cell(float(sum(pair.first.mean() for pair in pairs) / len(pairs)))
                cells["equal"] = Cell(sum(int((pair.first == pair.second).sum()) for pair in pairs))
                rows.append(((str(dataset), metric, *map(str, key)), cells))
    ids = {*matched["id"], *matched["id" + AFTER]}
    compared = [record for side in (first, second) for record in side.evaluations if record.id in ids]
    notes = ["▲ ▼: better or worse beyond noise (the 95 % interval excludes 0); equal: runs equal to the last digit"]
    notes += truth.notes(compared, (), metrics)
    return Table("differences", "Differences", ["dataset", "metric", *by], COLUMNS, rows, notes)


def _speed(first: Side, second: Side, compared: pd.DataFrame) -> list[Table]:
    """Images/s of the models that both measured on one device; none where neither measured any.

    compared: lines by whose rows models are called; one that several rows share has no variant.
    """
    sides = [speeds(side.found) for side in (first, second)]
    if all(side.empty for side in sides):
        return []
    keys = ["model", "method", "backbone", "device", "protocol"]
    matched = sides[0].merge(sides[1], on=keys, suffixes=("", AFTER))
    called = compared.drop_duplicates(["model", "method", "backbone", "variant"])
    names = {
        model: (*part[["method", "backbone"]].iloc[0], part["variant"].iloc[0] if len(part) == 1 else "")
        for model, part in called.groupby("model")
    }
    told = any(names.get(model, ("", "", ""))[2] for model in matched["model"])
    rows = []
    for line in matched.to_dict("records"):
        before, after = (Cell(line[SPEED + side], disturbed=line["disturbed" + side] or None) for side in ("", AFTER))
        why = ", ".join(dict.fromkeys(filter(None, (before.disturbed, after.disturbed))))
        ratio = Cell(after.value / before.value, disturbed=why or None)
        cells = {"before": before, "after": after, "ratio": ratio}
        name = names.get(line["model"], (line["method"], line["backbone"], ""))
        rows.append(((line["device"], *name[: 3 if told else 2]), cells))
    devices = [", ".join(sorted(side["device"].unique())) or "nothing" for side in sides]
    notes = ["one measurement each: there is no interval"] if rows else []
    notes += disturbed_note([cells for _, cells in rows])
    if devices[0] != devices[1]:
        notes.append(
            f"throughput is compared on one device only: {first.name} measured on {devices[0]}, {second.name} on "
            f"{devices[1]}"
        )
    by = ["device", "method", "backbone", *(["variant"] if told else [])]
    return [Table("speed", "Throughput", by, SPEED_COLUMNS, rows, notes)]


def regressions(table: Table, limit: float) -> list[str]:
    """The rows whose difference is below `limit` points (such as -0.5), or above it for a metric of which the lowest is
    the best, and not noise: the interval excludes 0, or there is none to tell.
    """
    found = []
    for key, cells in table.rows:
        cell = cells.get("difference")
        if cell is None or cell.value is None:
            continue
        gained = -float(cell.value) if key[1] in LOWER else float(cell.value)
        if 100 * gained >= limit:
            continue
        if cell.sign < 0 or cell.low is None:
            found.append(f"{' '.join(part for part in key if part)}: {100 * float(cell.value):+.2f} points")
    return found
