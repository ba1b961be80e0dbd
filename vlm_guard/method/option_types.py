"""Which types of values an option takes, read from its declaration, and how text becomes one of them."""

import numbers
import sys
import typing
from collections.abc import Callable
from dataclasses import MISSING, Field
from functools import cache
from typing import Any

from vlm_guard.untrusted.printed_text import shown

_WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    Callable: "a function",
    type(None): "nothing (None)",
}


@cache
def _hint(cls: type, name: str, declared: Any) -> Any:
    """The annotation of a field; one written as text is looked up in the module of its class."""
    if not isinstance(declared, str):
        return declared
    holder = type("Holder", (), {"__annotations__": {name: declared}})
    try:
        return typing.get_type_hints(holder, vars(sys.modules[cls.__module__]))[name]
    except Exception:  # a method of another package may name a type that is only there for a checker
        return None


def accepted_types(cls: type, item: Field) -> tuple[Any, ...]:
    """The types an option takes: those of its annotation, or of its default where the annotation says none we know.

    Returns:
        Out of bool, int, float, str, Callable and the type of None; empty where any value may be right.
    """
    declared: Any = item.type
    hint = _hint(cls, item.name, declared)
    parts = typing.get_args(hint) if typing.get_origin(hint) in (typing.Union, _UnionType) else (hint,)
    found = tuple(Callable if _is_function(part) else part for part in parts)
    if not all(part in _WORDS for part in found):
        found = (type(item.default),) if item.default is not MISSING and type(item.default) in _WORDS else ()
    # The default is always allowed: an option may be declared as a number and mean "measure it" by None.
    if found and item.default is None and type(None) not in found:
        found += (type(None),)
    return () if found == (type(None),) else found


_UnionType = type(int | str)


def type_words(cls: type, item: Field) -> str:
    """The types an option takes, in words: "a number or nothing (None)"; "anything" where any value may be right."""
    return " or ".join(_WORDS[kind] for kind in accepted_types(cls, item)) or "anything"


def _is_function(part: Any) -> bool:
    return part is Callable or typing.get_origin(part) is Callable


def _is_of(value: Any, kind: Any) -> bool:
    if kind is Callable:
        return callable(value)
    if kind is bool or isinstance(value, bool):
        return kind is bool and isinstance(value, bool)
    if kind is int:
        return isinstance(value, numbers.Integral)
    if kind is float:
        return isinstance(value, numbers.Real)
    return isinstance(value, kind)


def check_type(method: str, cls: type, item: Field, value: Any) -> None:
    """Check that a value is of a type its option takes.

    Args:
        method: the method's name, for the message.
        cls: the method's class.
        item: the option's field.
        value: what was given.

    Raises:
        TypeError: it is not; the message says what is taken.
    """
    accepted = accepted_types(cls, item)
    if not accepted or any(_is_of(value, kind) for kind in accepted):
        return
    words = " or ".join(_WORDS[kind] for kind in accepted if kind is not type(None))
    example = f" such as {item.default!r}" if isinstance(item.default, str | int | float) and item.default != "" else ""
    raise TypeError(f"{method}: option {item.name} must be {words}{example}, given {shown(value)}")


def from_text(method: str, cls: type, item: Field, text: str) -> Any:
    """The value that a text on the command line stands for.

    Raises:
        ValueError: it stands for none that the option takes.
    """
    accepted = accepted_types(cls, item)
    if not accepted or str in accepted:
        return text
    if text.lower() in ("none", "null"):
        return None
    if bool in accepted:
        if text.lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise ValueError(f"{method}: option {item.name} must be true or false, given {shown(text)}")
        return text.lower() in ("true", "1", "yes")
    kind = "a number" if float in accepted else "a whole number"
    try:
        return float(text) if float in accepted else int(text)
    except ValueError:
        behind = text.rpartition("+")[2].strip()
        hint = f"; {shown(behind)} behind the plus sign is no known method" if "+" in text and behind else ""
        raise ValueError(f"{method}: option {item.name} must be {kind}, given {shown(text)}{hint}") from None
