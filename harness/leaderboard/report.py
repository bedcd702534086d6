"""One self-contained HTML page of a set of runs: tables, charts, pictures, failures, protocol and provenance."""

import importlib.metadata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pandas as pd
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from dskd.config import require
from harness.disturbance import SIGN
from harness.environment import utc_now
from harness.leaderboard import evidence, gallery, inventory, plots
from harness.leaderboard.figures import Figure, Names, figures
from harness.leaderboard.frame import SPEED, Found, metric_title
from harness.leaderboard.render import best_of, marked, remarks, without_constants
from harness.leaderboard.sections import LEGEND, NAMES, make_sections
from harness.leaderboard.table import Board, Cell, Column, Table, protocol_line, scores
from harness.leaderboard.verdict import Contest, Verdict, sentence
from harness.text import as_json, file_name, shown

SECTIONS = {
    "scores": "Scores",
    "speed": "Speed",
    "categories": "Categories",
    "curves": "Curves",
    "evidence": "Evidence",
    "gallery": "Gallery",
    "runs": "Runs",
    "failures": "Failures",
    "protocol": "Protocol",
    "provenance": "Provenance",
}


@dataclass(frozen=True)
class Card:
    """A finding in a box: a title, a figure or name in large, lines of text."""

    title: str
    figure: str
    lines: list[str]


@dataclass(frozen=True)
class Part:
    """All of one board that the page shows."""

    number: int
    board: Board
    tables: dict[str, Table]
    categories: dict[str, Table]  # by data set
    cards: list[Card]
    verdict: Verdict
    cases: list[gallery.Case]
    figures: list[Figure]

    @property
    def protocol(self) -> str:
        return protocol_line(self.board)

    @property
    def runs_title(self) -> str:
        count = len(self.board.lines)
        return f"{count} evaluations" + (f", the first {inventory.MOST_RUNS}" if count > inventory.MOST_RUNS else "")


