"""Another method for one call of `generate`, on a model that is guarded already.

A service keeps one model and gives every request its own method. Requests queue: a call waits for the one that runs,
then takes the guard's own edits off, puts those of its method on, and puts everything back. What a method finds out
about the model when it is wrapped is kept for the next call with the same settings.
"""

import json
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from vlm_guard.method.base import Method
from vlm_guard.method.method_text import is_outside, parse_method_text
from vlm_guard.method.model_choice import AUTO
from vlm_guard.method.registry import method_class, method_names, resolve_methods
from vlm_guard.untrusted.printed_text import shown

if TYPE_CHECKING:
    from vlm_guard.guard import Guard

Choice = str | Method | Sequence[str | Method]


class PerCall:
    """The methods that single calls asked for.

    Args:
        guard: the guard of the model.
    """

    KEPT = 16
    """So many prepared methods are kept; the one that was used longest ago goes first."""

    def __init__(self, guard: "Guard") -> None:
        self._guard = guard
        self._prepared: OrderedDict[str, Guard] = OrderedDict()

    def generate(self, choice: Choice | None, args: tuple, kwargs: Mapping[str, Any]) -> Any:
        """One `generate` call of the model with the methods of `choice` instead of the guard's.

        Args:
            choice: as for `wrap`; "none" is the model as it is, None leaves the guard's own methods.
            args: of `generate`.
            kwargs: of `generate`, and options of the methods by their names.

        Raises:
            ValueError: unknown method or option, a method that this model cannot have, or options without a method.
        """
        if choice is None:
            return self._with_own_methods(args, kwargs)
        methods, rest = _chosen(choice, kwargs)
        guard = self._guard
        with guard.suspended():
            if all(method.name == "none" for method in methods):
                plain: Any = guard.model.generate
                return plain(*args, **rest)
            other = self._guard_of(methods)
            other.attach()
            try:
                # Looked up now: attaching has put the other guard's in its place.
                guarded: Any = guard.model.generate
                return guarded(*args, **rest)
            finally:
                other.remove()

    def _with_own_methods(self, args: tuple, kwargs: Mapping[str, Any]) -> Any:
        generate: Any = self._guard.model.generate
        try:
            return generate(*args, **kwargs)
        except ValueError as error:
            # transformers names the arguments it does not know; an option of a method among them says what was meant.
            unknown = [name for name in kwargs if "model_kwargs" in str(error) and repr(name) in str(error)]
            own = [bound.method.name for bound in self._guard.methods]
            for name in unknown:
                methods = _methods_with(name, own) or _methods_with(name, method_names())
                if methods:
                    raise ValueError(_without_method(name, kwargs[name], methods)) from error
            raise

    def _guard_of(self, methods: tuple[Method, ...]) -> "Guard":
        guard, key = self._guard, json.dumps([method.describe() for method in methods], default=str)
        if key not in self._prepared:
            target = guard.target
            self._prepared[key] = type(guard)(
                guard.model,
                target.processor,
                methods,
                profile=target.profile,
                attention_backend=guard.attention_backend,
                architecture=target.architecture,
            )
        self._prepared.move_to_end(key)
        while len(self._prepared) > self.KEPT:
            self._prepared.popitem(last=False)
        return self._prepared[key]


def _chosen(choice: Choice, kwargs: Mapping[str, Any]) -> tuple[tuple[Method, ...], dict[str, Any]]:
    """The methods, and the arguments of `generate` that are no options of theirs."""
    listed = [choice] if isinstance(choice, str | Method) else list(choice)
    names: list[str] = []
    for entry in listed:
        if isinstance(entry, str):
            # Such text may come from who asks a service; a file or module in it would be run.
            named = [part.reference for part in parse_method_text(entry, [*method_names(), AUTO])]
            outside = [name for name in named if is_outside(name)]
            if outside:
                raise ValueError(
                    f"a call takes its method by a known name, not from a file or module ({shown(outside[0])}); to use "
                    "one of your own, give the method as an object"
                )
            names += named
    known = {item.name for name in names for item in fields(method_class(name))}
    options = {name: value for name, value in kwargs.items() if name in known or name.partition(".")[0] in names}
    rest = {name: value for name, value in kwargs.items() if name not in options}
    return resolve_methods(choice, options), rest


def _methods_with(name: str, methods: Sequence[str]) -> list[str]:
    """Those of these methods that have the option `name`, which may be written with its method (pai.gain)."""
    owner, dot, option = name.rpartition(".")
    named = [method for method in methods if not dot or method == owner]
    return [method for method in named if option in {item.name for item in fields(method_class(method))}]


def _without_method(name: str, value: Any, methods: Sequence[str]) -> str:
    text = f"{methods[0]}:{name.rpartition('.')[2]}={value}"
    return (
        f"generate was given {name}={shown(value)}, an option of {', '.join(methods)}, but no method= that it belongs "
        f"to; write for this call guard.generate(..., method={text!r}), or wrap the model with {text!r}"
    )
