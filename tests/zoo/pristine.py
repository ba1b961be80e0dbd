"""Is a model exactly as it was built?  Hooks, instance attributes, attention implementations, weights."""

from __future__ import annotations

import weakref
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PreTrainedModel

# What transformers itself leaves behind: recording hooks and flags, and the rotary offset of the last call.
_LEFT_BY_TRANSFORMERS = ("transformers.utils.output_capturing", "transformers.utils.generic")
_TRANSIENT = {"rope_deltas", "_output_capturing_hooks_installed", "_previous_max_cache_length"}
_HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")


@dataclass(frozen=True, kw_only=True)
class _Record:
    attributes: dict[str, frozenset[str]]
    implementations: dict[str, str | None]
    weights: dict[str, torch.Tensor]
    training: bool


_RECORDS: weakref.WeakKeyDictionary[nn.Module, _Record] = weakref.WeakKeyDictionary()


def _implementations(model: PreTrainedModel) -> dict[str, str | None]:
    return {
        name: module.config._attn_implementation
        for name, module in model.named_modules()
        if isinstance(module, PreTrainedModel)
    }


def _attributes(model: nn.Module) -> dict[str, frozenset[str]]:
    return {
        name: (frozenset(vars(module)) - _TRANSIENT) | module._buffers.keys() | module._parameters.keys()
        for name, module in model.named_modules()
    }


def _weights(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor for name, tensor in model.state_dict().items() if tensor.is_floating_point()}


def _same(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    """Equal to the last bit, in the same type; faster than a checksum of both, and nothing is lost in a sum."""
    return first is not None and second is not None and first.dtype == second.dtype and torch.equal(first, second)


def record(model: PreTrainedModel) -> None:
    """Remember ``model`` as it is now; ``assert_pristine`` compares with this."""
    _RECORDS[model] = _Record(
        attributes=_attributes(model),
        implementations=_implementations(model),
        weights={name: tensor.clone() for name, tensor in _weights(model).items()},
        training=model.training,
    )


def differences(model: PreTrainedModel) -> list[str]:
    """What is not as ``record`` saw it, one sentence each; empty for an untouched model."""
    if model not in _RECORDS:
        raise ValueError("this model was not built by the zoo; call zoo.pristine.record(model) first")
    seen, found = _RECORDS[model], []
    for name, module in model.named_modules():
        for kind in _HOOKS:
            hooks = getattr(module, kind).values()
            foreign = [hook for hook in hooks if getattr(hook, "__module__", "") not in _LEFT_BY_TRANSFORMERS]
            found += [f"{kind} of {name or 'the model'}: {hook}" for hook in foreign]
    now = _attributes(model)
    for name in seen.attributes.keys() | now.keys():
        before, after = seen.attributes.get(name, frozenset()), now.get(name, frozenset())
        if before != after:
            found.append(f"attributes of {name or 'the model'}: +{sorted(after - before)} -{sorted(before - after)}")
    for name, implementation in _implementations(model).items():
        if seen.implementations.get(name) != implementation:
            old = seen.implementations.get(name)
            found.append(f"attention of {name or 'the model'}: {old} became {implementation}")
    if model.training != seen.training:
        found.append(f"training: {seen.training} became {model.training}")
    weights = _weights(model)
    names = sorted(seen.weights.keys() | weights.keys())
    changed = [name for name in names if not _same(seen.weights.get(name), weights.get(name))]
    if changed:
        found.append(f"weights changed: {', '.join(changed)}")
    return found


def is_pristine(model: PreTrainedModel) -> bool:
    """True when ``assert_pristine`` would pass."""
    return not differences(model)


def assert_pristine(model: PreTrainedModel) -> None:
    """Fail with a list of what is left on ``model``: hooks, attributes such as ``generate``, attention, weights."""
    found = differences(model)
    assert not found, "the model is not as it was built:\n  " + "\n  ".join(found)
