"""The comparison of a set of runs: what all its tables share (`Board`), what a table is, and the table of scores."""

import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import pandas as pd

from dskd.config import ConfigError, require, suggest
from harness.disturbance import SIGN
from harness.leaderboard import frame as tidy
from harness.leaderboard import truth
from harness.leaderboard.conditions import select
from harness.leaderboard.frame import LOWER, METRICS, SHOWN, SPEED, Found, is_protocol, metric_title
from harness.leaderboard.speed import COSTS, parameters, speeds
from harness.leaderboard.statistics import Interval, cut, deviation, t_interval
from harness.naming import is_of_evaluation

# How a value is written: a share in %, a difference of shares in points, images/s, a plain number (or a text in the
# place of one), how much it took, a count in millions, a p value, words.
Unit = Literal["share", "points", "speed", "number", "amount", "count", "p", "text"]
Part = Literal["low", "high", "sd", "runs", "expected", "degenerate", "without_degenerate", "disturbed"]
FOLDED = "to choose one by these test images is to choose by the test set"
HOLE = "–"  # what a table shows where there is no value
SPREAD: tuple[Part, ...] = ("low", "high")
MEASURED: tuple[Part, ...] = (*SPREAD, "sd", "runs", "expected", "degenerate", "without_degenerate")


@dataclass(frozen=True)
class Column:
    """What the cells of a column are.

    Attributes:
        key: in CSV and JSON; title: for people, a line break where the terminal may have one.
        parts: which fields of its cells beside the value belong to it.
        best: the best value of the column stands out, the highest or with `lower` the lowest.
        lower: the lowest comes first where rows are sorted by it.
        digits: behind the point, of shares and points.
    """

    key: str
    title: str
    unit: Unit
    parts: tuple[Part, ...] = ()
    best: bool = False
    digits: int = 1
    lower: bool = False


@dataclass(frozen=True)
class Cell:
    """A value with its 95 % interval (`low`, `high`), the standard deviation over seeds (`sd`), and how many `runs` of
    those `expected` went in: fewer is a hole, not a zero. `degenerate` of them collapsed; `without_degenerate` is the
    value without those. sign: 1 or -1 for an improvement or a regression beyond noise. standing: in a contest, whether
    it leads beyond noise or is not told apart from the best. disturbed: by what, of a measurement of speed that others
    disturbed: it is shown and wins nothing.
    """

    value: float | str | None
    low: float | None = None
    high: float | None = None
    sd: float | None = None
    runs: int | None = None
    expected: int | None = None
    degenerate: int = 0
    without_degenerate: float | None = None
    sign: int = 0
    standing: Literal["", "leads", "tied"] = ""
    disturbed: str | None = None

    @property
    def whole(self) -> bool:
        return self.runs is None or self.expected is None or self.runs >= self.expected


def with_interval(value: float, interval: Interval | None, **fields: Any) -> Cell:
    return Cell(value, *(interval or (None, None)), **fields)


@dataclass(frozen=True)
class Table:
    """Rows of cells under the columns' keys; `by` names the row's key. `notes`: what a reader must know, by line."""

    name: str
    title: str
    by: list[str]
    columns: list[Column]
    rows: list[tuple[tuple[str, ...], dict[str, Cell]]]
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Board:
    """The runs of one protocol. Line i of `lines` (see `frame`) belongs to the row `lines["row"][i]`, a tuple of texts
    under `by`; `speeds` as by `speed.speeds`.

    protocol: what tells it from the other boards, empty for one alone; shared: settings that all lines have in common;
    costs: those of `speed.COSTS` to show; note: what is to be said of variants of evaluation.
    """

    protocol: str
    lines: pd.DataFrame
    by: list[str]
    metrics: list[str]
    shared: dict[str, str]
    provenance: str
    speeds: pd.DataFrame
    found: Found
    note: str = ""
    costs: tuple[str, ...] = ()

    @property
    def datasets(self) -> list[str]:
        return list(self.lines["dataset"].unique())

    @property
    def seeds(self) -> list[int]:
        return sorted(int(seed) for seed in self.lines["seed"].unique())

    @property
    def cautions(self) -> list[str]:
        """What is left out."""
        older = int(self.lines["older"].sum())
        left_out = f"{older} evaluations on earlier test sets are left out: of each training the newest counts"
        return [left_out] if older else []

    def parts(self) -> dict[tuple[str, ...], pd.DataFrame]:
        """The lines of each row, in the order found."""
        return {tuple(key): part for key, part in self.lines.groupby("row", sort=False)}

    def values(self, part: pd.DataFrame, metric: str) -> pd.DataFrame:
        """Seeds × categories, NaN where a run or its metric is missing. `part`: lines of one row and data set."""
        return part.pivot(index="seed", columns="category", values=metric)


