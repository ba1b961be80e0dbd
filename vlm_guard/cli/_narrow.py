"""Listings for narrow terminals: one entry after the other, where a table would have columns of ten characters."""

from collections.abc import Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

WIDE_ENOUGH = 100
"""Columns from which on a table with sentences in it can be read."""


def is_narrow(console: "Console") -> bool:
    """Whether entries are better printed one after the other here; a pipe counts as 80 columns."""
    return console.width < WIDE_ENOUGH


def print_entry(console: "Console", name: str, facts: str, sentences: Iterable[str] = ()) -> None:
    """One entry: its name and facts on a line, sentences indented below; nothing is cut.

    Args:
        console: where to print.
        name: printed in bold.
        facts: what follows the name.
        sentences: each begins on a line of its own; empty ones are left out.
    """
    import textwrap

    from rich.text import Text

    def wrapped(text: str, first: str) -> list[str]:
        return textwrap.wrap(
            text, console.width, initial_indent=first, subsequent_indent="    ", break_on_hyphens=False
        )

    for place, line in enumerate(wrapped(f"{name}  {facts}", "")):
        text = Text(line)
        if place == 0:
            text.stylize("bold", 0, len(name))
        console.print(text)
    for sentence in filter(None, sentences):
        for line in wrapped(sentence, "    "):
            console.print(Text(line))
