"""The page's controls for a method's options, made from the method's fields, and the way back to a method."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from vlm_guard.method.base import Method
from vlm_guard.method.hooks import offered_options
from vlm_guard.method.method_text import is_outside
from vlm_guard.method.registry import method_class, method_names, resolve_methods

_IMPORT_PATH = re.compile(r"[A-Za-z_][\w.]*\s*:\s*[A-Za-z_]")
Kind = Literal["slider", "number", "choice", "switch", "text"]
WIDEST_SLIDER = 200
"""An option with a larger range is typed: nobody hits 20 on a slider that ends at 1000."""


@dataclass(frozen=True, kw_only=True)
class OptionControl:
    """How one option is shown.

    Attributes:
        method: the method's name. name: the option's.
        kind: slider, number, choice, switch or text.
        default: the option's default; None is an empty field.
        help: one sentence, with where the default comes from.
        low, high, step: of a slider or number; infinite where open.
        choices: of a choice.
    """

    method: str
    name: str
    kind: Kind
    default: Any
    help: str
    low: float = -math.inf
    high: float = math.inf
    step: float = 1.0
    choices: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """How `wrap` knows the option in a combination: "var.move_fraction"."""
        return f"{self.method}.{self.name}"


def guarding_methods() -> list[str]:
    """The names of all methods but `none`, which is the plain answer."""
    return [name for name in method_names() if name != "none"]


def method_choices() -> list[tuple[str, str]]:
    """(title, name) of every method that can be chosen."""
    return [(method_class(name).title or name, name) for name in guarding_methods()]


def controls_of(name: str) -> list[OptionControl]:
    """The controls of a method, one per option.

    Raises:
        ValueError: there is no such method.
    """
    if is_outside(name):
        # `wrap` runs a method's file when it is named; a visitor of a page must not choose what is run.
        raise ValueError(f"{name!r} is none of this page's methods: {', '.join(guarding_methods())}")
    return [_control(name, item) for item in offered_options(method_class(name))]


def _control(method: str, item: Any) -> OptionControl:
    details = item.metadata
    text = details.get("help", "")
    described = {"method": method, "name": item.name, "default": item.default, "help": text}
    if details.get("choices"):
        return OptionControl(kind="choice", choices=tuple(details["choices"]), **described)
    if isinstance(item.default, bool):
        return OptionControl(kind="switch", **described)
    if details.get("range") is None:
        return OptionControl(kind="text", **described)
    low, high = (float(value) for value in details["range"])
    whole = isinstance(item.default, int)
    narrow = item.default is not None and math.isfinite(high - low) and high - low <= WIDEST_SLIDER
    step = 1.0 if whole else _step(high - low)
    return OptionControl(kind="slider" if narrow else "number", low=low, high=high, step=step, **described)


def _step(width: float) -> float:
    """A round step that divides a range of this width into 100 to 1000 parts."""
    return 10.0 ** math.floor(math.log10(width / 100)) if math.isfinite(width) and width > 0 else 0.01


def changed_options(names: Sequence[str], values: Mapping[str, Any]) -> dict[str, Any]:
    """The options that differ from their defaults, by "method.option", values as the option's own type.

    Args:
        names: the chosen methods, in order.
        values: what the controls hold; entries of methods that are not chosen are ignored.
    """
    changed = {}
    for name in names:
        for control in controls_of(name):
            value = _typed(control, values.get(control.key, control.default))
            if value != control.default:
                changed[control.key] = value
    return changed


def setting_text(names: Sequence[str], values: Mapping[str, Any]) -> str:
    """Methods and changed options in one line, "pai:gain=0.4+var"; the names alone where one is unknown."""
    try:
        changed = changed_options(names, values)
    except ValueError:
        return "+".join(names)  # whoever applies the methods says what is wrong
    parts = []
    for name in names:
        own = (f"{key.partition('.')[2]}={value}" for key, value in changed.items() if key.partition(".")[0] == name)
        written = ",".join(own)
        parts.append(f"{name}:{written}" if written else name)
    return "+".join(parts)


def _typed(control: OptionControl, value: Any) -> Any:
    if value is None or (control.kind == "number" and isinstance(value, str) and not value.strip()):
        # An emptied field means the default, which `wrap` fills in.
        return control.default
    if control.kind == "number" and isinstance(value, str):
        try:
            value = float(value)
        except ValueError:
            return value  # the method says what is wrong with it
    if control.kind in ("slider", "number") and isinstance(value, int | float) and not isinstance(value, bool):
        return int(value) if isinstance(control.default, int) and float(value).is_integer() else float(value)
    return value


def _refuse_code(values: Mapping[str, Any]) -> None:
    """Some options take the import path of a function; a visitor of a page must not choose what is run."""
    for name, value in values.items():
        if isinstance(value, str) and _IMPORT_PATH.search(value):
            raise ValueError(f"option {name} is {value!r}: functions can be named in Python only, not on this page")


def chosen_methods(names: Sequence[str], values: Mapping[str, Any]) -> tuple[Method, ...]:
    """The methods with their options, ready for `wrap`.

    Raises:
        ValueError: nothing is chosen, an unknown method, or a value that is not allowed.
        TypeError: a value of the wrong type.
    """
    if not names:
        raise ValueError("no method is chosen; choose at least one to compare the plain answer with")
    changed = changed_options(names, values)
    _refuse_code(changed)
    if len(names) == 1:
        changed = {key.split(".", 1)[1]: value for key, value in changed.items()}
    return resolve_methods("+".join(names), changed)