def label(key: Sequence[str]) -> str:
    return " ".join(part for part in key if part)


def boards(
    found: Found,
    by: Sequence[str] = ("method", "backbone"),
    metrics: Sequence[str] = SHOWN,
    where: Sequence[str] = (),
    allow_mixed: bool = False,
    open_variants: bool = False,
) -> list[Board]:
    """One board for each protocol. Lines that differ in a setting are never merged: what differs is in the row's key.

    Args:
        open_variants: every evaluation of a training is a row. Without, and where neither `by` nor `where` names a
            setting of evaluations, one stands for all (`frame.folded`).

    Raises:
        ConfigError: nothing to show, an unknown key, metric or condition, or mixed protocols without `allow_mixed`.
    """
    measured_speeds = speeds(found)
    costs = tuple(metric for metric in metrics if metric in COSTS)
    lines = select(tidy.with_thresholds(tidy.frame(found), metrics), where, _numbers(measured_speeds, found, where))
    settings = tidy.settings_of(lines)
    _check("--by", by, ["method", "backbone", "category", "seed", *settings])
    known = tidy.metrics_of(lines)
    if tuple(metrics) == SHOWN:  # not asked for: an evaluation may have other limits of AUPRO
        metrics = [metric for metric in metrics if metric in known]
    _check("--metric", metrics, [*known, *COSTS])
    require(bool(metrics), f"--metric: write one or more of {', '.join([*known, *COSTS])}")
    metrics = [metric for metric in metrics if metric not in COSTS]
    records = {record.id: record for record in found.evaluations}
    named = [*by, *(re.split("[!=]", condition)[0] for condition in where)]
    chosen_variant = any(is_of_evaluation(key) for key in named)
    made = []
    for protocol, part in tidy.split(lines, by, allow_mixed):
        part = part.assign(variant=tidy.variants(part))
        whole = part
        if not open_variants and not chosen_variant:
            part = tidy.folded(part)
            part = part.assign(variant=tidy.variants(part))
        hidden = whole["configuration"].nunique() - part["configuration"].nunique()
        several = (part.groupby("training")["configuration"].nunique() > 1).any()
        variants = f"{hidden} {'variants' if hidden > 1 else 'variant'} of evaluation folded (--variants shows them)"
        note = f"{variants if hidden else 'variants of one training'}: {FOLDED}" if hidden or several else ""
        chosen = [*by, *(["variant"] if (part["variant"] != "").any() and "variant" not in by else [])]
        part["row"] = list(part[chosen].astype(str).itertuples(index=False, name=None))
        counts = part[settings].nunique()
        shared = {
            key: part[key].iloc[0] for key in settings if key != "images" and counts[key] == 1 and part[key].iloc[0]
        }
        said = tidy.provenance([records[each] for each in part["id"]])
        made.append(Board(protocol, part, chosen, list(metrics), shared, said, measured_speeds, found, note, costs))
    return made


def _numbers(measured: pd.DataFrame, found: Found, where: Sequence[str]) -> pd.DataFrame:
    """What `--where` can compare of models: for each device, and trained parameters also where nothing was measured."""
    numbers = measured[["model", SPEED, *COSTS]]
    if any(condition.startswith("parameters_students") for condition in where):
        known = pd.DataFrame(parameters(found).items(), columns=["model", "parameters_students"])
        numbers = pd.concat([numbers, known], ignore_index=True)
    return numbers


def _check(option: str, words: Sequence[str], known: Sequence[str]) -> None:
    for word in words:
        if word not in known:
            kind = "metric" if option == "--metric" else "key"
            said = f"no evaluation here has {word}" if word in METRICS else f"unknown {kind} {word!r}"
            raise ConfigError(f"{option}: {said}; {suggest(word, known)}")


