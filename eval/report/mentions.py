"""An answer with its mentions, for the terminal: each one marked, then a line on each."""

from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from vlm_guard.grounding.mention import Mention, Verdict
from vlm_guard.grounding.repair import Repaired
from vlm_guard.untrusted.printed_text import printable

MARKS: dict[Verdict, tuple[str, str]] = {
    "grounded": ("✓", "underline green"),
    "doubtful": ("✗", "underline bold red"),
    "unchecked": ("?", "underline dim"),
}
"""A sign and a style for each verdict; where a terminal shows no styles the signs are left."""

PART_NAMES = {"lens": "lens", "self_check": "self-check", "position": "place"}
_MEANINGS = {
    "lens": "lens: log-probability by the picture's own tokens, 0 at most, higher is surer",
    "self_check": "self-check: log odds of yes when asked, above 0 is yes",
    "position": "place: tokens in front of it",
}


def marked_text(text: str, mentions: Sequence[Mention]) -> Text:
    """The answer with a sign behind every mention, and the mention underlined."""
    shown, place = Text(), 0
    for mention in mentions:
        sign, style = MARKS[mention.verdict]
        shown.append(printable(text[place : mention.start]))
        shown.append(printable(text[mention.start : mention.end]), style=style)
        shown.append(sign, style=style)
        place = mention.end
    shown.append(printable(text[place:]))
    return shown


def print_mentions(
    console: Console,
    text: str,
    mentions: Sequence[Mention],
    size: tuple[int, int],
    repaired: Repaired | None = None,
    caution: str = "",
) -> None:
    """Print an answer with its mentions.

    Args:
        console: where it goes.
        text: the answer.
        mentions: of it.
        size: (width, height) of the picture in pixels, for boxes.
        repaired: the answer after its repair, if it was asked for.
        caution: what must be known before the marks are believed; stands behind the table.
    """
    console.print(marked_text(text, mentions), highlight=False)
    if not mentions:
        console.print("no thing was found in this answer that could be checked", style="dim", highlight=False)
    else:
        console.print(_table(mentions, size))
        console.print(_legend(mentions), style="dim", highlight=False, markup=False)
        if caution:
            console.print(caution, style="yellow", markup=False, highlight=False)
    if repaired is None:
        return
    gone = ", ".join(f"“{escape(printable(part.text))}” ({part.how})" for part in repaired.removed)
    console.print(f"repaired: {escape(printable(repaired.text)) or '(nothing is left)'}", highlight=False)
    if gone:
        console.print(f"taken out: {gone}", style="dim", highlight=False)


def _parts_of(mentions: Sequence[Mention]) -> list[str]:
    return [name for name in PART_NAMES if any(name in mention.parts for mention in mentions)]


def _legend(mentions: Sequence[Mention]) -> str:
    """Unit and direction of every column."""
    columns = ["score: 0 (not there) to 1 (there)", *(_MEANINGS[name] for name in _parts_of(mentions))]
    return "; ".join([*columns, "where: pixels, left,top to right,bottom"])


def _table(mentions: Sequence[Mention], size: tuple[int, int]) -> Table:
    names = _parts_of(mentions)
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for head, justify in (("", "left"), ("score", "right"), *((PART_NAMES[name], "right") for name in names)):
        table.add_column(head, justify="right" if justify == "right" else "left", no_wrap=True, overflow="ellipsis")
    table.add_column("where", no_wrap=True, overflow="ellipsis")
    for mention in mentions:
        sign, style = MARKS[mention.verdict]
        values = [f"{mention.parts[name]:+.1f}" if name in mention.parts else "" for name in names]
        score = "" if mention.score is None else f"{mention.score:.2f}"
        word = Text(f"{sign} {printable(mention.text)}", style=style.replace("underline ", ""))
        table.add_row(word, score, *values, _box(mention, size))
    return table


def _box(mention: Mention, size: tuple[int, int]) -> str:
    if mention.box is None:
        return ""
    left, top, right, bottom = mention.box.pixels(*size)
    return f"{left},{top} to {right},{bottom}"
