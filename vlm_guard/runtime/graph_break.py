"""Keeping a guard's own Python out of graphs that it does not know of."""

import inspect
from collections.abc import Callable
from typing import Any

import torch

_REASON = (
    "a guard keeps what it knows of a generation in Python; let generate(..., cache_implementation='static') compile "
    "the decode step, or set model.forward = torch.compile(model.forward) before wrapping (see docs/compile.md)"
)


def kept_out(function: Callable[..., Any]) -> Callable[..., Any]:
    """`function` as one that torch.compile never traces: in its graph there is a break instead."""
    return torch.compiler.disable(function, **accepted(torch.compiler.disable, reason=_REASON))


def accepted(function: Callable[..., Any], **keywords: Any) -> dict[str, Any]:
    """Those of `keywords` that this version of torch knows for `function`."""
    known = inspect.signature(function).parameters
    return {name: value for name, value in keywords.items() if name in known}
