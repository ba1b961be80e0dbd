"""What the attention of a compiled decode step reads: edits that were asked for before, in tensors of fixed shapes."""

import weakref
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from transformers.cache_utils import Cache, StaticLayer

from vlm_guard.kernels.attention_edit import AttentionEdit
from vlm_guard.method.attention_calls import SLOT, LayerSlot
from vlm_guard.method.state import GenerationState
from vlm_guard.runtime.attention import edit_of_later_steps
from vlm_guard.runtime.branch_rows import BranchPart, RowGroup

if TYPE_CHECKING:
    from vlm_guard.guard import Guard


@dataclass(frozen=True, kw_only=True, eq=False)
class StepPart:
    """The rows of one branch in a layer of a compiled step.

    Attributes:
        rows: where they lie; None for all rows.
        edit: the edit of their attention; None for no change.
    """

    rows: BranchPart | None
    edit: AttentionEdit | None


@dataclass(frozen=True, kw_only=True, eq=False)
class DecodeStep:
    """The step as the graph sees it.

    Attributes:
        layers: the parts of every layer with an edit.
        position: [1] long, index of the current token among the keys; None where no edit needs the token's own value.
        state: the generation; with branches that share a forward pass, of any of them.
    """

    layers: dict[int, tuple[StepPart, ...]]
    position: Tensor | None
    state: GenerationState


class StepSequence:
    """The decode steps of one generation with one static cache that holds the prompt.

    Args:
        guard: whose generation.
        cache: the cache.
        state: of the generation; with branches that share a forward pass, of any of them.
        groups: these branches, or None.
        offset: how many tokens the cache holds.
    """

    def __init__(
        self, guard: "Guard", cache: Cache, state: GenerationState, groups: tuple[RowGroup, ...] | None, offset: int
    ) -> None:
        self.state = state
        self.groups = groups
        self.offset = offset
        self.heads = guard.target.architecture.heads
        self._cache = weakref.ref(cache)
        self._sliding: list[tuple[nn.Module, LayerSlot]] = []
        layers: dict[int, tuple[StepPart, ...]] = {}
        for entry in guard.target.architecture.layers:
            slot: LayerSlot | None = vars(entry.attention).get(SLOT)
            if slot is None or not slot.processors:
                continue
            parts = self._parts(entry.attention, slot)
            if all(part.edit is None for part in parts):
                continue
            layers[slot.layer] = parts
            if _static_layer(cache, entry.attention).is_sliding:
                self._sliding.append((entry.attention, slot))
        mixes = [part.edit.self_mix for parts in layers.values() for part in parts if part.edit is not None]
        device = next((mix.device for mix in mixes if mix is not None), None)
        position = None if device is None else torch.full((1,), offset, device=device)
        self.step = DecodeStep(layers=layers, position=position, state=state)

    def continues(self, cache: Cache, state: GenerationState | None, groups: tuple[RowGroup, ...] | None) -> bool:
        """Whether a pass over one more token with this cache belongs to this sequence."""
        return self._cache() is cache and groups is self.groups and (groups is not None or state is self.state)

    def at(self, offset: int) -> DecodeStep:
        """The step of the token at `offset`. Of the edits only those of sliding layers move, once they are full."""
        self.offset = offset
        if self.step.position is not None:
            self.step.position.fill_(offset)
        for module, slot in self._sliding:
            if offset >= _keys_and_values(_static_layer(self._cache(), module))[0].shape[2]:
                self.step.layers[slot.layer] = self._parts(module, slot)
        return self.step

    def _parts(self, module: nn.Module, slot: LayerSlot) -> tuple[StepPart, ...]:
        layer = _static_layer(self._cache(), module)
        # Stand-ins of the layer's shape: an offloaded cache keeps its tensors elsewhere between the passes.
        key, value = (
            torch.zeros((), dtype=layer.dtype, device=layer.device).expand(tensor.shape)
            for tensor in _keys_and_values(layer)
        )
        if self.groups is None:
            edit = edit_of_later_steps(slot, self.state, module, key, value, self.heads)
            return (StepPart(rows=None, edit=edit),)
        parts = []
        for group in self.groups:
            rows = group.part(key.shape[2])
            own_key, own_value = (tensor[rows.first : rows.stop, :, rows.dropped :] for tensor in (key, value))
            edit = edit_of_later_steps(slot, group.state, module, own_key, own_value, self.heads)
            parts.append(StepPart(rows=rows, edit=edit))
        return tuple(parts)


def _static_layer(cache: Cache | None, module: nn.Module) -> StaticLayer:
    """The part of a static cache that an attention module reads."""
    layer = None if cache is None else cache.layers[vars(module)["layer_idx"]]
    if not isinstance(layer, StaticLayer):
        raise RuntimeError(f"compiled decode steps need a static cache that is alive, its layer is {layer!r}")
    return layer


def _keys_and_values(layer: StaticLayer) -> tuple[Tensor, Tensor]:
    """[B, G, K, D] and [B, G, K, Dv] of a layer that holds a prompt."""
    if layer.keys is None or layer.values is None:
        raise RuntimeError("compiled decode steps need a cache that holds a prompt, this one is empty")
    return layer.keys, layer.values
