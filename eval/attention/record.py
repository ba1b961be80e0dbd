"""One forward pass with every decoder layer's attention weights and head outputs kept.

The plain softmax attention is put in through transformers' attention interface for the duration of the pass, so any
model whose decoder dispatches through that interface can be looked at, and nothing of it stays afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from vlm_guard.families.architecture import describe_architecture, unwrap

_NAME = "vlm_guard_attention_record"


@dataclass(kw_only=True)
class AttentionRecord:
    """What one forward pass of one sequence showed.

    Attributes:
        weights: Attention weights of each layer, float32 [H, L, L].
        outputs: Head outputs of each layer before the output projection, float32 [L, H, D].
        value_norms: Length of each key's value by layer and query head, float32 [H, L].
        norms: Length of the hidden state after the embedding and after each layer, float32 [layers + 1, L]; [0, 0]
            while the pass runs, as `peaks`.
        peaks: Largest absolute entry of the same hidden states, float32 [layers + 1, L].
    """

    weights: list[Tensor] = field(default_factory=list)
    outputs: list[Tensor] = field(default_factory=list)
    value_norms: list[Tensor] = field(default_factory=list)
    norms: Tensor = field(default_factory=lambda: torch.zeros(0, 0))
    peaks: Tensor = field(default_factory=lambda: torch.zeros(0, 0))


_current: list[AttentionRecord] = []


def _recording_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    **_: Any,
) -> tuple[Tensor, Tensor]:
    """Softmax attention, [B, H, Q, D] to [B, Q, H, D]; the first batch row is recorded."""
    groups = query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * (scaling if scaling is not None else query.shape[-1] ** -0.5)
    if attention_mask is not None:
        scores = scores + attention_mask[..., : key.shape[2]]
    weights = scores.softmax(-1, dtype=torch.float32)
    output = (weights.to(value.dtype) @ value).transpose(1, 2).contiguous()
    _current[-1].weights.append(weights[0].detach())
    _current[-1].outputs.append(output[0].detach().float())
    _current[-1].value_norms.append(value[0].detach().float().norm(dim=-1))
    return output, weights


@contextmanager
def _recording(model: nn.Module) -> Iterator[AttentionRecord]:
    ALL_ATTENTION_FUNCTIONS.register(_NAME, _recording_attention)
    ALL_MASK_ATTENTION_FUNCTIONS.register(_NAME, ALL_MASK_ATTENTION_FUNCTIONS["eager"])
    layers = describe_architecture(unwrap(model)).layers
    configs: dict[int, Any] = {id(layer.attention.config): layer.attention.config for layer in layers}
    previous = {number: config._attn_implementation for number, config in configs.items()}
    record = AttentionRecord()
    _current.append(record)
    try:
        for config in configs.values():
            config._attn_implementation_internal = _NAME
        yield record
    finally:
        _current.pop()
        for number, config in configs.items():
            config._attn_implementation_internal = previous[number]


@torch.no_grad()
def record_attention(model: nn.Module, inputs: Mapping[str, Any]) -> AttentionRecord:
    """Run ``model`` once on the inputs of a single sequence and keep what each layer did.

    Args:
        model: A model the guard accepts; it must not be guarded at this moment.
        inputs: ``input_ids`` [1, L] and whatever else the model's forward takes.

    Raises:
        ValueError: more than one sequence, or the model's decoder cannot be reached.
    """
    if len(inputs["input_ids"]) != 1:
        raise ValueError(f"got {len(inputs['input_ids'])} sequences; attention is recorded one sequence at a time")
    with _recording(model) as record:
        hidden = model(**inputs, output_hidden_states=True, use_cache=False).hidden_states
    stacked = torch.stack([state[0].float() for state in hidden])
    record.norms, record.peaks = stacked.norm(dim=-1), stacked.abs().amax(-1)
    return record
