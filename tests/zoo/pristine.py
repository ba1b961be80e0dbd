"""Is a model exactly as it was built?  Hooks, instance attributes, attention implementations, weights."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, replace

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


def _look(model: PreTrainedModel) -> _Record:
    """The model as it is now, in one walk over its modules; its weights are not copied."""
    attributes: dict[str, frozenset[str]] = {}
    implementations: dict[str, str | None] = {}
    weights: dict[str, torch.Tensor] = {}
    for name, module in model.named_modules():
        own, parameters, buffers = vars(module), module._parameters, module._buffers
        attributes[name] = frozenset(own.keys() - _TRANSIENT | parameters.keys() | buffers.keys())
        if isinstance(module, PreTrainedModel):
            implementations[name] = module.config._attn_implementation
        for held in (parameters, buffers):
            for key, tensor in held.items():
                if tensor is not None and tensor.is_floating_point() and key not in module._non_persistent_buffers_set:
                    weights[f"{name}.{key}"] = tensor
    return _Record(attributes=attributes, implementations=implementations, weights=weights, training=model.training)


def _hooks(model: nn.Module) -> list[str]:
    """The hooks that transformers has not put on itself."""
    found = []
    for name, module in model.named_modules():
        for kind in _HOOKS:
            for hook in vars(module)[kind].values():
                if getattr(hook, "__module__", "") not in _LEFT_BY_TRANSFORMERS:
                    found.append(f"{kind} of {name or 'the model'}: {hook}")
    return found


def _same(first: torch.Tensor | None, second: torch.Tensor | None) -> bool:
    """Equal to the last bit, in the same type; faster than a checksum of both, and nothing is lost in a sum."""
    return first is not None and second is not None and first.dtype == second.dtype and torch.equal(first, second)


def record(model: PreTrainedModel) -> None:
    """Remember ``model`` as it is now; ``assert_pristine`` compares with this."""
    seen = _look(model)
    _RECORDS[model] = replace(seen, weights={name: tensor.clone() for name, tensor in seen.weights.items()})


def differences(model: PreTrainedModel) -> list[str]:
    """What is not as ``record`` saw it, one sentence each; empty for an untouched model."""
    if model not in _RECORDS:
        raise ValueError("this model was not built by the zoo; call zoo.pristine.record(model) first")
    seen, now, found = _RECORDS[model], _look(model), _hooks(model)
    if now.attributes != seen.attributes:
        for name in seen.attributes.keys() | now.attributes.keys():
            before, after = (look.attributes.get(name, frozenset()) for look in (seen, now))
            if before != after:
                more, less = sorted(after - before), sorted(before - after)
                found.append(f"attributes of {name or 'the model'}: +{more} -{less}")
    for name, implementation in now.implementations.items():
        if seen.implementations.get(name) != implementation:
            old = seen.implementations.get(name)
            found.append(f"attention of {name or 'the model'}: {old} became {implementation}")
    if now.training != seen.training:
        found.append(f"training: {seen.training} became {now.training}")
    names = sorted(seen.weights.keys() | now.weights.keys())
    changed = [name for name in names if not _same(seen.weights.get(name), now.weights.get(name))]
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
