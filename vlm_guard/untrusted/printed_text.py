"""Words from files and models, made safe to show: in a terminal, in an error message, in a table.

A terminal obeys escape sequences, a spreadsheet computes cells, Markdown and HTML follow markup. Text that was not
written by this program goes through one of these functions on its way there.
"""

import json
import re
import reprlib
import unicodedata
from typing import Any

SHOWN_CHARACTERS = 80
MESSAGE_CHARACTERS = 1000

# Control sequences (colours, cursor), strings (titles, links) up to their end, and the other short escapes.
_CONTROL_SEQUENCE = r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
_CONTROL_STRING = r"(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)?"
_ESCAPES = re.compile(rf"{_CONTROL_SEQUENCE}|{_CONTROL_STRING}|\x1b[ -/]*[0-~]?")
_HALF_PAIR = re.compile("[\ud800-\udfff]")
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")
_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?", re.ASCII)
_MARKDOWN = str.maketrans(
    {"\\": "\\\\", "|": "\\|", "`": "\\`", "[": "\\[", "]": "\\]", "&": "&amp;", "<": "&lt;", ">": "&gt;"}
)


def _harmless(character: str) -> bool:
    # Cc: control characters. Cf: invisible marks, among them those that turn the reading direction; the two joiners
    # that scripts and emoji need stay.
    return character in "\n\t\u200c\u200d" or unicodedata.category(character) not in ("Cc", "Cf")


def printable(text: str) -> str:
    """Text without terminal escapes and control characters; line feeds and tabs stay.

    Half of a surrogate pair, which no output can encode, becomes the replacement character.
    """
    if text.isprintable():
        return text
    without = _HALF_PAIR.sub("\ufffd", _ESCAPES.sub("", text))
    return "".join(filter(_harmless, without))


def printable_json(text: str) -> str:
    """JSON that `json.dumps(..., ensure_ascii=False)` made, with the signs a terminal obeys as escapes: equal JSON.

    JSON itself escapes only the oldest control characters.
    """
    if text.isascii():
        return text
    return "".join(sign if _harmless(sign) else json.dumps(sign)[1:-1] for sign in _HALF_PAIR.sub(_escaped, text))


def _escaped(match: re.Match[str]) -> str:
    return f"\\u{ord(match[0]):04x}"


def one_line(text: str, limit: int = MESSAGE_CHARACTERS) -> str:
    """Text as one line that can be printed, cut in the middle where it is longer than `limit` characters."""
    line = " ".join(printable(text).split())
    if len(line) <= limit:
        return line
    head = limit * 2 // 3
    return f"{line[:head]} ... {line[len(line) - (limit - head) :]}"


def shown(value: Any, limit: int = SHOWN_CHARACTERS) -> str:
    """A value as an error message quotes it: its `repr`, shortened to about `limit` characters."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"a number of about {value.bit_length() * 3 // 10} digits"
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 3, limit, limit
    text = printable(short.repr(value))
    return text if len(text) <= 2 * limit else f"{text[: 2 * limit]}..."


def csv_cell(value: Any) -> Any:
    """A value for a CSV cell: text that a spreadsheet would compute gets an apostrophe in front, numbers stay."""
    if not isinstance(value, str):
        return value
    text = _HALF_PAIR.sub("\ufffd", value)
    is_formula = text.lstrip(" ").startswith(_FORMULA) and _NUMBER.fullmatch(text) is None
    return f"'{text}" if is_formula else text


def markdown_text(text: str) -> str:
    """Text as Markdown shows it, in one line: no column, link, code or HTML begins in it."""
    return one_line(text, limit=len(text) + 1).translate(_MARKDOWN)
