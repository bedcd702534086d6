"""From boards to the tables that a user asked for."""

from collections.abc import Sequence

import pandas as pd

from harness.leaderboard import evidence
from harness.leaderboard.published import add_published
from harness.leaderboard.render import Section, section
from harness.leaderboard.table import Board, Table, scores

NAMES = ("scores", "aggregate", "stability", "differences", "tests")


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
    return [section(board, [makers[name](board) for name in names]) for board in boards]
