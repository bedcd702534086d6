"""From boards to the tables that a user asked for."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

import pandas as pd

from harness.leaderboard import contest, evidence, quality
from harness.leaderboard.defects import by_defect
from harness.leaderboard.published import add_published
from harness.leaderboard.table import Board, Table, protocol_line, scores
from harness.leaderboard.verdict import Contest, Verdict
from harness.text import typed

NAMES = ("scores", "aggregate", "stability", "time", "differences", "tests")  # all tables of models
DEFECTS = "defects"
LONG = (DEFECTS, "curves")  # with several lines for each model
LEGEND = (
    "in %: mean over categories ± 95 % interval over seeds (Student's t; [low, high] where 0 or 100 % cuts it); "
    "bold: ahead beyond noise; ≈: not told apart from the best"
)


@dataclass(frozen=True)
class Section:
    """The tables of one protocol, with what is said under them.

    Args:
        protocol: what tells the section from the others, empty for one alone.
        about: what JSON says of it beside its tables.
        footer: lines under the last table.
        verdict: what the tables come to; contests: what it is made from.
    """

    protocol: str
    tables: list[Table]
    about: dict[str, object]
    footer: list[str]
    verdict: Verdict = field(default_factory=lambda: Verdict([], []))
    contests: list[Contest] = field(default_factory=list)


def make_sections(
    boards: Sequence[Board],
    names: Sequence[str] = ("scores",),
    sort: str = "",
    against: str | None = None,
    published: pd.DataFrame | None = None,
) -> list[Section]:
    """The named tables of each board.

    Args:
        sort: see `scores`; against: see `evidence.differences`; published: values to stand beside the scores.

    Raises:
        ConfigError: `sort` or `against` names nothing.
    """

    made = []
    for board in boards:
        own = scores(board, sort)
        contests = contest.contests(board, own)
        makers = {
            "scores": partial(_scores, board, own, contests, published),
            "aggregate": partial(evidence.aggregate, board),
            "stability": partial(evidence.stability, board),
            "time": partial(quality.time_to_quality, board),
            "curves": partial(quality.by_epoch, board),
            "differences": partial(evidence.differences, board, against),
            "tests": partial(evidence.tests, board),
            DEFECTS: partial(by_defect, board),
        }
        tables = [makers[name]() for name in names]
        about = {"shared": {key: typed(text) for key, text in board.shared.items()}, "seeds": board.seeds}
        footer = [LEGEND, protocol_line(board), *board.cautions, board.provenance]
        verdict = contest.judge(board, contests)
        about["provenance"] = board.provenance
        made.append(Section(board.protocol, tables, about, footer, verdict, contests))
    return made


def _scores(board: Board, own: Table, contests: Sequence[Contest], published: pd.DataFrame | None) -> Table:
    table = contest.marked(own, contests, board)
    return table if published is None else add_published(table, board, published)
