"""Caches of a contrast branch: two prompts read apart, then one cache with the rows of both.

Prompts of very different length are read apart (a text-only prompt is a tenth of one with an image), because padding
one to the other's length would cost what it saves. Decoding is bound by reading weights, so from there on both
branches are rows of one forward pass and need one cache: shorter rows are padded on the left with keys that the
attention mask hides.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel, StaticCache
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

ROOM = 128


def prompt_cache(model: PreTrainedModel) -> DynamicCache:
    """An empty cache to read a prompt into that keeps every key, also in sliding layers, so that it can be merged."""
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicSlidingWindowLayer:
            cache.layers[index] = DynamicLayer()
        elif type(layer) is LinearAttentionAndSlidingWindowAttentionLayer:
            cache.layers[index] = LinearAttentionAndFullAttentionLayer(number_of_states=layer.number_of_states)
    return cache


class RoomyLayer(DynamicLayer):
    """Keys and values with room behind them, so that one more token does not copy all the others.

    With the rows of two branches that copy would be twice what plain decoding pays; here it is made once in
    `ROOM` tokens.

    Args:
        keys: [N, G, K, D] of the merged prompts.
        values: [N, G, K, Dv].
    """

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self._storage: tuple[Tensor, Tensor] | None = None

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new tokens behind the others; returns all keys and values."""
        length = self.keys.shape[2]
        total = length + key_states.shape[2]
        if not self._has_room(total):
            self._storage = (_with_room(self.keys, total), _with_room(self.values, total))
        for storage, states in zip(self._storage, (key_states, value_states)):
            storage[:, :, length:total] = states
        self.keys, self.values = (storage[:, :, :total] for storage in self._storage)
        return self.keys, self.values

    def _has_room(self, total: int) -> bool:
        """Whether the keys still lie in the storage (reordering beams gives new ones) and it is long enough."""
        if self._storage is None or self._storage[0].data_ptr() != self.keys.data_ptr():
            return False
        return total <= self._storage[0].shape[2]


def can_merge(cache: Cache, length: int) -> bool:
    """Whether a filled `prompt_cache` holds exactly the `length` keys of the prompt, or linear states, in every layer.

    Layers that index their keys otherwise do not; such branches keep their caches.
    """
    known = (DynamicLayer, LinearAttentionLayer, LinearAttentionAndFullAttentionLayer)
    return all(
        type(layer) in known
        and (not isinstance(layer, DynamicLayer) or not _has_keys(layer) or layer.get_seq_length() == length)
        for layer in cache.layers
    )


def merge_caches(target: Cache, first: DynamicCache, second: DynamicCache) -> int:
    """Fill the empty `target` with the rows of `first`, then those of `second`, and empty both.

    Args:
        target: an empty cache of any kind that a model can decode with.
        first: a filled `prompt_cache` of N rows.
        second: one of M rows; prompts may differ in length.

    Returns:
        The length of the longer prompt, which is the length of the merged rows.
    """
    length = max(first.get_seq_length(), second.get_seq_length())
    for index, (one, other) in enumerate(zip(first.layers, second.layers)):
        if isinstance(one, LinearAttentionCacheLayerMixin):
            _merge_states(target, index, one, other)
        if isinstance(one, DynamicLayer) and _has_keys(one):
            keys = _stack(one.keys, other.keys, length)
            values = _stack(one.values, other.values, length)
            one.reset()
            other.reset()
            _put(target, index, keys, values)
    return length


def decoding_cache(prepared: Cache, model: PreTrainedModel, extra: int) -> Cache:
    """The empty cache to merge into: `generate`'s own, or for a static one a longer one with room for both branches.

    Args:
        prepared: what `generate` prepared for the rows of one branch.
        model: the model.
        extra: by how many tokens the other branch's prompt is longer.
    """
    if not isinstance(prepared, StaticCache):
        return prepared
    # Never the prepared one: transformers keeps static caches for the next call, whose batch has half the rows.
    return StaticCache(
        config=model.config.get_text_config(decoder=True),
        max_cache_len=prepared.get_max_length() + max(0, extra),
        offloading=prepared.offloading,
    )


def reorder_together(cache: Cache, rows: int) -> None:
    """Make `cache.reorder_cache(beam_idx)` of `rows` beams move the rows of the second branch alike."""
    reorder = cache.reorder_cache

    def reorder_both(beam_idx: Tensor) -> None:
        reorder(torch.cat((beam_idx, beam_idx + rows)))

    cache.reorder_cache = reorder_both


class PairedCaches:
    """Two caches that beam search reorders as if they were one."""

    def __init__(self, *caches: Any) -> None:
        self.caches = caches

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Move the rows of both branches alike."""
        for cache in self.caches:
            if cache is not None:
                cache.reorder_cache(beam_idx)


def _with_room(states: Tensor, total: int) -> Tensor:
    """The states [N, G, K, D] at the beginning of a tensor for `total` tokens and some more."""
    storage = states.new_empty(*states.shape[:2], total + ROOM, states.shape[3])
    storage[:, :, : states.shape[2]] = states
    return storage


def _has_keys(layer: DynamicLayer) -> bool:
    return layer.is_initialized and layer.keys is not None and layer.keys.numel() > 0


def _put(target: Cache, index: int, keys: Tensor, values: Tensor) -> None:
    """Hand the keys and values of a layer over to the cache."""
    if type(target.layers[index]) is DynamicLayer and not target.offloading:
        target.layers[index] = RoomyLayer(keys, values)
    else:
        target.update(keys, values, index)


def _stack(first: Tensor, second: Tensor, length: int) -> Tensor:
    """[N + M, G, length, D] of [N, G, P, D] and [M, G, Q, D], padded on the left with zeros."""
    rows = first.shape[0]
    stacked = first.new_empty(rows + second.shape[0], first.shape[1], length, first.shape[3])
    for part, states in ((stacked[:rows], first), (stacked[rows:], second)):
        padding = length - states.shape[2]
        part[:, :, :padding] = 0
        part[:, :, padding:] = states
    return stacked


def _merge_states(target: Cache, index: int, one: Any, other: Any) -> None:
    for state in range(one.number_of_states):
        if one.conv_states[state] is not None:
            joined = torch.cat((one.conv_states[state], other.conv_states[state]))
            target.layers[index].update_conv_state(joined, state_idx=state)
        if one.recurrent_states[state] is not None:
            joined = torch.cat((one.recurrent_states[state], other.recurrent_states[state]))
            target.layers[index].update_recurrent_state(joined, state_idx=state)
