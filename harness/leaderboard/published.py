"""Values from the literature beside measured ones: `published.csv`, and files of the same columns that users have."""

from dataclasses import replace
from pathlib import Path

import pandas as pd

from dskd.config import ConfigError, require, suggest
from harness.leaderboard.frame import LABELS, settings_of
from harness.leaderboard.table import Board, Cell, Column, Table, label

SHIPPED = Path(__file__).with_name("published.csv")
# One value of one source each. `category`: mean for what the source lists as its mean; `backbone`: empty where the
# source does not say; `protocol`: `key=value; key=value`, in the names of settings where there is one; `suspect`: yes
# where `reason` says why the value should not be relied on.
COLUMNS = ("method", "backbone", "dataset", "category", "metric", "value", "kind", "source")
COLUMNS += ("protocol", "suspect", "reason")
KINDS = ("paper", "paper, quoted", "authors", "third party")  # preferred in this order
MEAN = "mean"
GROUP = ["method", "backbone", "dataset", "metric", "kind", "source", "protocol"]


def read(own: Path | None = None) -> pd.DataFrame:
    """The published values that ship, and those of a user's file (`own`), which are preferred.

    Raises:
        ConfigError: a file that is not there or not of the schema, with the line.
    """
    tables = [_read(SHIPPED).assign(own=False)]
    if own is not None:
        tables.insert(0, _read(own).assign(own=True))
    return pd.concat(tables, ignore_index=True)


def _read(path: Path) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype=str, keep_default_na=False)
    except OSError as error:
        raise ConfigError(f"--published-file: {path}: {error.strerror}; write the path of a CSV") from None
    except (ValueError, pd.errors.ParserError) as error:
        raise ConfigError(f"{path} is not CSV: {' '.join(str(error).split())}") from None
    missing = [column for column in COLUMNS if column not in table]
    require(not missing, f"{path}: column {missing[0] if missing else ''} is missing; write {','.join(COLUMNS)}")
    for number, row in enumerate(table.to_dict("records"), start=2):
        where = f"{path}, line {number}"
        if row["kind"] not in KINDS:
            raise ConfigError(f"{where}: kind: {row['kind']!r} is not possible; {suggest(row['kind'], KINDS)}")
        require(
            row["suspect"] in ("", "yes"), f"{where}: suspect: {row['suspect']!r} is not possible; write yes or nothing"
        )
        require(bool(row["source"]), f"{where}: source is empty; write where the value stands")
        try:
            possible = 0 <= float(row["value"]) <= 1
        except ValueError:
            possible = False
        require(possible, f"{where}: value: {row['value']!r} is not possible; write a share from 0 to 1")
    return table.assign(digits=table["value"].map(_digits), value=table["value"].astype(float))


def _digits(text: str) -> int:
    return len(text.partition(".")[2])


def mean_mismatches(values: pd.DataFrame) -> list[str]:
    """A line for each listed mean that is not the mean of its source's categories, beyond what rounding explains."""
    lines = []
    for (method, backbone, dataset, metric, _, source, _), group in values.groupby(GROUP, sort=False):
        listed, categories = group[group["category"] == MEAN], group[group["category"] != MEAN]
        if listed.empty or len(categories) < 2:
            continue
        # Half a unit of the last digit for the categories, and as much for the mean.
        tolerance = 10.0 ** -min(6, int(group["digits"].max())) + 1e-9
        found, mean = float(listed["value"].iloc[0]), float(categories["value"].mean())
        if abs(found - mean) > tolerance:
            name = label((str(method), str(backbone), str(dataset), str(metric)))
            lines.append(
                f"published mean of {name} is {100 * found:.2f}, its {len(categories)} categories give "
                f"{100 * mean:.2f} ({source})"
            )
    return lines


