"""Tables as text: for the terminal, Markdown, CSV, LaTeX and JSON. The schema of the last ones: docs/leaderboard.md."""

import csv
import io
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace

from rich import box
from rich.console import Console
from rich.table import Table as RichTable
from rich.text import Text

from dskd.config import require
from harness.disturbance import SIGN
from harness.leaderboard.frame import Found
from harness.leaderboard.sections import Section
from harness.leaderboard.table import HOLE, Cell, Column, Table
from harness.naming import title
from harness.records import Failure, skipped_lines
from harness.text import as_json, csv_cell, latex, latex_comment, markdown, markdown_note, one_line, shown, typed

SCHEMA = 2  # of CSV and JSON: raised when a key changes its name or meaning
MEDAL, TIED = "🥇", "≈"  # of who leads beyond noise, and of who is not told apart from the best
KEY_WIDTH = 12  # a row's key is folded before a column is left for the next block
_TEXTS = ("method", "backbone", "dataset", "category", "variant", "metric", "first", "minus", "second", "device")
BAR = 8  # characters of the bar beside a speed
MOST_DAMAGED = 5  # named; the others are counted


def print_sections(console: Console, sections: Sequence[Section], why: bool = False) -> None:
    """Every table, in as many blocks of columns as the console is narrow, the verdict of each section (with `why`, all
    of it) and its footer.
    """
    for each in sections:
        if each.protocol:
            console.rule(Text(one_line(each.protocol), style="bold"), align="left")
        for table in each.tables:
            _print_table(console, table, titled=len(each.tables) > 1)
        for line in each.verdict.lines:
            console.print(Text(one_line(line), style="yellow" if line.startswith("Caution") else "bold"))
        if each.verdict.why:
            for line in each.verdict.why if why else ["`harness leaderboard RUNS --why` says more"]:
                console.print(Text(one_line(line), style="" if why else "dim"))
        for line in each.footer:
            console.print(Text(one_line(line), style="dim"))


def _print_table(console: Console, table: Table, titled: bool) -> None:
    if titled:
        console.print(Text(one_line(table.title), style="bold"))
    if not table.rows:
        console.print("  nothing to show")
    left = list(table.columns) if table.rows else []
    if left and _width(console, _rich(table, left)) > console.width:
        said, table = without_constants(table)
        console.print(Text(one_line(said), style="dim"))
    while left:
        count = len(left)
        while count > 1 and _width(console, _rich(table, left[:count])) > console.width:
            count -= 1
        made, key_width = _rich(table, left[:count]), KEY_WIDTH
        while _width(console, made) > console.width and key_width > 1:  # a number is never cut, so names give way
            key_width -= 1
            made = _rich(table, left[:count], key_width)
        console.print(made)
        left = left[count:]
    for note in table.notes:
        console.print(Text(one_line(note), style="dim"))


def without_constants(table: Table) -> tuple[str, Table]:
    """The table without the keys that all rows share, and these as text, to be said above it."""
    if not table.rows:
        return "", table
    texts = list(zip(*(key for key, _ in table.rows), strict=True))
    same = {name: values[0] for name, values in zip(table.by, texts, strict=True) if len(set(values)) == 1}
    kept = [place for place, name in enumerate(table.by) if name not in same]
    if not same or not kept:
        return "", table
    rows = [(tuple(key[place] for place in kept), cells) for key, cells in table.rows]
    said = " · ".join(f"{name} {value}" for name, value in same.items())
    return said, replace(table, by=[table.by[place] for place in kept], rows=rows)


def _width(console: Console, made: RichTable) -> int:
    return console.measure(made, options=console.options.update(width=10_000)).minimum