def scores(board: Board, sort: str = "") -> Table:
    """Mean of each metric and data set over categories and seeds, and images/s on each device.

    Args:
        sort: a column's key, a metric (its first column) or one of `by`; the first column if empty. Numbers are sorted
            best first.

    Raises:
        ConfigError: `sort` is none of these.
    """
    columns = [
        Column(f"{of}.{metric}", f"{of}\n{metric_title(metric)}", "share", MEASURED, best=True, lower=metric in LOWER)
        for of in board.datasets
        for metric in board.metrics
    ]
    fast = board.speeds[board.speeds["model"].isin(board.lines["model"])]
    devices = sorted(fast["device"].unique())
    speed_keys = {device: SPEED if len(devices) == 1 else f"{SPEED}@{device}" for device in devices}
    speed_titles = {device: "images/s" + (f"\n{device}" if len(devices) > 1 else "") for device in devices}
    columns += [
        Column(speed_keys[device], speed_titles[device], "speed", ("disturbed",), best=True) for device in devices
    ]
    columns += _cost_columns(board, devices)
    rows = []
    expected = dict(list(board.lines.groupby("dataset", sort=False)))
    for key, part in board.parts().items():
        cells = {}
        for dataset, own in part.groupby("dataset", sort=False):
            for metric in board.metrics:
                cell = measured(board, own, str(metric), expected[dataset])
                if cell is not None:
                    cells[f"{dataset}.{metric}"] = cell
        for device, own in fast[fast["model"].isin(part["model"])].groupby("device"):
            cells[speed_keys[device]] = Cell(float(own[SPEED].iloc[0]), disturbed=own["disturbed"].iloc[0] or None)
        rows.append((key, cells | _cost_cells(board, part, fast)))
    ids = set(board.lines["id"])
    own = [record for record in board.found.evaluations if record.id in ids]
    notes = (
        _remarks(rows) + ([board.note] if board.note else []) + truth.notes(own, board.found.trainings, board.metrics)
    )
    table = Table("scores", "Scores", board.by, columns, rows, notes)
    return arranged(table, sort)


def _cost_columns(board: Board, devices: Sequence[str]) -> list[Column]:
    """Of the board's costs on each device; trained parameters are the same on all."""
    columns = []
    for key in board.costs:
        cost, single = COSTS[key], len(devices) <= 1 or key == "parameters_students"
        parts: tuple[Part, ...] = ("disturbed",) if key.startswith("latency") else ()
        for place in [""] if single else devices:
            name, title = f"{key}@{place}" if place else key, f"{cost.title}\n{place}".strip()
            columns.append(Column(name, title, cost.unit, parts, lower=True))
    return columns


def _cost_cells(board: Board, part: pd.DataFrame, fast: pd.DataFrame) -> dict[str, Cell]:
    """Of the lines of one row, by the columns' keys. `fast`: what was measured of the board's models."""
    cells: dict[str, Cell] = {}
    several = fast["device"].nunique() > 1
    for device, own in fast[fast["model"].isin(part["model"])].groupby("device") if board.costs else ():
        for key in board.costs:
            value = own[key].iloc[0]
            name = f"{key}@{device}" if several and key != "parameters_students" else key
            if not pd.isna(value):
                why = own["disturbed"].iloc[0] if key.startswith("latency") else None
                cells[name] = Cell(float(value), disturbed=why or None)
    if "parameters_students" in board.costs and "parameters_students" not in cells:
        known = parameters(board.found)
        model = part["model"].iloc[0]
        cells |= {"parameters_students": Cell(known[model])} if model in known else {}
    return cells


def measured(board: Board, own: pd.DataFrame, metric: str, all_lines: pd.DataFrame) -> Cell | None:
    """Of the lines of one row and data set: mean over categories of the mean over seeds, and its 95 % interval and
    standard deviation over the seeds that have every category. `all_lines`: of all rows, which say what is expected.
    """
    grid = board.values(own, metric)
    runs = int(grid.notna().to_numpy().sum())
    if not runs:
        return None
    categories = own["category"].unique() if "category" in board.by else all_lines["category"].unique()
    seeds = own["seed"].unique() if "seed" in board.by else all_lines["seed"].unique()
    by_seed = seed_means(grid.reindex(columns=categories))
    collapsed = own["degenerate"].to_numpy()
    kept = board.values(own[~collapsed], metric) if collapsed.any() else grid
    return with_interval(
        mean_of(grid),
        cut(t_interval(by_seed)),
        sd=deviation(by_seed),
        runs=runs,
        expected=len(categories) * len(seeds),
        degenerate=int(own.loc[own[metric].notna(), "degenerate"].sum()),
        without_degenerate=mean_of(kept) if collapsed.any() and kept.notna().to_numpy().any() else None,
    )


