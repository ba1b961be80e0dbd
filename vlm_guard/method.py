"""What a method is, how it declares itself, and how methods are found by name.

A method is a frozen dataclass in one file of `vlm_guard/methods/` (or of a package that offers the entry-point group
`vlm_guard.methods`). Its fields are its options: they make the command-line options, the demo's controls, the tables
and the test matrix. It holds no state: what it learns about one generation lives in `call.memory`.
"""

import difflib
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar

from vlm_guard.method_text import is_outside, parse_method_text

if TYPE_CHECKING:
    from torch import Tensor

    from vlm_guard.attention_calls import AttentionCall, HiddenCall
    from vlm_guard.contrast import Branch, ContrastCall
    from vlm_guard.forward_call import ForwardCall, InputsCall
    from vlm_guard.guard import Guard
    from vlm_guard.guard_target import GuardTarget
    from vlm_guard.kernels.attention_edit import AttentionEdit

RowScope = Literal["all", "text", "answer"]
Sign = Literal["positive", "negative"]
Station = Literal["inputs", "vision", "hidden", "attention", "logits"]
STATIONS: tuple[Station, ...] = ("inputs", "vision", "hidden", "attention", "logits")
ENTRY_POINT_GROUP = "vlm_guard.methods"

_REGISTERED: dict[str, type["Method"]] = {}
MethodType = TypeVar("MethodType", bound=type["Method"])


def option(
    default: Any,
    *,
    help: str,
    range: tuple[float, float] | None = None,
    choices: Sequence[str] | None = None,
    neutral: Any = MISSING,
    tried: Sequence[float] = (),
    paper: str = "",
) -> Any:
    """A method's option: a dataclass field that knows how to present and check itself.

    Args:
        default: the value used when none is given.
        help: one sentence for people; shown by the command line and the demo.
        range: smallest and largest allowed number, both included.
        choices: the allowed words.
        neutral: the value that (with the other neutral values) makes the method the identity.
        tried: values other than the default that a sweep tries beside the method's strength.
        paper: the paper's symbol and where the default comes from.
    """
    details = {"help": help, "range": range, "choices": tuple(choices) if choices else None, "paper": paper}
    details["tried"] = tuple(tried)
    if neutral is not MISSING:
        details["neutral"] = neutral
    return field(default=default, metadata=MappingProxyType(details))