def _rich(table: Table, columns: Sequence[Column], key_width: int = KEY_WIDTH) -> RichTable:
    made = RichTable(box=box.SIMPLE_HEAD, pad_edge=False)
    medals = _medals(table) if columns[0] is table.columns[0] else []
    if medals:
        made.add_column("", no_wrap=True, min_width=2)
    keys = [[one_line(part) for part in key] for key, _ in table.rows]
    for place, key in enumerate(table.by):
        longest = max(len(key), *(len(row[place]) for row in keys))
        made.add_column(key, overflow="fold", min_width=min(key_width, longest))
    best = best_of(table)
    texts = [[_rich_cell(table, best, column, cells.get(column.key)) for column in columns] for _, cells in table.rows]
    for column, cells in zip(columns, zip(*texts, strict=True), strict=True):
        if column.unit == "text":
            made.add_column(shown(column.title))
        else:  # rich measures a column by its longest word, and would cut what is longer off
            width = max(text.cell_len for text in cells)
            made.add_column(shown(column.title), justify="right", no_wrap=True, min_width=width)
    for number, key in enumerate(keys):
        made.add_row(*medals[number : number + 1], *map(Text, key), *texts[number])
    return made


def _rich_cell(table: Table, best: Mapping[str, str], column: Column, cell: Cell | None) -> Text:
    wins = _wins(best, column, cell)
    return Text.assemble(
        (one_line(cell_text(column, cell)), "bold" if wins else ""), (_bar(table, column, cell), "cyan")
    )


def _ranked(cell: Cell | None) -> bool:
    """Whether the cell competes: a mean with a hole would win by what it lacks, a disturbed speed is none."""
    return cell is not None and cell.whole and not cell.disturbed and isinstance(cell.value, (int, float))


def best_of(table: Table) -> dict[str, str]:
    """The value of each column that stands out, as shown: of shares that of who leads beyond noise; of speeds the
    highest (two equal texts of which one is bold would puzzle).
    """
    best = {}
    for column in table.columns if len(table.rows) > 1 else ():
        competing = [row[column.key] for _, row in table.rows if column.best and _ranked(row.get(column.key))]
        if column.unit == "share":
            competing = [cell for cell in competing if cell.standing == "leads"]
        if competing:
            first = min if column.lower else max
            best[column.key] = _number(column, first(competing, key=lambda cell: float(cell.value or 0)))
    return best


def _medals(table: Table) -> list[str]:
    """Of each row: of the one that leads beyond noise by the first metric and is behind on no data set."""
    metric = table.columns[0].key.rpartition(".")[2]
    places = [column.key for column in table.columns if column.best and column.key.rpartition(".")[2] == metric]
    standings = [{row[place].standing if place in row else "" for place in places} for _, row in table.rows]
    leads = [bool(own) and "leads" in own and own <= {"leads", "tied"} for own in standings]
    return [MEDAL if lead else "" for lead in leads] if sum(leads) == 1 else []