def mean_of(grid: pd.DataFrame) -> float:
    """Of seeds × categories: over seeds for each category, then over categories."""
    return float(grid.mean(axis=0).mean())


def seed_means(grid: pd.DataFrame) -> list[float]:
    """Means over categories of the seeds that have every category."""
    return [float(value) for value in grid.dropna().mean(axis=1)]


def _remarks(rows: Sequence[tuple[tuple[str, ...], Mapping[str, Cell]]]) -> list[str]:
    cells = [cell for _, row in rows for cell in row.values()]
    notes = []
    if any(not cell.whole for cell in cells):
        notes.append("[k/n]: only k of n runs (categories × seeds) are there; such a mean takes no part in the contest")
    if any(cell.degenerate for cell in cells):
        notes.append(
            "†k: k runs collapsed (image AUROC ≤ 50 or pixel AUROC < 50) and are in the mean; (m) without them"
        )
    return notes + disturbed_note([row for _, row in rows])


def disturbed_note(rows: Sequence[Mapping[str, Cell]]) -> list[str]:
    """What the mark of disturbed measurements means, and what disturbed them; nothing where there are none."""
    reasons = Counter(cell.disturbed for row in rows for cell in row.values() if cell.disturbed)
    if not reasons:
        return []
    (first, _), *more = reasons.most_common()
    others = f", and {len(more)} more" if more else ""
    return [f"{SIGN}: disturbed ({first}{others}), so no measurement of the model; it is never marked best"]


def arranged(table: Table, sort: str = "") -> Table:
    """The table with its rows sorted by a column's key, the metric of one, or one of `by`. Raises ConfigError."""
    keys = [column.key for column in table.columns]
    named = sort in table.by
    chosen = [key for key in keys if named or sort in ("", *_names_of(key))]
    if not chosen:
        raise ConfigError(f"--sort: unknown column {sort!r}; {suggest(sort, [*table.by, *keys])}")

    upwards = {column.key for column in table.columns if column.lower}

    def place_of(row: tuple[tuple[str, ...], dict[str, Cell]]) -> tuple[bool, float]:
        """What others disturbed comes after what was measured, and what is not there last."""
        cell = row[1].get(chosen[0])
        if cell is None or cell.value is None:
            return True, float("inf")
        return cell.disturbed is not None, float(cell.value) * (1 if chosen[0] in upwards else -1)

    rows = sorted(table.rows, key=place_of)
    if named:
        rows.sort(key=lambda row: _natural(row[0][table.by.index(sort)]))
    return replace(table, rows=rows)


def _names_of(key: str) -> tuple[str, ...]:
    """By which `--sort` finds it: `set.image_auroc` is `image_auroc` too, and `images_per_s@gpu` `images_per_s`."""
    return key, key.rpartition(".")[2], key.partition(".")[2], key.partition("@")[0]


def _natural(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return float("inf"), text


def protocol_line(board: Board) -> str:
    """The settings that decide what a number means, where all rows share them, and the seeds."""
    keys = [
        key for key in board.shared if (is_protocol(key) and key not in ("images", "crop")) or key == "train.epochs"
    ]
    shown = [
        f"{key} {board.shared[key]}" for key in (*keys, *(["crop"] if board.shared.get("crop", "0") != "0" else []))
    ]
    if "weights" not in board.shared:
        each = board.lines.groupby("backbone")["weights"].unique()
        shown.append("weights " + ", ".join(f"{name}: {' and '.join(own)}" for name, own in each.items()))
    return " · ".join([*shown, f"seeds {in_ranges(board.seeds)}"])


def in_ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers: `0, 1, 5–9`"""
    blocks = [
        [number for _, number in block]
        for _, block in itertools.groupby(enumerate(numbers), key=lambda pair: pair[1] - pair[0])
    ]
    return ", ".join(f"{block[0]}–{block[-1]}" if len(block) > 2 else ", ".join(map(str, block)) for block in blocks)
