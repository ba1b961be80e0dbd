"""The reader of JSON files that users bring: annotations, captions, questions, answers, records, results.

Everything that JSON libraries let pass or trip over is answered here with one line that names the file and the record:
nesting without end, NaN and infinities, numbers of thousands of digits, a key that stands twice, damaged archives, text
in another encoding. Files may be gzipped (their name ends in .gz) and may begin with a byte order mark.
"""

import gzip
import json
import math
import re
import zlib
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from vlm_guard.untrusted.printed_text import shown

MAX_TEXT_BYTES = 4 * 2**30
"""Largest file. MSCOCO's largest annotation file has half a gigabyte."""

MAX_RATIO, FREE_RATIO_BYTES = 200, 2**26
"""An archive may unpack to `MAX_RATIO` times its size, a small one to `FREE_RATIO_BYTES`; JSON packs to a tenth."""

MAX_DEPTH = 100
"""Deepest nesting. What writes JSON later has a limit too, and breaks at it."""

_WHOLE = re.compile(r"([+-]?\d{1,18})(?:\.0*)?", re.ASCII)
_LARGEST = 10**18
_SPACE = re.compile(r"[ \t\r\n]*")


def read_text(path: str | Path) -> str:
    """A file's text, unpacked if its name ends in .gz, without a byte order mark.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is no text in UTF-8, a damaged archive, or too large.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no file {path}")
    try:
        most = MAX_TEXT_BYTES
        if path.suffix == ".gz":
            most = min(most, max(FREE_RATIO_BYTES, MAX_RATIO * path.stat().st_size))
        with gzip.open(path) if path.suffix == ".gz" else path.open("rb") as file:
            data = file.read(most + 1)
        if len(data) > most:
            raise ValueError(
                f"{path} holds more than {most / 2**20:.0f} MiB of text; unpack it, or split it into files"
            )
        return data.decode("utf-8-sig")  # some tools put a mark in front
    except (UnicodeDecodeError, EOFError, gzip.BadGzipFile, zlib.error) as error:
        kind = "gzipped UTF-8" if path.suffix == ".gz" else "UTF-8"
        raise ValueError(
            f"{path} cannot be read as text, so it is no valid JSON ({kind} is needed): {error}"
        ) from error


def read_json(path: str | Path, drop: Sequence[str] = ()) -> Any:
    """The one value in a JSON file.

    Args:
        path: the file.
        drop: keys that are left out of every object, for files whose bulk is not wanted. Such files' fractions
            are not checked for infinity.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is no valid JSON; the message says where it breaks.
    """
    return parse_json(read_text(path), str(path), drop)


def parse_json(text: str, where: str, drop: Sequence[str] = ()) -> Any:
    """The value of a JSON text; `where` stands in front of the error message.

    Raises:
        ValueError: the text is no valid JSON, nested too deeply, or holds a number that is none.
    """
    if not text or text.isspace():
        raise ValueError(f"{where} is no valid JSON: it is empty")
    try:
        value = _decoder(tuple(drop)).decode(text)
        if not drop and _may_be_deep(text):
            _check_depth(value)
        return value
    except (ValueError, RecursionError, MemoryError) as error:
        raise ValueError(f"{where} is no valid JSON: {_reason(error)}") from error


def read_records(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """The records of a file, each with its number.

    A file holds one object a line (JSONL), objects one after the other however they are broken into lines, or one list
    or several lists of objects. Of objects the number is the line they begin in; of a list's the place, both from 1.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file breaks off, or a record is no JSON object.
    """
    path = Path(path)
    listed = 0
    for line, value in _values(read_text(path), path):
        records = enumerate(value, listed + 1) if isinstance(value, list) else ((line, value),)
        for number, record in records:
            if not isinstance(record, dict):
                raise ValueError(f"{path}: record {number} must be a JSON object, not {type(record).__name__}")
            yield number, record
        listed += len(value) if isinstance(value, list) else 0


def _values(text: str, path: Path) -> Iterator[tuple[int, Any]]:
    """The values of a text that stand one after the other, each with the line it begins in."""
    decoder, deep = _decoder(), _may_be_deep(text)
    # Only line feeds end a line: captions may hold the other line separators of Unicode as they are.
    line, counted, place = 1, 0, _behind_space(text, 0)
    while place < len(text):
        line, counted = line + text.count("\n", counted, place), place
        try:
            value, place = decoder.raw_decode(text, place)
            if deep:
                _check_depth(value)
        except (ValueError, RecursionError, MemoryError) as error:
            raise ValueError(f"{path}: line {line} is no valid JSON: {_reason(error)}") from error
        yield line, value
        place = _behind_space(text, place)


def _behind_space(text: str, place: int) -> int:
    """The next place where something stands."""
    found = _SPACE.match(text, place)
    return place if found is None else found.end()


@cache
def _decoder(drop: tuple[str, ...] = ()) -> json.JSONDecoder:
    def make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            names = [name for name, _ in pairs]
            repeated = next(name for name in made if names.count(name) > 1)
            raise ValueError(f"the key {shown(repeated)} stands twice in one object")
        for name in drop:
            made.pop(name, None)
        return made

    # A file whose bulk is dropped has millions of fractions that nobody uses; what is used of it are whole numbers.
    float_reader = None if drop else _finite
    return json.JSONDecoder(object_pairs_hook=make_object, parse_constant=_no_number, parse_float=float_reader)


def _may_be_deep(text: str) -> bool:
    return text.count("[") + text.count("{") > MAX_DEPTH


def _check_depth(value: Any) -> None:
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH):
        inside = (holder.values() if isinstance(holder, dict) else holder for holder in level)
        level = [item for items in inside for item in items if isinstance(item, dict | list)]
        if not level:
            return
    raise RecursionError


def _no_number(name: str) -> Any:
    raise ValueError(f"{name} is no number that JSON knows")


def _finite(digits: str) -> float:
    number = float(digits)
    if math.isinf(number):
        raise ValueError(f"the number {shown(digits)} is too large")
    return number


def _reason(error: BaseException) -> str:
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, MemoryError):
        return "it does not fit into this machine's memory"
    if "integer string conversion" in str(error):
        return "it holds a number of thousands of digits"
    return str(error)


def whole_number(value: Any, name: str, where: str) -> int:
    """An id: a whole number, or text or a fraction that is one ("139", 139.0, "139.0").

    Ids of both sides of a join go through here, so that 139 and "139" meet.

    Raises:
        ValueError: the value is none, or has more than 18 digits.
    """
    number = as_whole_number(value)
    if number is None:
        raise ValueError(f"{where}: {name!r} is {shown(value)}; it must be a whole number such as 139")
    return number


def as_whole_number(value: Any) -> int | None:
    """The whole number that a value is or spells, or None."""
    if isinstance(value, bool):
        return None
    if isinstance(value, str):
        match = _WHOLE.fullmatch(value.strip())
        return int(match.group(1)) if match else None
    if isinstance(value, float):
        return int(value) if value.is_integer() and abs(value) < 2**53 else None
    return value if isinstance(value, int) and abs(value) < _LARGEST else None


def text_field(record: dict[str, Any], name: str, where: str, *, optional: bool = False) -> str:
    """A record's field that must be text; with `optional` it may be absent or null, which gives empty text.

    Raises:
        ValueError: it is of another type, or absent.
    """
    value = record.get(name)
    if value is None and optional:
        return ""
    if not isinstance(value, str):
        given = shown(value) if name in record else "missing"
        raise ValueError(f"{where}: {name!r} is {given}; it must be text")
    return value