def _bar(table: Table, column: Column, cell: Cell | None) -> str:
    if column.unit != "speed":
        return ""
    ranked = [row[column.key].value for _, row in table.rows if _ranked(row.get(column.key))]
    eighths = round(8 * BAR * float(cell.value or 0) / max(ranked)) if cell and _ranked(cell) and max(ranked) else 0
    bar = "█" * (eighths // 8) + (" ▏▎▍▌▋▊▉"[eighths % 8] if eighths % 8 else "")
    return f" {bar:{BAR}}"


def print_failures(console: Console, failures: Sequence[Failure], names: Mapping[str, str]) -> None:
    """One line for each run that failed or was interrupted: what it was (by `names`, of its id), why, and how to see
    more.
    """
    interrupted = sum(failure.reason == "interrupted" for failure in failures)
    counts = (("failed", "red", len(failures) - interrupted), ("interrupted", "yellow", interrupted))
    if failures:
        said = Text(", ").join(Text(f"{count} {word}", style=style) for word, style, count in counts if count)
        console.print(said + Text(" (the same command tries them again; `harness show ID` tells more):"))
    for failure in failures:
        name = names.get(failure.id) or title(failure.spec)
        text = f"  {failure.id}  {failure.kind} {name}  {failure.reason}: {failure.message}"
        console.print(Text(one_line(text)), soft_wrap=True)


def remarks(found: Found) -> list[str]:
    """What was passed over while loading: counted, and the first ones named."""
    lines = [f"skipped {damaged.folder}: {damaged.message}" for damaged in found.damaged[:MOST_DAMAGED]]
    if found.damaged:
        count = len(found.damaged)
        lines.append(f"{count} damaged record{'s' if count > 1 else ''} skipped; the runs are missing above")
    return lines + skipped_lines(found.skipped)


def to_markdown(sections: Sequence[Section]) -> str:
    lines: list[str] = []
    for each in sections:
        lines += [f"## {markdown(each.protocol)}", ""] if each.protocol else []
        for table in each.tables:
            lines += [f"### {markdown(table.title)}", ""] if len(each.tables) > 1 else []
            lines += [
                *markdown_table(table),
                "",
                *(f"{markdown_note(note)}  " for note in table.notes),
                *([""] if table.notes else []),
            ]
        lines += [*(f"{markdown_note(line)}  " for line in (*each.verdict.lines, *each.footer)), ""]
    return "\n".join(lines[:-1]) + "\n"


def markdown_table(table: Table) -> list[str]:
    """The lines of the table alone, without title and notes."""
    rules = [" --- " if column.unit == "text" else " ---: " for column in table.columns]
    lines = ["| " + " | ".join(map(markdown, [*table.by, *map(_title, table.columns)])) + " |"]
    lines.append("|" + "|".join([*[" --- "] * len(table.by), *rules]) + "|")
    best = best_of(table)
    for key, cells in table.rows:
        texts = [marked(best, column, cells.get(column.key), "**{}**", markdown) for column in table.columns]
        lines.append("| " + " | ".join(part or " " for part in (*map(markdown, key), *texts)) + " |")
    return lines


def to_latex(sections: Sequence[Section]) -> str:
    """Tabulars for booktabs, with the notes as comments."""
    lines: list[str] = []
    for each in sections:
        lines += [latex_comment(each.protocol)] if each.protocol else []
        for table in each.tables:
            lines += [latex_comment(table.title)] if len(each.tables) > 1 else []
            layout = "".join("l" if column.unit == "text" else "r" for column in table.columns)
            lines += [rf"\begin{{tabular}}{{{'l' * len(table.by)}{layout}}}", r"\toprule"]
            lines += [" & ".join(map(latex, [*table.by, *map(_title, table.columns)])) + r" \\", r"\midrule"]
            best = best_of(table)
            for key, cells in table.rows:
                texts = [
                    marked(best, column, cells.get(column.key), r"\textbf{{{}}}", latex) for column in table.columns
                ]
                lines.append(" & ".join([*map(latex, key), *texts]) + r" \\")
            lines += [r"\bottomrule", r"\end{tabular}", *map(latex_comment, table.notes)]
        lines += map(latex_comment, (*each.verdict.lines, *each.footer))
    return "\n".join(lines) + "\n"


def to_csv(sections: Sequence[Section]) -> str:
    """One table, numbers as they are (shares, not %): of each column its value and its parts. Several sections: their
    protocol is the first column. Raises ConfigError for several tables.
    """
    require(
        all(len(each.tables) == 1 for each in sections), "--format: csv holds one table; write --table with one name"
    )
    split = len(sections) > 1
    columns = list({column.key: column for each in sections for column in each.tables[0].columns}.values())
    by = list(dict.fromkeys(key for each in sections for key in each.tables[0].by))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    names = [name for column in columns for name in (column.key, *(f"{column.key}_{part}" for part in column.parts))]

    def write(fields: Iterable[object]) -> None:
        writer.writerow(map(csv_cell, fields))

    write([*(["protocol"] if split else []), *by, *names])
    for each in sections:
        for key, cells in each.tables[0].rows:
            named = dict(zip(each.tables[0].by, key, strict=True))
            values = [_plain(column, cells.get(column.key)) for column in columns]
            flat = [value for column, found in zip(columns, values, strict=True) for value in found.values()]
            write([*([each.protocol] if split else []), *(named.get(name, "") for name in by), *flat])
    return text.getvalue()


def _key(name: str, part: str) -> object:
    """A part of a row's key: a seed or a setting with its type."""
    return part if name in _TEXTS else typed(part)


def _plain(column: Column, cell: Cell | None) -> dict[str, object]:
    """A cell's value and parts under their names; all None where there is no cell."""
    return {part: None if cell is None else getattr(cell, part) for part in ("value", *column.parts)}


def to_json(sections: Sequence[Section]) -> str:
    document = {
        "schema": SCHEMA,
        "sections": [
            {
                "protocol": each.protocol,
                **each.about,
                "verdict": {"lines": each.verdict.lines, "why": each.verdict.why},
                "tables": [
                    {
                        "name": table.name,
                        "columns": [{"key": c.key, "title": _title(c), "unit": c.unit} for c in table.columns],
                        "rows": [
                            {
                                name: part if name in _TEXTS else typed(part)
                                for name, part in zip(table.by, key, strict=True)
                            }
                            | {"cells": {c.key: _plain(c, cells[c.key]) for c in table.columns if c.key in cells}}
                            for key, cells in table.rows
                        ],
                        "notes": table.notes,
                    }
                    for table in each.tables
                ],
            }
            for each in sections
        ],
    }
    return as_json(document, indent=1) + "\n"


FORMATS: dict[str, Callable[[Sequence[Section]], str]] = {
    "markdown": to_markdown,
    "csv": to_csv,
    "latex": to_latex,
    "json": to_json,
}


def _title(column: Column) -> str:
    return column.title.replace("\n", " ")


def marked(best: Mapping[str, str], column: Column, cell: Cell | None, form: str, dress: Callable[[str], str]) -> str:
    """The cell's text as `dress` makes it, in `form` where it is the best of its column."""
    text = dress(cell_text(column, cell))
    return form.format(text) if _wins(best, column, cell) else text


def _wins(best: Mapping[str, str], column: Column, cell: Cell | None) -> bool:
    return cell is not None and _ranked(cell) and _number(column, cell) == best.get(column.key)


def cell_text(column: Column, cell: Cell | None) -> str:
    """As people read it: `87.5 ± 2.2`, `+1.2 [-0.3, +2.9]`, `65.0 [5/6] †1 (68.8)`."""
    if cell is None or cell.value is None:
        return HOLE
    text = _number(column, cell) + _interval(column, cell)
    if not cell.whole:
        text += f" [{cell.runs}/{cell.expected}]"
    if cell.degenerate:
        without = cell.without_degenerate
        text += f" †{cell.degenerate}" + (f" ({100 * without:.1f})" if without is not None else "")
    text += f" {SIGN}" if cell.disturbed else ""
    return text + {1: " ▲", -1: " ▼", 0: ""}[cell.sign] + (f" {TIED}" if cell.standing == "tied" else "")


def _number(column: Column, cell: Cell, value: float | str | None = None) -> str:
    value = cell.value if value is None else value
    match column.unit:
        case "share":
            return f"{100 * float(value):.{column.digits}f}"
        case "points":
            return f"{100 * float(value):+.{column.digits}f}"
        case "speed":
            return f"{float(value):,.0f}" if float(value) >= 100 else f"{float(value):.1f}"
        case "amount":
            return f"{float(value):,.0f}" if float(value) >= 100 else f"{float(value):.3g}"
        case "p":
            return "<0.001" if float(value) < 0.001 else f"{float(value):.3f}"
        case "count":
            return f"{float(value) / 1e6:.2f} M"
        case "number":
            return f"{value}" if isinstance(value, (int, str)) else f"{float(value):.2f}"
    return str(value)


def _interval(column: Column, cell: Cell) -> str:
    """`± half` of an interval by Student's t, which a mean over seeds has, unless 0 or 100 % cuts it; the two ends of
    that, and of a bootstrap's.
    """
    if cell.low is None or cell.high is None:
        return ""
    if "sd" in column.parts and (cell.low == cell.high or (cell.low > 0 and cell.high < 1)):
        return f" ± {100 * (cell.high - cell.low) / 2:.1f}"
    return f" [{_number(column, cell, cell.low)}, {_number(column, cell, cell.high)}]"
