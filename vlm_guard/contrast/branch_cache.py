"""Caches of a contrast branch: two prompts read apart, then one cache with the rows of both.

Prompts of very different length are read apart (a text-only prompt is a tenth of one with an image), because padding
one to the other's length would cost what it saves; two long ones are, because one pass over both is no faster.
Decoding is bound by reading weights, so from there on both branches are rows of one forward pass and need one cache:
shorter rows are padded on the left with keys that the attention mask hides. Each prompt is therefore written, as it
is read, where its rows lie in that cache, and nothing is copied when the reading is over.
"""

import weakref
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, StaticCache
from transformers.cache_utils import (
    Cache,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionAndFullAttentionLayer,
    LinearAttentionAndSlidingWindowAttentionLayer,
    LinearAttentionCacheLayerMixin,
    LinearAttentionLayer,
)

from vlm_guard.families.architecture import GenerativeModel

ROOM = 128


def prompt_cache(model: GenerativeModel) -> DynamicCache:
    """An empty cache to read a prompt into that keeps every key, also in sliding layers, so that it can be merged."""
    cache = DynamicCache(config=model.config.get_text_config(decoder=True))
    for index, layer in enumerate(cache.layers):
        if type(layer) is DynamicSlidingWindowLayer:
            cache.layers[index] = DynamicLayer()
        elif type(layer) is LinearAttentionAndSlidingWindowAttentionLayer:
            cache.layers[index] = LinearAttentionAndFullAttentionLayer(number_of_states=layer.number_of_states)
    return cache


def branch_caches(model: GenerativeModel, rows: int, lengths: tuple[int, int]) -> tuple[DynamicCache, DynamicCache]:
    """Two prompt caches that lie in one room, so that they merge without a copy.

    Args:
        model: the model.
        rows: N, of each branch.
        lengths: of the two prompts, with their padding.
    """
    caches = prompt_cache(model), prompt_cache(model)
    for index, layer in enumerate(caches[0].layers):
        if not isinstance(layer, DynamicLayer):
            continue
        room = KeyRoom(2 * rows, max(lengths))
        for branch, cache in enumerate(caches):
            place = slice(branch * rows, (branch + 1) * rows), max(lengths) - lengths[branch]
            if type(layer) is DynamicLayer:
                cache.layers[index] = RoomyLayer(room, *place)
            elif type(layer) is LinearAttentionAndFullAttentionLayer:
                cache.layers[index] = RoomyHybridLayer(room, *place, number_of_states=layer.number_of_states)
    return caches


class KeyRoom:
    """Where the keys and values of a layer lie, those of several branches in their rows.

    It is made when the first keys come, which tell heads, sizes, type and device.

    Args:
        rows: how many there are.
        length: tokens of the longest row; there is room for `ROOM` more.
    """

    def __init__(self, rows: int, length: int) -> None:
        self.rows = rows
        self.columns = length + ROOM
        self._stored: tuple[Tensor, Tensor] | None = None

    @property
    def stored(self) -> tuple[Tensor, Tensor]:
        """The keys and the values.

        Raises:
            RuntimeError: none were written yet, so that their sizes are unknown.
        """
        if self._stored is None:
            raise RuntimeError("no keys were written into this room yet")
        return self._stored

    @property
    def keys(self) -> Tensor:
        """[rows, G, length + `ROOM`, D]; see `stored`."""
        return self.stored[0]

    @property
    def values(self) -> Tensor:
        """[rows, G, length + `ROOM`, Dv]; see `stored`."""
        return self.stored[1]

    def write(self, rows: slice, column: int, keys: Tensor, values: Tensor) -> None:
        """Put keys [N, G, K, D] and values [N, G, K, Dv] into N rows, from a column on."""
        if self._stored is None:
            self._stored = self._empty(keys), self._empty(values)
        for storage, states in zip(self._stored, (keys, values)):
            storage[rows, :, column : column + states.shape[2]] = states

    def part(self, rows: slice, start: int, stop: int) -> tuple[Tensor, Tensor]:
        """Keys and values of the columns from `start` to `stop`."""
        keys, values = self.stored
        return keys[rows, :, start:stop], values[rows, :, start:stop]

    def clear(self, rows: slice, stop: int) -> None:
        """Zero what is in front of column `stop`: a mask hides it, but not if it is not a number."""
        for storage in self.stored:
            storage[rows, :, :stop] = 0

    def _empty(self, states: Tensor) -> Tensor:
        return states.new_empty(self.rows, states.shape[1], self.columns, states.shape[3])


