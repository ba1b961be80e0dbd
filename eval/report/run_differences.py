"""What two runs were done with that differs and leaves them comparable, in lines that a terminal can show."""

from collections.abc import Iterator, Mapping
from typing import Any

from vlm_guard.eval.run.resume import flatten

_SHOWN = 60
_NOTHING: tuple[Any, ...] = (None, {}, [])


def difference_notes(
    first: Mapping[str, Any], second: Mapping[str, Any], names: tuple[str, str], noted: tuple[str, ...]
) -> list[str]:
    """One sentence for every field that differs; where one run lacks a whole part, one for the part.

    Args:
        first: a run's results as JSON.
        second: another's.
        names: what the two runs are called.
        noted: beginnings of the dotted names of fields that are told.
    """
    left, right = names
    notes: list[str] = []
    missing: dict[str, list[str]] = {}
    for name, before, after in _differences(first, second, ""):
        if not name.startswith(noted):
            continue
        if after in _NOTHING:
            part, _, field = name.rpartition(".")
            missing.setdefault(part, []).append(field)
        elif before in _NOTHING:
            shown = "" if isinstance(after, Mapping) else f" ({_shown(after)})"
            notes.append(f"{right}: {name}{shown}, which {left} has not")
        else:
            notes.append(f"{right}: {name} is {_shown(after)}, not {_shown(before)}")
    for part, fields in missing.items():
        prefix = f"{part}." if part else ""
        listed = f"{prefix}{fields[0]}" if len(fields) == 1 else f"{', '.join(fields)} of {part or 'the run'}"
        notes.append(f"{right}: no {listed}, which {left} has")
    return notes


def _differences(before: Any, after: Any, name: str) -> Iterator[tuple[str, Any, Any]]:
    """Dotted names with both values, as deep as both sides have parts."""
    left, right = _parts(before), _parts(after)
    if left is None or right is None:
        if before != after and not (before in _NOTHING and after in _NOTHING):
            yield name, before, after
        return
    for key in dict.fromkeys([*left, *right]):
        yield from _differences(left.get(key), right.get(key), f"{name}.{key}" if name else str(key))


def _parts(value: Any) -> Mapping[Any, Any] | None:
    """What a value consists of; None for one that has no names in it."""
    if isinstance(value, list) and value and all(isinstance(item, Mapping) for item in value):
        return dict(enumerate(value))
    return value if isinstance(value, Mapping) and value else None


def _shown(value: Any) -> str:
    """The value in a few words."""
    if isinstance(value, Mapping):
        return f"{sum(1 for _ in flatten(value))} settings"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 4]} ..."
