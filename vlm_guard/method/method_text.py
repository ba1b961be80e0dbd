"""How methods with their settings are written in one line, the same in Python, on the command line and in tables.

    pai                          one method
    pai:gain=0.4,layers=2-8      with settings
    pai:gain=0.4+var             two methods, applied in order
    var+vcd:vcd.strength=2       a setting may say whose it is, which need not be the method before it
    my_method.py:strength=1      the method in a file of your own, also my_method.py:MyMethod where it holds several
    my.module:MyMethod           a class that Python can import

A file or module named like this is run. That happens only for names of these two forms, which nobody but the user
who writes the line can bring in.
"""

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from vlm_guard.untrusted.printed_text import shown

if TYPE_CHECKING:
    from vlm_guard.families.profiles import Profile
    from vlm_guard.method.base import Method

_FILE = r"(?:[A-Za-z]:[\\/])?[^+:]+\.py(?::[A-Za-z_]\w*(?=[:+]|$))?"
_CLASS = r"[A-Za-z_][\w.]*:[A-Za-z_]\w*(?=[:+]|$)"
_OUTSIDE = re.compile(rf"{_FILE}|{_CLASS}")
_NAME = re.compile(r"[^+:]*")
_BETWEEN_OPTIONS = re.compile(r",(?=\s*[\w.]+\s*=)")


@dataclass(frozen=True, kw_only=True)
class MethodPart:
    """One method of a line.

    Attributes:
        reference: its name, or the file or class it is in.
        options: its settings as they are written, the values still text.
    """

    reference: str
    options: Mapping[str, str]


def is_outside(reference: str) -> bool:
    """Whether a reference is a file or an importable class instead of a name."""
    return _OUTSIDE.fullmatch(reference) is not None


def parse_options(pairs: Collection[str], place: str = "--set") -> dict[str, str]:
    """Options from `name=value` texts, for example "var.move_fraction=0.5".

    Args:
        pairs: the texts.
        place: where they were written, for the error.

    Raises:
        ValueError: a text has no equals sign, or two are about the same option.
    """
    options: dict[str, str] = {}
    for pair in pairs:
        name, found, value = pair.partition("=")
        if not found or not name.strip():
            raise ValueError(f"{place} takes METHOD.OPTION=VALUE such as var.move_fraction=0.5, given {shown(pair)}")
        name, value = name.strip(), value.strip()
        if name in options:
            both = f"{shown(options[name])} and {shown(value)}"
            raise ValueError(f"{place} sets {shown(name)} twice, to {both}; write it once")
        options[name] = value
    return options


def parse_method_text(text: str, known: Collection[str]) -> list[MethodPart]:
    """The methods of a line with their settings.

    Args:
        text: see above.
        known: the names of all methods. Inside a setting's value, a plus sign is the end of it only before one of
            these, or before a file or class: values may have plus signs of their own.

    Raises:
        ValueError: a setting has no equals sign or is given twice, or a method's name is empty.
    """
    parts, rest = [], text
    while True:
        found = _reference(rest, known)
        reference, rest = found.strip(), rest[len(found) :]
        own = ""
        if rest.startswith(":"):
            own, rest = _until_next_method(rest[1:], known)
        if not reference or own.rstrip().endswith("+"):
            raise ValueError(
                f"a method's name is missing in {shown(text)}; write for example var, var+vcd or pai:gain=0.4"
            )
        pairs = _BETWEEN_OPTIONS.split(own) if own.strip() else []
        parts.append(MethodPart(reference=reference, options=parse_options(pairs, f"{reference}:")))
        if not rest:
            return parts
        rest = rest.removeprefix("+")


def _reference(text: str, known: Collection[str]) -> str:
    """What `text` begins with: a file, a class or a name."""
    outside = _OUTSIDE.match(text)
    if outside is not None and outside[0].partition(":")[0].strip() not in known:
        return outside[0]
    name = _NAME.match(text)
    return "" if name is None else name[0]


def _until_next_method(text: str, known: Collection[str]) -> tuple[str, str]:
    """The settings at the begin of `text`, and what follows from the plus sign of the next method on."""
    for plus in re.finditer(r"\+", text):
        name = _reference(text[plus.end() :], known).strip()
        if name in known or is_outside(name):
            return text[: plus.start()], text[plus.start() :]
    return text, ""


def written_methods(methods: "Iterable[Method]", profile: "Profile | None" = None) -> str:
    """The line that stands for these methods, with their settings that are not the defaults: "pai:gain=0.4+var".

    Read again for the same model it gives the same methods. A function given as an option is written as its import
    path; a method from a file or module has the name it is registered by, which is known once it was loaded.

    Args:
        methods: in their order.
        profile: the model's; what it sets is written, and so is a default that was given instead.
    """
    return "+".join(_written(method, profile) for method in methods)


def _written(method: "Method", profile: "Profile | None") -> str:
    cls, described = type(method), method.describe()
    values = {item.name: getattr(method, item.name) for item in cls.options()}
    sources = described["sources"]
    named = [
        item.name
        for item in cls.options()
        if sources.get(item.name) == "given" and _differ(values[item.name], item.default)
    ]
    # What a variant sets needs no words. What the profile set does, so that a log says it, and so does a default that
    # was given where the profile has another value.
    for known in ({}, {} if profile is None else profile.settings_of(method.name)):
        again = cls(**{name: values[name] for name in named}).with_settings(known)
        named += [name for name, value in values.items() if name not in named and _differ(getattr(again, name), value)]
    settings = ",".join(f"{name}={_value_text(described['options'].get(name, ''))}" for name in named)
    return f"{method.name}:{settings}" if settings else method.name


def _differ(first: Any, second: Any) -> bool:
    """Whether two values of an option differ; methods from elsewhere may have values that only print."""
    plain = str | int | float | None
    if isinstance(first, plain) and isinstance(second, plain):
        return first != second
    return first is not second and repr(first) != repr(second)


def _value_text(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    return str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
