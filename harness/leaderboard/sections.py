"""From boards to the tables that a user asked for."""

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd

from harness.leaderboard import evidence
from harness.leaderboard.published import add_published
from harness.leaderboard.table import Board, Table, protocol_line, scores

NAMES = ("scores", "aggregate", "stability", "differences", "tests")
LEGEND = "shares in %; mean over categories ± 95 % interval over seeds (Student's t); best in bold"


@dataclass(frozen=True)
class Section:
    """The tables of one protocol, with what is said under them.

    Args:
        protocol: what tells the section from the others, empty for one alone.
        about: what JSON says of it beside its tables.
        footer: lines under the last table.
    """

    protocol: str
    tables: list[Table]
    about: dict[str, object]
    footer: list[str]


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

    def scores_of(board: Board) -> Table:
        table = scores(board, sort)
        return table if published is None else add_published(table, board, published)

    makers = {
        "scores": scores_of,
        "aggregate": evidence.aggregate,
        "stability": evidence.stability,
        "differences": lambda board: evidence.differences(board, against),
        "tests": evidence.tests,
    }
    return [_section(board, [makers[name](board) for name in names]) for board in boards]


def _section(board: Board, tables: list[Table]) -> Section:
    about = {"shared": board.shared, "seeds": board.seeds, "provenance": board.provenance}
    return Section(board.protocol, tables, about, [LEGEND, protocol_line(board), *board.cautions, board.provenance])