def add_published(table: Table, board: Board, values: pd.DataFrame) -> Table:
    """The table of scores with a column `published` and one `Δ` (measured minus published) after each metric that has
    one, and notes: which source, where its protocol differs, what is suspect, which listed means do not hold.

    A published value is of the row's method, backbone, data set and metric, and its mean over the row's categories; a
    listed mean counts where the row has all categories of the data set. Of several sources one that is not suspect is
    preferred, then a user's own file, then the kind (see KINDS).
    """
    found: dict[tuple[tuple[str, ...], str], tuple[float, str]] = {}
    parts = board.parts()
    for key, cells in table.rows:
        for column in table.columns:
            dataset, dot, metric = column.key.partition(".")
            if dot and dataset in board.datasets and column.key in cells:
                part = parts[key][parts[key]["dataset"] == dataset]
                best = _best(values, part, metric)
                if best is not None:
                    found[key, column.key] = best
    columns: list[Column] = []
    for column in table.columns:
        columns.append(column)
        if any(place == column.key for _, place in found):
            columns.append(Column(f"{column.key}.published", f"{_metric_title(column)}\npublished", "share"))
            columns.append(Column(f"{column.key}.delta", "Δ", "points"))
    rows = []
    notes: dict[str, list[str]] = {}  # what is said, of which rows and metrics
    for key, cells in table.rows:
        more = {}
        for column in table.columns:
            if (key, column.key) in found:
                value, said = found[key, column.key]
                more[f"{column.key}.published"] = Cell(value)
                more[f"{column.key}.delta"] = Cell(float(cells[column.key].value or 0) - value)
                notes.setdefault(said, []).append(f"{label(key)} {column.key}")
        rows.append((key, cells | more))
    said = [f"published {', '.join(places)}: {text}" for text, places in notes.items()]
    names = board.lines[["dataset_name", "method_name"]]
    relevant = values[values["dataset"].isin(names["dataset_name"]) & values["method"].isin(names["method_name"])]
    mismatches = mean_mismatches(relevant)
    if not found:
        said = ["no published value of these methods, backbones and data sets"]
    return replace(table, columns=columns, rows=rows, notes=[*table.notes, *said, *mismatches])


def _metric_title(column: Column) -> str:
    return column.title.rpartition("\n")[2]


def _best(values: pd.DataFrame, part: pd.DataFrame, metric: str) -> tuple[float, str] | None:
    """Value and what is to be said of it."""
    names = part[["method_name", "backbone_name", "dataset_name"]].drop_duplicates()
    if len(names) != 1:
        return None
    method, backbone, dataset = names.iloc[0]
    of_dataset = values[values["dataset"] == dataset]
    everything = set(of_dataset["category"]) - {MEAN}
    fitting = of_dataset[
        (of_dataset["method"] == method)
        & of_dataset["backbone"].isin((backbone, ""))
        & (of_dataset["metric"] == metric)
    ]
    categories = set(part["category"])
    candidates = []
    for place, (group, rows) in enumerate(fitting.groupby(GROUP, sort=False)):
        own = rows[rows["category"].isin(categories)]
        if len(own) < len(categories):
            own = rows[(rows["category"] == MEAN) & (categories == everything)]
        if len(own):
            suspect = bool((own["suspect"] == "yes").any())
            stated = dict(zip(GROUP, group, strict=True))
            rank = (suspect, not own["own"].any(), stated["backbone"] == "", "setting=" in stated["protocol"])
            rank += (KINDS.index(stated["kind"]), place)
            candidates.append((rank, float(own["value"].mean()), stated, own))
    if not candidates:
        return None
    (suspect, *_), value, stated, own = min(candidates, key=lambda candidate: candidate[0])
    remarks = [f"{stated['kind']}, {stated['source']}"]
    remarks += _protocol_differences(stated, part)
    if suspect:
        remarks.append(f"suspect: {own.loc[own['suspect'] == 'yes', 'reason'].iloc[0]}")
    return value, "; ".join(remarks)


def _protocol_differences(stated: dict[str, str], part: pd.DataFrame) -> list[str]:
    """What is known to differ, and what the source does not say."""
    known = set(settings_of(part)) - set(LABELS)
    items = dict(item.split("=", 1) for item in stated["protocol"].split("; ") if "=" in item)
    differing = []
    for key, value in items.items():
        here = ", ".join(sorted(part[key].unique())) if key in known else ""
        if here != value:
            differing.append(f"{key} {value}" + (f" (here {here})" if here else ""))
    unstated = [] if stated["backbone"] else ["backbone"]
    unstated += [key for key in ("image_size", "train.epochs") if key not in items]
    said = [f"protocol differs: {', '.join(differing)}"] if differing else []
    return said + ([f"not stated: {', '.join(unstated)}"] if unstated else [])