def gather(
    boards: Sequence[Board],
    by_category: Sequence[Board],
    published: pd.DataFrame | None = None,
    pictures: int = 200,
) -> list[Part]:
    """What the page shows of each board.

    Args:
        by_category: the same boards with `category` in the rows' key.
        pictures: so many anomaly maps at most, shared evenly by the boards.
    """
    require(
        all(board.metrics for board in boards), "--metric: a page needs a metric of detection too, such as image_auroc"
    )
    parts = []
    sections = make_sections(boards, NAMES, published=published)
    for number, (board, fine, section) in enumerate(zip(boards, by_category, sections, strict=True)):
        tables = {table.name: table for table in section.tables}
        tables |= {
            "speed": inventory.speed(board),
            "cost": inventory.cost(board),
            "runs": inventory.runs(board),
        }
        shown = evidence.labels(list(board.parts()))
        names = {key: shown[key] for key, _ in tables["scores"].rows}  # best first
        cases = gallery.choose(board, names, pictures // len(boards))
        charts = list(figures(board, names, tables["differences"]))
        found = cards(board, names, section.contests)
        parts.append(Part(number, board, tables, categories(fine), found, section.verdict, cases, charts))
    return parts


def categories(board: Board) -> dict[str, Table]:
    """Scores by category of each data set, without the speed, which does not depend on it."""
    made = {}
    for dataset, lines in board.lines.groupby("dataset", sort=False):
        table = scores(replace(board, lines=lines, costs=()), sort="category")
        columns = [column for column in table.columns if column.unit != "speed"]
        made[str(dataset)] = replace(table, name="categories", title=f"Categories of {dataset}", columns=columns)
    return made


def render(parts: Sequence[Part], found: Found, folders: Sequence[Path], title: str = "") -> str:
    """The page as text. `folders`: where the records came from, by whose names it is called."""
    environment = Environment(
        loader=PackageLoader("harness.leaderboard", "page"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        # What autoescape leaves: control characters, and halves of surrogate pairs, which no file can hold.
        finalize=lambda value: shown(value) if type(value) is str else value,
    )
    environment.filters |= {"dressed": _dressed, "detail": _detail, "best": best_of, "compact": without_constants}
    names = [folder.resolve().name for folder in folders]
    boards = [part.board for part in parts]
    lines = pd.concat([board.lines for board in boards])
    metrics = list(dict.fromkeys(metric for board in boards for metric in board.metrics))
    page = {
        "title": title or f"{', '.join(names)}: leaderboard",
        "counts": _counts(lines, found),
        "provenance": " · ".join(dict.fromkeys(board.provenance for board in boards)),
        "sections": list(SECTIONS.items()),
        "datasets": list(lines["dataset"].unique()),
        "metrics": [(metric, metric_title(metric)) for metric in metrics],
        "categories": list(lines[["dataset", "category"]].drop_duplicates().itertuples(index=False, name=None)),
        "roles": sorted({role for part in parts for case in part.cases for role in case.roles}),
        "parts": parts,
        "colour_bar": gallery.colour_bar(),
        "failures": inventory.failures(found),
        "remarks": remarks(found),
        "environments": inventory.environments(found, lines),
        "inputs": inventory.inputs(found, lines),
        "made_at": utc_now(),
        "version": importlib.metadata.version("dskd-harness"),
        "sources": ", ".join(names),
    }
    charts: dict[str, dict[str, Any]] = {}
    for part in parts:
        for figure in part.figures:
            drawn = {"missing": figure.missing} if figure.chart is None else figure.chart.to_dict(validate=False)
            charts.setdefault(f"{figure.kind}-{part.number}", {})[f"{figure.dataset}|{figure.metric}"] = drawn
    source = environment.loader
    files = {
        name: Markup(source.get_source(environment, name)[0]) for name in ("report.css", "report.js", "sortable.min.js")
    }
    return environment.get_template("report.html.j2").render(
        page=page,
        legend=LEGEND,
        files=files,
        # Inside a script element nothing may look like its end.
        figures=Markup(as_json(_shown(charts), separators=(",", ":")).replace("<", "\\u003c")),
        javascript=Markup(plots.javascript().replace("</script", "<\\/script")),
    )


def save_figures(folder: Path, parts: Sequence[Part]) -> list[Path]:
    """Every chart as SVG and PDF; their paths without the ending."""
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for part in parts:
        for figure in part.figures:
            if figure.chart is not None:
                number = [str(part.number + 1)] if len(parts) > 1 else []
                words = [figure.kind, figure.dataset, *([figure.metric] if figure.metric else [])]
                path = folder / "-".join([*map(file_name, words), *number])
                plots.save(_shown(figure.chart.to_dict(validate=False)), path)
                made.append(path)
    return made


def cards(board: Board, names: Names, contests: Sequence[Contest]) -> list[Card]:
    """Who leads on each of several data sets by the first metric (of one alone the verdict speaks); who is fastest."""
    title = metric_title(board.metrics[0])
    made = [
        Card(f"{title} on {each.dataset}", each.leader or "no clear leader", [sentence(each)])
        for each in contests
        if each.metric == title and len(board.datasets) > 1
    ]
    models = {model: names[row] for model, row in zip(board.lines["model"], board.lines["row"], strict=True)}
    measured = board.speeds[board.speeds["model"].isin(models)].sort_values(SPEED, ascending=False)
    for device, own in measured.groupby("device", sort=False):
        known = list(zip(own["model"].map(models), own[SPEED], own["disturbed"], strict=True))
        quiet = [(name, f"{speed:,.1f} images/s: {name}") for name, speed, why in known if not why]
        others = [f"{speed:,.1f} {SIGN} images/s: {name}; {why}" for name, speed, why in known if why]
        lines = [*(line for _, line in quiet[:3]), *others[:3]]
        title, figure = ("Fastest", quiet[0][0]) if quiet else ("Speed", "undecided: every measurement was disturbed")
        made.append(Card(f"{title} on {device}", figure, lines))
    return made


def _counts(lines: pd.DataFrame, found: Found) -> str:
    counts = {key: lines[key].nunique() for key in ("dataset", "category", "seed")}
    models = lines["row"].nunique()
    plural = {"dataset": "data sets", "category": "categories", "seed": "seeds"}
    parts = [f"{len(lines)} evaluations", f"{models} model{'s' if models > 1 else ''}"]
    parts += [
        f"{count} {plural[key] if count > 1 else key.replace('dataset', 'data set')}" for key, count in counts.items()
    ]
    if found.failures:
        parts.append(f"{len(found.failures)} failed")
    return " · ".join(parts)


def _dressed(cell: Cell | None, column: Column, best: Mapping[str, str]) -> Markup:
    return Markup(marked(best, column, cell, "<strong>{}</strong>", lambda text: str(escape(shown(text)))))


def _shown(chart: Any) -> Any:
    """Plain data with `shown` for every text of it: names are equal in charts and on the page."""
    if isinstance(chart, Mapping):
        return {shown(str(key)): _shown(value) for key, value in chart.items()}
    if isinstance(chart, (list, tuple)):
        return [_shown(value) for value in chart]
    return shown(chart) if isinstance(chart, str) else chart


def _detail(cell: Cell | None) -> str:
    """What a cell's text leaves out."""
    if cell is None or cell.sd is None:
        return ""
    return f"standard deviation over seeds {100 * cell.sd:.2f}; {cell.runs} of {cell.expected} runs"
