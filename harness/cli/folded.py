"""Tables of names and numbers on a console of any width."""

from collections.abc import Sequence
from dataclasses import dataclass

from rich.cells import cell_len
from rich.console import Console, JustifyMethod
from rich.table import Table

KEY_WIDTH, TEXT_WIDTH = 12, 24  # a name, and a text, are folded before a column is left for the next block


def print_folded(terminal: Console, table: Table, keys: int = 1) -> None:
    """The table, in as many blocks of columns as the console is narrow: names are folded, numbers whole, and nothing is
    cut off.

    Args:
        keys: of its first columns; they name the row and begin every block, as one column where there is no room.
    """
    columns = [_Texts(column.header, [str(cell) for cell in column.cells], column.justify) for column in table.columns]
    named, rest = columns[:keys], columns[keys:]
    if keys > 1 and _room([(one, one.natural) for one in columns], terminal.width) < 0:
        cells = [" ".join(row) for row in zip(*(one.cells for one in named), strict=True)]
        named = [_Texts(" ".join(one.header for one in named), cells)]
    widest = max(KEY_WIDTH, (terminal.width // 2 - 4) // len(named))
    while rest:
        chosen = [(one, min(one.word, widest)) for one in named]
        for one in rest:
            further = (one, one.word if one.justify == "right" else min(one.natural, TEXT_WIDTH))
            if len(chosen) > len(named) and _room([*chosen, further], terminal.width) < 0:
                break
            chosen.append(further)
        rest = rest[len(chosen) - len(named) :]
        made, widths = Table(title=table.title, title_justify="left"), [width for _, width in chosen]
        for _ in range(_room(chosen, terminal.width)):  # what is left goes to the names first
            missing = [place for place, (one, _) in enumerate(chosen) if one.natural > widths[place]]
            if missing:
                widths[min(missing, key=lambda place: (place >= len(named), widths[place]))] += 1
        for (one, _), width in zip(chosen, widths, strict=True):
            made.add_column(one.header, justify=one.justify, overflow="fold", width=width)
        for row in zip(*(one.cells for one, _ in chosen), strict=True):
            made.add_row(*row)
        terminal.print(made)


@dataclass(frozen=True)
class _Texts:
    """A column of a table."""

    header: str
    cells: Sequence[str]
    justify: JustifyMethod = "left"

    @property
    def natural(self) -> int:
        """As wide as nothing of it needs to be folded."""
        return max(cell_len(line) for text in (self.header, *self.cells) for line in text.splitlines() or [""])

    @property
    def word(self) -> int:
        """As wide as no word of it needs to be: of a number the whole cell."""
        texts = self.cells if self.justify == "right" else [word for cell in self.cells for word in cell.split()]
        return max(map(cell_len, [*self.header.split(), *texts]), default=0)


def _room(chosen: Sequence[tuple[_Texts, int]], width: int) -> int:
    """What is left of the width beside columns of these widths, their paddings and lines."""
    return width - 1 - sum(own + 3 for _, own in chosen)