@dataclass(frozen=True, kw_only=True)
class Method:
    """Base of all methods. Override the stations you act at; everything else keeps the model's behaviour.

    Class attributes:
        name: the registered name, the file's stem.
        title: the method's name as its paper writes it.
        paper: citation with arXiv id.
        stations: where it acts, out of `STATIONS`.
        needs: what must be there: "processor", "second branch", "calibration", "gradients".
        rows: the query rows its attention edit is for: "text" (text rows after the first visual token and every
            generated row), "answer" (the last prompt row and every generated row) or "all".
        steady: whether all decode steps after a prompt use the same edit, which is then asked for once; it must not
            depend on what the queries, keys and values of a step contain.
        compiles: whether a decode step with this method can be one compiled graph: what it does in a step is nothing,
            or a steady edit, or a contrast of logits. Without it the steps run uncompiled.
        observes_hidden: whether `observe_hidden` wants the hidden states that enter the layers.
        edited_branch: with a contrast branch, the side whose rows its attention edit and observations are for.
        cross_attention: why it means nothing for models that read images in cross-attention layers, all of whose keys
            are visual while self-attention has no visual keys; empty where it does mean something. It counts for
            methods that act before the logits.
    """

    name: ClassVar[str] = ""
    title: ClassVar[str] = ""
    paper: ClassVar[str] = ""
    stations: ClassVar[tuple[Station, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ()
    rows: ClassVar[RowScope] = "text"
    steady: ClassVar[bool] = False
    compiles: ClassVar[bool] = False
    observes_hidden: ClassVar[bool] = False
    edited_branch: ClassVar[Sign] = "positive"
    cross_attention: ClassVar[str] = "it tells visual keys from the others of a row, and no row has both kinds there"

    def __post_init__(self) -> None:
        for item in fields(self):
            _check_option(self.name or type(self).__name__, item, getattr(self, item.name))

    # -- stations ---------------------------------------------------------------------------------------------

    def prepare(self, target: "GuardTarget") -> Any:
        """Look at the model once, when it is wrapped; the result is handed back as `call.prepared`.

        Raises:
            ValueError: the model lacks what the method needs; the message says what to do.
        """
        return None

    def active_layers(self, target: "GuardTarget") -> tuple[int, ...]:
        """The decoder layers whose attention this method may edit; by default its `layers` option."""
        from vlm_guard.layers import select_layers_of

        return select_layers_of(getattr(self, "layers", "all"), target)

    def observe_hidden(self, call: "HiddenCall") -> None:
        """See the hidden state entering a layer while the prompt is read; may store findings in `call.memory`."""

    def edit_attention(self, call: "AttentionCall") -> "AttentionEdit | None":
        """The attention processor of this method: the edit for the rows of this call, or None for no change."""
        return None

    def attach(self, guard: "Guard", prepared: Any) -> "Iterable[Callable[[], Any]]":
        """Put hooks of its own on the model (vision tower, sub-layers) when it is wrapped.

        Returns:
            What undoes them, called in reverse order when the guard is removed.
        """
        return ()

    def edit_inputs(self, call: "InputsCall") -> "dict[str, Any] | None":
        """Other arguments for this `generate` call than the given `call.inputs`, or None to leave them."""
        return None

    def begin_forward(self, call: "ForwardCall") -> None:
        """Change `call.inputs` of a forward pass that reads a prompt, before it runs."""

    def contrasts(self) -> bool:
        """Whether this method, with its options, changes the logits; then one of the two pairs below is used."""
        return False

    def contrast_branch(self, call: "ContrastCall") -> "Branch | None":
        """The second branch for this prompt, or None when the method compares layers instead of branches."""
        return None

    def combine_logits(self, positive: "Tensor", negative: "Tensor", step: int) -> "Tensor":
        """The logits [B, V] of both branches as one; `step` counts the generated tokens from 0."""
        return positive

    def early_layers(self, target: "GuardTarget") -> tuple[int, ...]:
        """The layers whose entering hidden states are read out as logits (index 0: the embeddings)."""
        return ()

    def combine_layers(self, final: "Tensor", early: "Tensor", layers: tuple[int, ...]) -> "Tensor":
        """The final logits [B, V] and those of the early `layers` [E, B, V] as one [B, V]."""
        return final

    # -- description ------------------------------------------------------------------------------------------

    @classmethod
    def neutral(cls) -> "Method":
        """The method with every option at its neutral value, which must be the identity."""
        values = {item.name: item.metadata["neutral"] for item in fields(cls) if "neutral" in item.metadata}
        return cls(**values)

    @classmethod
    def edits_attention(cls) -> bool:
        """Whether this class acts as an attention processor."""
        return cls.edit_attention is not Method.edit_attention

    @classmethod
    def overrides(cls, station: str) -> bool:
        """Whether this class defines the method `station` of the base class anew."""
        return getattr(cls, station) is not getattr(Method, station)

    def describe(self) -> dict[str, Any]:
        """Name and option values, as written into results."""
        return {"method": self.name, "options": {item.name: getattr(self, item.name) for item in fields(self)}}


def _check_option(method: str, item: Field, value: Any) -> None:
    allowed, choices = item.metadata.get("range"), item.metadata.get("choices")
    if choices is not None and value not in choices:
        raise ValueError(f"{method}: option {item.name} is {value!r}; allowed: {', '.join(choices)}")
    if allowed is None or value is None:
        return
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{method}: option {item.name} must be a number, given {value!r}")
    if not math.isfinite(value) or not allowed[0] <= value <= allowed[1]:
        raise ValueError(f"{method}: option {item.name} is {value!r}; allowed: {allowed[0]} to {allowed[1]}")


def register(name: str) -> Callable[[MethodType], MethodType]:
    """Class decorator that makes a method known by `name` (lower case, digits and underscores).

    Raises:
        ValueError: the name is malformed or taken by another class.
    """

    def add(cls: MethodType) -> MethodType:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ValueError(f"method name {name!r} must be lower case letters, digits and underscores")
        known = _REGISTERED.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"method name {name!r} is already taken by {known.__module__}.{known.__qualname__}")
        cls.name = name
        _REGISTERED[name] = cls
        return cls

    return add


@cache
def method_files() -> dict[str, Path]:
    """The built-in method files by name, without importing them (so without torch)."""
    folders = [Path(entry) for entry in import_module("vlm_guard.methods").__path__]
    found = {path.stem: path for folder in folders for path in folder.glob("*.py") if not path.stem.startswith("_")}
    return dict(sorted(found.items()))


def method_names() -> list[str]:
    """All names that `wrap` understands: built-in files, entry points and classes registered by hand."""
    offered = {entry.name for entry in metadata.entry_points(group=ENTRY_POINT_GROUP)}
    return sorted({*method_files(), *offered, *_REGISTERED})


def method_class(name: str) -> type[Method]:
    """The class of a method, by name or (`vlm_guard.method_text`) from a file or module of the user's.

    Raises:
        ValueError: unknown name; the message suggests the nearest ones.
    """
    if is_outside(name):
        from vlm_guard.outside_methods import outside_method

        return outside_method(name)
    if name not in _REGISTERED:
        if name in method_files():
            import_module(f"vlm_guard.methods.{name}")
        else:
            for entry in metadata.entry_points(group=ENTRY_POINT_GROUP):
                if entry.name == name:
                    entry.load()
    if name not in _REGISTERED:
        near = difflib.get_close_matches(name.lower(), method_names(), n=2, cutoff=0.4)
        near = near[:1] if name.lower() in near else near
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(f"unknown method {name!r}.{hint} Available: {', '.join(method_names())}")
    return _REGISTERED[name]


def read_method_text(text: str) -> tuple[list[str], dict[str, Any]]:
    """The names of a line such as "pai:gain=0.4+var", and its settings by "pai.gain"; own files are loaded.

    Raises:
        ValueError: a name or a setting is malformed, or one is given twice. FileNotFoundError: no such file.
    """
    names, options = [], {}
    for part in parse_method_text(text, method_names()):
        name = method_class(part.reference).name if is_outside(part.reference) else part.reference
        names.append(name)
        for key, value in part.options.items():
            full = key if "." in key else f"{name}.{key}"
            if full in options:
                raise ValueError(f"setting {full!r} is given twice in {text!r}")
            options[full] = value
    return names, options


def make_method(name: str, options: Mapping[str, Any]) -> Method:
    """A method by name with the given options; text values are converted to the option's type.

    Raises:
        ValueError: unknown method, unknown option or a value out of range.
    """
    cls = method_class(name)
    known = {item.name: item for item in fields(cls)}
    for key in options:
        if key not in known:
            near = difflib.get_close_matches(key, known, n=1, cutoff=0.4)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise ValueError(f"{name} has no option {key!r}.{hint} Its options: {', '.join(known) or 'none'}")
    return cls(**{key: _convert(name, known[key], value) for key, value in options.items()})


def _convert(method: str, item: Field, value: Any) -> Any:
    """Command-line text to the type of the option's default."""
    if not isinstance(value, str) or isinstance(item.default, str):
        return value
    if value.lower() in ("none", "null"):
        return None
    if isinstance(item.default, bool):
        if value.lower() not in ("true", "false", "1", "0", "yes", "no"):
            raise ValueError(f"{method}: option {item.name} must be true or false, given {value!r}")
        return value.lower() in ("true", "1", "yes")
    if item.metadata.get("range") is not None:
        try:
            return int(value) if isinstance(item.default, int) else float(value)
        except ValueError:
            raise ValueError(f"{method}: option {item.name} must be a number, given {value!r}") from None
    return value


def resolve_methods(
    method: "str | Method | Sequence[str | Method]", options: Mapping[str, Any] | None = None
) -> tuple[Method, ...]:
    """Methods from a line ("var", "var+vcd", "pai:gain=0.4+var"), an object, or a list of these.

    Options without a prefix belong to the only method; with several methods write `var.move_fraction`.

    Raises:
        TypeError: not a method. ValueError: unknown names or options, or the same method twice.
    """
    given = dict(options or {})
    items: list[str | Method] = []
    listed = [method] if isinstance(method, str | Method) else method
    if not isinstance(listed, Sequence):
        raise TypeError(f"method must be a name such as 'var', a Method, or a list of these; given {method!r}")
    written: dict[str, Any] = {}
    for entry in listed:
        if not isinstance(entry, str):
            items.append(entry)
            continue
        found, settings = read_method_text(entry)
        items.extend(found)
        written.update(settings)
    names = [item if isinstance(item, str) else item.name for item in items if isinstance(item, str | Method)]
    if len(names) != len(items) or not items:
        raise TypeError(f"method must be a name such as 'var', a Method, or a list of these; given {method!r}")
    if len(set(names)) != len(names):
        raise ValueError(f"the same method is named twice in {'+'.join(names)}")
    for key, value in written.items():
        if key in given or (len(items) == 1 and key.partition(".")[2] in given):
            raise ValueError(f"setting {key!r} is given twice: in {method!r} and as an option")
        given[key] = value
    resolved = []
    for item, name in zip(items, names):
        own = {key.split(".", 1)[1]: given.pop(key) for key in list(given) if key.startswith(f"{name}.")}
        if len(items) == 1:
            own.update((key, given.pop(key)) for key in list(given) if "." not in key)
        if isinstance(item, Method) and own:
            raise ValueError(f"options {sorted(own)} were given beside a ready {name} object; set them in the object")
        resolved.append(item if isinstance(item, Method) else make_method(name, own))
    if given:
        key = next(iter(given))
        example = f"{names[0]}.{key.rpartition('.')[2]}"
        raise ValueError(f"option {key!r} fits no method of {'+'.join(names)}; write for example {example!r}")
    return tuple(resolved)
