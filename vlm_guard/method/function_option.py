"""Options whose value may be a function: a built-in name, an import path, or the function itself."""

from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any


def find_function(method: str, name: str, given: Any, built_in: Mapping[str, Callable]) -> Callable:
    """The function that an option's value stands for.

    Args:
        method: the method, for the error message.
        name: the option.
        given: a key of `built_in`, an import path such as "package.module:function", or a function.
        built_in: named functions.

    Raises:
        ValueError: the value is none of these, or the path does not lead to a function.
    """
    if callable(given):
        return given
    if given in built_in:
        return built_in[given]
    module, colon, attribute = str(given).partition(":")
    try:
        function = getattr(import_module(module), attribute) if colon else None
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"{method}: cannot import {name}={given!r}: {error}") from error
    if not callable(function):
        allowed = ", ".join(map(repr, built_in))
        raise ValueError(f"{method}: {name} is {given!r}; allowed: {allowed}, 'package.module:function' or a function")
    return function


def describe_function(value: Any) -> Any:
    """An option's value for results: a function becomes its import path."""
    if not callable(value):
        return value
    return f"{getattr(value, '__module__', '')}:{getattr(value, '__qualname__', repr(value))}"
