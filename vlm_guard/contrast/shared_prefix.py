"""The beginning that the prompts of two branches have in common, which is read once.

A leading and a neutral question differ behind the picture, and a perturbed branch only in rows behind it. The keys of
what comes before are the same in a causal decoder, so the second branch copies them and reads the rest: a few tokens
instead of a picture.
"""

from typing import TYPE_CHECKING

import torch
from torch import Tensor
from transformers import DynamicCache
from transformers.cache_utils import CacheLayerMixin

from vlm_guard.contrast.branch_cache import RoomyLayer
from vlm_guard.contrast.branch_inputs import BranchInputs
from vlm_guard.method.contrasting import Branch
from vlm_guard.method.hooks import needs_whole_prompt
from vlm_guard.method.visual_tokens import visual_mask, wanted_rows

if TYPE_CHECKING:
    from vlm_guard.method.attention_calls import BoundMethod
    from vlm_guard.method.base import Sign


def common_prefix(first: BranchInputs, second: BranchInputs) -> int:
    """Columns of the left-padded `second` that are padding or tokens which `first` begins with, in every row."""
    if not bool(first.attention_mask[:, -1].all() & second.attention_mask[:, -1].all()):
        return 0
    shortest = second.length
    parts = [zip(part.input_ids.tolist(), part.attention_mask.tolist()) for part in (first, second)]
    for (ids, mask), (others, other_mask) in zip(*parts):
        row, other = ids[mask.index(1) :], others[other_mask.index(1) :]
        same = next((place for place, (a, b) in enumerate(zip(row, other)) if a != b), min(len(row), len(other)))
        shortest = min(shortest, other_mask.index(1) + same)
    return shortest


def shared_prefix(
    branch: Branch,
    first: BranchInputs,
    second: BranchInputs,
    cache: DynamicCache,
    methods: "tuple[BoundMethod, ...]",
    second_sign: "Sign",
    visual_token_ids: tuple[int, ...],
    marker_ids: tuple[int, ...] = (),
) -> int:
    """How many leading columns of the second branch need not be read; 0 where nothing can be shared.

    Args:
        branch: the second branch.
        first: the branch that has been read into `cache`.
        second: the branch to be read.
        cache: keys of the first branch.
        methods: the methods of the guard; rows that they edit differ between branches.
        second_sign: the side of the second branch.
        visual_token_ids: ids that stand for patches of images and videos.
        marker_ids: ids of markers that the model embeds together with the image they stand around.
    """
    causal = "token_type_ids" not in second.model_kwargs  # where they are given, images or prompts look ahead
    if branch.images != "same" or not causal or any(type(layer) is not RoomyLayer for layer in cache.layers):
        return 0
    for bound in methods:
        method = bound.method
        if method.edits_attention() and method.rows == "all":
            return 0
        if needs_whole_prompt(method, second_sign):
            return 0
    length = min(common_prefix(first, second), second.length - 1)
    visual = visual_mask(second.input_ids, visual_token_ids)
    if any(bound.method.edits_attention() and bound.method.rows == "text" for bound in methods):
        real = second.attention_mask.bool()
        edited = wanted_rows("text", visual, 0, second.length, second.length, real).any(0)
        length = min(length, int(edited.to(torch.int8).argmax()))
    # What is left to read must not need image features, which are counted from the start of the prompt.
    return 0 if bool(visual_mask(second.input_ids[:, length:], visual_token_ids + marker_ids).any()) else length


def copy_prefix(
    first: BranchInputs, second: BranchInputs, source: DynamicCache, target: DynamicCache, length: int
) -> None:
    """Fill the empty `target` with the keys of the second branch's first `length` columns, taken from `source`."""
    starts = [part.attention_mask.to(torch.int8).argmax(-1) for part in (first, second)]
    columns = torch.arange(length, device=starts[0].device) + (starts[0] - starts[1])[:, None]
    aligned = bool((starts[0] == starts[1]).all())
    for index, layer in enumerate(source.layers):
        if not isinstance(layer, CacheLayerMixin) or layer.keys is None or layer.values is None:
            continue
        if layer.is_initialized and layer.keys.numel():
            parts = (layer.keys, layer.values)
            keys, values = (_columns(part, None if aligned else columns, length) for part in parts)
            target.update(keys, values, index)


def _columns(states: Tensor, columns: Tensor | None, length: int) -> Tensor:
    """[N, G, length, D] of [N, G, P, D]: its first columns, or those named per row (padding takes any)."""
    if columns is None:
        return states[:, :, :length]
    index = columns.clamp(0, states.shape[2] - 1).to(states.device)[:, None, :, None]
    return states.gather(2, index.expand(-1, states.shape[1], -1, states.shape[3]))
