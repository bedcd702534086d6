"""A table as text: for the terminal, Markdown, CSV, LaTeX and JSON."""

import csv
import io
import json
from collections.abc import Callable, Sequence

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable

from harness.leaderboard.table import METRICS, SPEED, Cell, Found, Table
from harness.records import Failure
from harness.spec import title_of

SPEED_TITLE = "images/s"
# The settings that decide what a number means, shown under the table where all rows share them.
PROTOCOL = ("image_size", "weights", "precision", "train.epochs", "data.split", "data.resize", "aupro_limits")
LEGEND = "AUROC and AUPRO in %; mean over categories ± standard deviation over seeds"


def print_table(console: Console, table: Table) -> None:
    """The table with the best of each column in bold, and a footer with the protocol that its rows share."""
    rich = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for key in table.by:
        rich.add_column(key, overflow="fold")
    for column in table.columns:
        rich.add_column(_title(column, "\n"), justify="right", no_wrap=True)
    for key, cells in table.rows:
        texts = [_bold(table, column, cells.get(column), "[bold]{}[/]") for column in table.columns]
        rich.add_row(*(escape(part) for part in key), *texts)
    console.print(rich)
    for line in footer(table):
        console.print(f"[dim]{escape(line)}[/]", soft_wrap=True)


def print_failures(console: Console, failures: Sequence[Failure]) -> None:
    """One line for each failed run: what it was, why it failed and how to see more."""
    if failures:
        console.print(
            f"[red]{len(failures)} failed[/] (the same command tries them again; `harness show ID` tells more):"
        )
    for failure in failures:
        text = f"  {failure.id}  {failure.kind} {failure_title(failure)}  {failure.reason}: {failure.message}"
        console.print(escape(text), soft_wrap=True)


def failure_title(failure: Failure) -> str:
    spec = failure.spec.get("train", failure.spec)
    where = f" {spec['data']['name']}/{spec['data']['category']} seed {spec['seed']}" if "data" in spec else ""
    method = title_of(spec["method"]["name"], spec["method"].get("recipe", "own"))
    return f"{method} {spec['backbone']}{where}"


def footer(table: Table) -> list[str]:
    """The legend, the shared protocol, and what holes and collapsed runs there are."""
    shared = [f"{key} {table.shared[key]}" for key in PROTOCOL if key in table.shared]
    lines = [LEGEND, " · ".join([*shared, f"seeds {', '.join(map(str, table.seeds))}"])]
    cells = [cell for _, row in table.rows for (_, metric), cell in row.items() if metric != SPEED]
    if any(cell.runs < cell.expected for cell in cells):
        lines.append("[k/n]: only k of n runs (categories × seeds) are there")
    if any(cell.degenerate for cell in cells):
        lines.append("†k: k runs collapsed (image AUROC ≤ 50 or pixel AUROC < 50) and are in the mean")
    return [*lines, table.provenance]


def to_markdown(table: Table) -> str:
    titles = [*table.by, *(_title(column, " ") for column in table.columns)]
    lines = ["| " + " | ".join(titles) + " |"]
    lines.append("|" + "|".join([" --- "] * len(table.by) + [" ---: "] * len(table.columns)) + "|")
    for key, cells in table.rows:
        texts = [_bold(table, column, cells.get(column), "**{}**") for column in table.columns]
        lines.append("| " + " | ".join([*(part or " " for part in key), *texts]) + " |")
    return "\n".join([*lines, "", *(f"{line}  " for line in footer(table))]) + "\n"


def to_latex(table: Table) -> str:
    """A tabular for booktabs."""
    head = [_latex(title) for title in (*table.by, *(_title(column, " ") for column in table.columns))]
    lines = [rf"\begin{{tabular}}{{{'l' * len(table.by)}{'r' * len(table.columns)}}}", r"\toprule"]
    lines += [" & ".join(head) + r" \\", r"\midrule"]
    for key, cells in table.rows:
        texts = [_latex(_bold(table, column, cells.get(column), r"\textbf{{{}}}")) for column in table.columns]
        lines.append(" & ".join([*map(_latex, key), *texts]) + r" \\")
    return "\n".join([*lines, r"\bottomrule", r"\end{tabular}", *(f"% {line}" for line in footer(table))]) + "\n"


def to_csv(table: Table) -> str:
    """Numbers as they are (shares, not %): per metric its mean, spread, and runs of those expected."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    parts = ("", "_spread", "_runs", "_expected")
    names = [f"{dataset}_{metric}" if dataset else metric for dataset, metric in table.columns]
    writer.writerow([*table.by, *(name + part for name in names for part in parts)])
    for key, cells in table.rows:
        values: list[object] = []
        for column in table.columns:
            cell = cells.get(column)
            values += ["", "", "", ""] if cell is None else [cell.mean, cell.spread, cell.runs, cell.expected]
        writer.writerow([*key, *values])
    return text.getvalue()


def to_json(table: Table) -> str:
    rows = [
        dict(zip(table.by, key, strict=True))
        | {
            "metrics": [
                {"dataset": dataset, "metric": metric, "mean": cell.mean, "spread": cell.spread, "runs": cell.runs}
                | {"expected": cell.expected, "degenerate": cell.degenerate}
                for (dataset, metric), cell in cells.items()
            ]
        }
        for key, cells in table.rows
    ]
    about = {"shared": table.shared, "seeds": table.seeds, "provenance": table.provenance}
    return json.dumps({"rows": rows} | about, indent=1) + "\n"


FORMATS: dict[str, Callable[[Table], str]] = {
    "markdown": to_markdown,
    "csv": to_csv,
    "latex": to_latex,
    "json": to_json,
}


def remarks(found: Found) -> list[str]:
    """What was passed over while loading."""
    return [f"skipped {damaged.folder}: {damaged.message}" for damaged in found.damaged]


def _title(column: tuple[str, str], gap: str) -> str:
    dataset, metric = column
    return SPEED_TITLE if metric == SPEED else f"{dataset}{gap}{METRICS[metric]}"


def _bold(table: Table, column: tuple[str, str], cell: Cell | None, form: str) -> str:
    if cell is None:
        return "–"
    text = _text(column, cell)
    # Compared as shown: two equal texts of which one is bold would puzzle.
    best = max((row[column] for _, row in table.rows if column in row), key=lambda other: other.mean)
    shown = _mean(column, cell) == _mean(column, best)
    return form.format(text) if shown and len(table.rows) > 1 else text


def _mean(column: tuple[str, str], cell: Cell) -> str:
    if column[1] == SPEED:
        return f"{cell.mean:,.0f}" if cell.mean >= 100 else f"{cell.mean:.1f}"
    return f"{100 * cell.mean:.1f}"


def _text(column: tuple[str, str], cell: Cell) -> str:
    spread = "" if cell.spread is None else f" ± {100 * cell.spread:.1f}"
    hole = f" [{cell.runs}/{cell.expected}]" if cell.runs < cell.expected else ""
    return _mean(column, cell) + spread + hole + (f" †{cell.degenerate}" if cell.degenerate else "")


def _latex(text: str) -> str:
    for plain, escaped in (("_", r"\_"), ("%", r"\%"), ("&", r"\&"), ("#", r"\#"), ("†", r"\dag "), ("±", r"$\pm$")):
        text = text.replace(plain, escaped)
    return text
