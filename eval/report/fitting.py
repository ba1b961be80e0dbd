"""Tables that fit a terminal: cut between columns into several tables, never inside a number or a word."""

from collections.abc import Sequence

from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

from vlm_guard.untrusted.printed_text import one_line

_BETWEEN = 1


def fitting_tables(head: Sequence[str], rows: Sequence[Sequence[Text]], width: int) -> list[Table]:
    """The rows as one table, or as several beneath each other where one would be wider than `width` characters.

    Args:
        head: the head of every column; the first column stands in front of every table.
        rows: the cells of every row, which may have several lines.
        width: most characters of a line; a table with a single column beside the first is made however wide.
    """
    widths = [
        max(cell_len(line) for text in (name, *(row[place].plain for row in rows)) for line in text.split("\n"))
        for place, name in enumerate(head)
    ]
    groups: list[list[int]] = [[]]
    used = widths[0]
    for place in range(1, len(head)):
        if groups[-1] and used + _BETWEEN + widths[place] > width:
            groups.append([])
            used = widths[0]
        groups[-1].append(place)
        used += _BETWEEN + widths[place]
    return [_table(head, rows, places) for places in groups]


def _table(head: Sequence[str], rows: Sequence[Sequence[Text]], places: Sequence[int]) -> Table:
    table = Table(box=None, header_style="bold", pad_edge=False, padding=(0, _BETWEEN, 0, 0))
    table.add_column(Text(head[0]), no_wrap=True)
    for place in places:
        table.add_column(Text(head[place]), justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row[0], *(row[place] for place in places))
    return table


def folded_label(label: str, width: int) -> str:
    """A method's label in lines of at most a third of `width`, broken behind `+`, `:` and commas where it can be."""
    most = max(12, width // 3)
    lines: list[str] = [""]
    for part in _parts(one_line(label)):
        if lines[-1] and cell_len(lines[-1]) + cell_len(part) > most:
            lines.append("  ")
        lines[-1] += part
    return "\n".join(lines)


def _parts(label: str) -> list[str]:
    parts = [""]
    for sign in label:
        parts[-1] += sign
        if sign in "+:,":
            parts.append("")
    return [part for part in parts if part]
