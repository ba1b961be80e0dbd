"""How methods are found by name: built-in files and folders, entry points, classes registered by hand."""

import difflib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from functools import cache
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from vlm_guard.method.base import Method
from vlm_guard.method.gate import Gate
from vlm_guard.method.method_text import is_outside, parse_method_text
from vlm_guard.method.model_choice import AUTO, ModelChoice, choice_of
from vlm_guard.method.option_types import from_text

if TYPE_CHECKING:
    from vlm_guard.families.architecture import Architecture
    from vlm_guard.families.profiles import Profile
    from vlm_guard.method.target import GuardTarget

ENTRY_POINT_GROUP = "vlm_guard.methods"

_REGISTERED: dict[str, type[Method]] = {}
MethodType = TypeVar("MethodType", bound=type[Method])


def register(name: str) -> Callable[[MethodType], MethodType]:
    """Class decorator that makes a method known by `name` (lower case, digits and underscores).

    Raises:
        ValueError: the name is malformed or taken by another class.
    """

    def add(cls: MethodType) -> MethodType:
        if not re.fullmatch(r"[a-z][a-z0-9_]*", name) or name == AUTO:
            raise ValueError(
                f"method name {name!r} must be lower case letters, digits and underscores, and not {AUTO!r}"
            )
        known = _REGISTERED.get(name)
        if known is not None and (known.__module__, known.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"method name {name!r} is already taken by {known.__module__}.{known.__qualname__}")
        cls.name = name
        _REGISTERED[name] = cls
        return cls

    return add


@cache
def method_files() -> dict[str, Path]:
    """The built-in methods by name, a file or a folder each, without importing them (so without torch)."""
    found: dict[str, Path] = {}
    for folder in import_module("vlm_guard.methods").__path__:
        for path in Path(folder).glob("[!_]*"):
            if path.suffix == ".py":
                found[path.stem] = path
            elif (path / "method.py").is_file():
                found[path.name] = path / "method.py"
    return dict(sorted(found.items()))


@cache
def _offered() -> dict[str, metadata.EntryPoint]:
    """The methods of other installed packages by name, not loaded; read once, since every `wrap` asks for the names."""
    return {entry.name: entry for entry in metadata.entry_points(group=ENTRY_POINT_GROUP)}


def method_names() -> list[str]:
    """All names that `wrap` understands: built-in files, entry points and classes registered by hand."""
    return sorted({*method_files(), *_offered(), *_REGISTERED})


def method_class(name: str) -> type[Method]:
    """The class of a method, by name or (`vlm_guard.method.method_text`) from a file or module of the user's.

    Raises:
        ValueError: unknown name; the message suggests the nearest ones.
    """
    if is_outside(name):
        from vlm_guard.method.outside_methods import outside_method

        return outside_method(name)
    if name == AUTO:
        return ModelChoice
    if name not in _REGISTERED:
        if name in method_files():
            import_module(f"vlm_guard.methods.{name}")
        elif name in _offered():
            _offered()[name].load()
    if name not in _REGISTERED:
        near = difflib.get_close_matches(name.lower(), method_names(), n=2, cutoff=0.4)
        near = near[:1] if name.lower() in near else near
        hint = f" Did you mean {' or '.join(map(repr, near))}?" if near else ""
        raise ValueError(f"unknown method {name!r}.{hint} Available: {AUTO}, {', '.join(method_names())}")
    return _REGISTERED[name]


def read_method_text(text: str) -> tuple[list[str], dict[str, Any]]:
    """The names of a line such as "pai:gain=0.4+var", and its settings by "pai.gain"; own files are loaded.

    Raises:
        ValueError: a name or a setting is malformed, or one is given twice. FileNotFoundError: no such file.
    """
    names, options = [], {}
    for part in parse_method_text(text, [*method_names(), AUTO]):
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
    return cls(
        **{
            key: from_text(name, cls, known[key], value) if isinstance(value, str) else value
            for key, value in options.items()
        }
    )


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


def methods_for_model(
    methods: Sequence[Method], architecture: "Architecture", profile: "Profile | None"
) -> tuple[Method, ...]:
    """The methods with those that `auto` stands for on this model in its place.

    Raises:
        ValueError: the profile's choice is no line of known methods, or names a method that is there already. A method
            from a file or module is refused: a profile may come from anybody, and such a method would be run.
    """
    found: list[Method] = []
    for method in methods:
        if not isinstance(method, ModelChoice):
            found.append(method)
            continue
        choice = choice_of(architecture, profile)
        parts = parse_method_text(choice.text, method_names())
        foreign = [part.reference for part in parts if is_outside(part.reference) or part.reference == AUTO]
        if foreign:
            raise ValueError(
                f"{choice.reason} chooses {choice.text!r} for 'auto', but only known methods can be chosen there, not "
                f"{foreign[0]!r}; name the method yourself, or run 'vlm-guard tune MODEL' again"
            )
        found += resolve_methods(choice.text)
    names = [method.name for method in found]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None and any(isinstance(method, ModelChoice) for method in methods):
        raise ValueError(f"'auto' stands for {twice} on this model, which is named beside it; name it once")
    return tuple(found)


def acting_methods(methods: Sequence[Method], target: "GuardTarget") -> tuple[tuple[Method, ...], list[str]]:
    """The methods that act on a model: what `auto` stands for in its place, those whose gate never opens left out.

    Returns:
        The methods, or "none" if no other is left; and a sentence on each that is left out.

    Raises:
        ValueError: as `methods_for_model`.
    """
    vocabulary = target.model.config.get_text_config(decoder=True).vocab_size
    kept: list[Method] = []
    sentences = []
    for method in methods_for_model(methods, target.architecture, target.profile):
        gate = Gate.read(method.gate)
        if gate is None or gate.ever_opens(vocabulary):
            kept.append(method)
        else:
            sentences.append(
                f"the gate {method.gate!r} never opens on a model of {vocabulary} tokens, so {method.name} does nothing"
            )
    return tuple(kept) or ((make_method("none", {}),) if methods else ()), sentences
