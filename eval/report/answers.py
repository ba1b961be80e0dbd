"""The answers of a small run in the terminal: each picture once, and below it what every method said."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

from vlm_guard.untrusted.printed_text import one_line, printable

MOST_SHOWN = 10
"""More pictures, or questions about them, are left to the file and the report."""

WIDEST = 80


def print_answers(console: Console, lines: Sequence[Mapping[str, Any]]) -> None:
    """Print answers, those to one prompt about one picture beneath each other, at most 80 columns wide.

    Args:
        console: where they go.
        lines: of the file of answers: `image`, `method`, `caption` or `text`, and `question` where one was asked.
            Nothing is printed where there are more than `MOST_SHOWN` prompts.
    """
    grouped: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
    for line in lines:
        key = (str(line["image"]), str(line.get("question_id", "")), str(line.get("question", "")))
        grouped.setdefault(key, []).append(line)
    if len(grouped) > MOST_SHOWN:
        return
    several = len({line["method"] for line in lines}) > 1
    width = min(WIDEST, console.width)
    for (image, _, question), said in grouped.items():
        head = one_line(f"{image}: {question}" if question else image)
        console.print()
        console.print(Text(head, style="bold"), width=width)
        for line in said:
            if several:
                console.print(Text(f"  {one_line(str(line['method']))}", style="dim"), width=width)
            text = str(line.get("caption", line.get("text", ""))).strip()
            console.print(Padding(Text(printable(text) or "(nothing)"), (0, 0, 0, 4 if several else 2)), width=width)
