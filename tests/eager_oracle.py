"""An eager decoder attention with whole maps, written apart from the project's own, to check methods against."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import contextmanager

import torch
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from vlm_guard.families.architecture import describe_architecture

Edit = Callable[[int, torch.Tensor], torch.Tensor]
_edits: dict[int, tuple[int, Edit | None, Edit | None, Edit | None]] = {}


def _attention(module, query, key, value, attention_mask, scaling=None, **kwargs):
    layer, scores_edit, weights_edit, output_edit = _edits[id(module)]
    repeat = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(repeat, 1), value.repeat_interleave(repeat, 1)
    scores = query.double() @ key.double().transpose(-1, -2) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    count, keys = scores.shape[-2:]
    if scores_edit is not None:
        scores = scores_edit(layer, scores)
    if attention_mask is None:
        allowed = torch.ones(count, keys, dtype=torch.bool).tril(keys - count)
    else:
        allowed = attention_mask[..., :keys]
    weights = scores.masked_fill(~allowed, float("-inf")).softmax(-1).nan_to_num()
    if weights_edit is not None:
        weights = weights_edit(layer, weights)
    output = weights @ value.double()
    if output_edit is not None:
        output = output_edit(layer, output)
    return output.transpose(1, 2).to(query.dtype).contiguous(), None


@contextmanager
def eager_attention(model, *, scores=None, weights=None, output=None):
    """Inside, the decoder of `model` attends eagerly in float64 with these edits.

    Each edit gets the layer index and a [B, H, Q, K] (or, for `output`, [B, H, Q, D]) tensor and returns the new one.
    Masked scores are masked after the score edit.
    """
    AttentionInterface.register("eager_oracle", _attention)
    AttentionMaskInterface.register("eager_oracle", sdpa_mask)
    layers = describe_architecture(model).layers
    configs = {id(entry.attention.config): entry.attention.config for entry in layers}
    before = {key: config._attn_implementation_internal for key, config in configs.items()}
    for entry in layers:
        _edits[id(entry.attention)] = (entry.index, scores, weights, output)
    for config in configs.values():
        config._attn_implementation_internal = "eager_oracle"
    try:
        yield
    finally:
        for key, config in configs.items():
            config._attn_implementation_internal = before[key]
        _edits.clear()