class RoomyLayer(DynamicLayer):
    """Keys and values with room behind them, so that one more token does not copy all the others.

    With the rows of two branches that copy would be twice what plain decoding pays; here it is made once in
    `ROOM` tokens.

    Args:
        room: where they lie; other rows of it may be another layer's.
        rows: which rows of it.
        start: the column of the first token. The columns in front of it become zeros.
    """

    room: KeyRoom | None

    def __init__(self, room: KeyRoom, rows: slice, start: int = 0) -> None:
        super().__init__()
        self._place(room, rows, start)

    @classmethod
    def whole(cls, room: KeyRoom, length: int) -> "RoomyLayer":
        """All rows of a room that has been filled up to column `length`."""
        layer = cls(room, slice(0, room.rows))
        layer.lazy_initialization(*room.stored)
        layer.keys, layer.values = room.part(layer.rows, 0, length)
        return layer

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Write the new tokens behind the others; returns all keys and values."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        length = self.get_seq_length()
        total = length + key_states.shape[2]
        room = self.room
        if room is None or not self._fits(room, key_states.shape[0], length, total):
            room = self._move(key_states.shape[0], length, total)
        room.write(self.rows, self.start + length, key_states, value_states)
        if not length and self.start:
            room.clear(self.rows, self.start)
        self.keys, self.values = room.part(self.rows, self.start, self.start + total)
        return self.keys, self.values

    def reset(self) -> None:
        """Give up the tokens and the room."""
        super().reset()
        self.room = None

    def _place(self, room: KeyRoom, rows: slice, start: int) -> None:
        self.room = room
        self.rows, self.start = rows, start

    def _fits(self, room: KeyRoom, rows: int, length: int, total: int) -> bool:
        """Whether `total` tokens of each row fit, and the `length` old ones are there (reordering gives new keys)."""
        if self.start + total > room.columns or rows != self.rows.stop - self.rows.start:
            return False
        if not length or self.keys is None:
            return not length
        return room.stored[0][self.rows, :, self.start :].data_ptr() == self.keys.data_ptr()

    def _move(self, rows: int, length: int, total: int) -> KeyRoom:
        """Go to a room of its own."""
        room = KeyRoom(rows, total)
        self._place(room, slice(0, rows), 0)
        if length and self.keys is not None and self.values is not None:
            room.write(self.rows, 0, self.keys, self.values)
        return room


# The two kinds of layers that transformers mixes itself declare `device`, `dtype` and `is_croppable` differently.
class RoomyHybridLayer(RoomyLayer, LinearAttentionAndFullAttentionLayer):  # type: ignore[misc, override]
    """A `RoomyLayer` that has the states of a linear attention beside its keys."""

    def __init__(self, room: KeyRoom, rows: slice, start: int = 0, *, number_of_states: int = 1) -> None:
        LinearAttentionAndFullAttentionLayer.__init__(self, number_of_states=number_of_states)
        self._place(room, rows, start)


def can_merge(first: DynamicCache, second: DynamicCache, lengths: tuple[int, int]) -> bool:
    """Whether filled `branch_caches` hold exactly the keys of their prompts, or linear states, in every layer.

    Layers that index their keys otherwise do not; such branches keep their caches.
    """
    for one, other in zip(first.layers, second.layers):
        if isinstance(one, RoomyLayer):
            if not isinstance(other, RoomyLayer) or one.room is not other.room:
                return False
            parts = tuple(zip((one, other), lengths))
            if any(_has_keys(layer) and layer.get_seq_length() != length for layer, length in parts):
                return False
        elif type(one) is not LinearAttentionLayer:
            return False
    return True


def merge_caches(target: Cache, first: DynamicCache, second: DynamicCache) -> int:
    """Fill the empty `target` with the rows of `first`, then those of `second`, and empty both.

    Args:
        target: an empty cache of any kind that a model can decode with.
        first: the cache of the first branch, filled; one of `branch_caches`.
        second: the other one, filled too.

    Returns:
        The length of the longer prompt, which is the length of the merged rows.
    """
    length = max(first.get_seq_length(), second.get_seq_length())
    for index, (one, other) in enumerate(zip(first.layers, second.layers)):
        if isinstance(one, LinearAttentionCacheLayerMixin):
            _merge_states(target, index, one, other)
        if isinstance(one, RoomyLayer) and one.room is not None and _has_keys(one):
            room = one.room
            one.reset()
            other.reset()
            _put(target, index, room, length)
    return length


def decoding_cache(prepared: Cache, model: GenerativeModel, extra: int) -> Cache:
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
    reorder = type(cache).reorder_cache
    # A cache that refers to itself would hold its memory until the garbage collector comes by.
    owner = weakref.ref(cache)

    def reorder_both(beam_idx: Tensor) -> None:
        kept = owner()
        if kept is not None:
            # transformers declares a LongTensor, a type that no function of torch returns.
            reorder(kept, torch.cat((beam_idx, beam_idx + rows)))  # type: ignore[arg-type]

    vars(cache)["reorder_cache"] = reorder_both


class PairedCaches:
    """Two caches that beam search reorders as if they were one."""

    def __init__(self, *caches: Any) -> None:
        self.caches = caches

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Move the rows of both branches alike."""
        for cache in self.caches:
            if cache is not None:
                cache.reorder_cache(beam_idx)


def _has_keys(layer: DynamicLayer) -> bool:
    return layer.is_initialized and layer.keys is not None and layer.keys.numel() > 0


def _put(target: Cache, index: int, room: KeyRoom, length: int) -> None:
    """Hand the keys and values of a layer, `length` columns, over to the cache."""
    if type(target.layers[index]) is DynamicLayer and not target.offloading:
        target.layers[index] = RoomyLayer.whole(room, length)
    else:
        target.update(*room.part(slice(0, room.rows), 0, length), index)


def _merge_states(target: Cache, index: int, one: Any, other: Any) -> None:
    layer = target.layers[index]
    if not isinstance(layer, LinearAttentionCacheLayerMixin):
        raise TypeError(f"layer {index} of {type(target).__name__} has no room for the states of a linear attention")
    for state in range(one.number_of_states):
        if one.conv_states[state] is not None:
            joined = torch.cat((one.conv_states[state], other.conv_states[state]))
            layer.update_conv_state(joined, state_idx=state)
        if one.recurrent_states[state] is not None:
            joined = torch.cat((one.recurrent_states[state], other.recurrent_states[state]))
            layer.update_recurrent_state(joined, state_idx=state)
