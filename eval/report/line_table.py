"""A table for the terminal: one line for each method, with the columns that fit its width."""

from collections.abc import Sequence

from rich.cells import cell_len, set_cell_size

from vlm_guard.eval.report.chosen_columns import Cell, TableColumn
from vlm_guard.eval.run.results import RunResults
from vlm_guard.untrusted.printed_text import one_line

_BETWEEN = "  "


def line_table(results: RunResults, columns: Sequence[TableColumn], width: int) -> str:
    """One line for each method, differences to the baseline beside the numbers, and below what was left out.

    Args:
        results: of a run or a comparison.
        columns: the columns, in order; those that do not fit are left out, the first stays in any case.
        width: of the terminal, in characters.
    """
    most = max(12, width // 3)
    labels = ["", *(_cut(one_line(method.shown_label), most) for method in results.methods)]
    lines = _padded(labels, left=True)
    used, left_out = cell_len(lines[0]), []
    for place, column in enumerate(columns):
        cells = _padded([column.label, *(_text(column.cell(method)) for method in results.methods)])
        wider = used + len(_BETWEEN) + cell_len(cells[0])
        if wider > width and place:
            left_out.append(column.name)
            continue
        used = wider
        lines = [f"{line}{_BETWEEN}{cell}" for line, cell in zip(lines, cells)]
    return "\n".join(line.rstrip() for line in lines) + "\n\n" + "\n".join(_words(results, left_out, width)) + "\n"


def _text(cell: Cell) -> str:
    return f"{cell.value} {cell.difference}".rstrip()


def _cut(text: str, most: int) -> str:
    return text if cell_len(text) <= most else set_cell_size(text, most - 1) + "…"


def _padded(texts: Sequence[str], *, left: bool = False) -> list[str]:
    most = max(map(cell_len, texts))
    blanks = [" " * (most - cell_len(text)) for text in texts]
    return [text + blank if left else blank + text for text, blank in zip(texts, blanks)]


def _words(results: RunResults, left_out: Sequence[str], width: int) -> list[str]:
    from textwrap import wrap

    sentences = [
        f"In percent, words as a mean; behind a number its paired difference to {one_line(results.baseline)}: ▲ ▼ the "
        "95 % interval leaves out 0, ≈ it does not.".replace("95", f"{100 * results.statistics['level']:.0f}"),
        *(f"{sentence[0].upper()}{sentence[1:]}." for sentence in results.shortfalls()),
    ]
    if left_out:
        sentences.append(
            f"Left out, since they do not fit {width} columns: {', '.join(left_out)}. --columns NAME,NAME chooses, "
            "--format markdown or latex gives all with their intervals."
        )
    else:
        sentences.append("With the intervals: --format markdown or latex, or vlm-guard compare.")
    return [line for text in sentences for line in wrap(text, width, break_on_hyphens=False, break_long_words=False)]
