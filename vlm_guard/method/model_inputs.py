"""Which inputs of `generate` belong to images and which go along with tokens."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers.generation.utils import MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL

from vlm_guard.method.branch_prompt import BranchPrompt

TOKEN_TYPES = ("token_type_ids", "mm_token_type_ids", "moe_mm_token_type_ids")
_NOT_IMAGES = {
    "input_ids",
    "inputs",
    "attention_mask",
    "position_ids",
    "past_key_values",
    "negative_prompt_ids",
    "negative_prompt_attention_mask",
    *TOKEN_TYPES,
}


def image_inputs(inputs: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of `generate` that belong to images: tensors that are neither ids, masks nor token types."""
    return {
        name: value
        for name, value in inputs.items()
        if name not in _NOT_IMAGES
        and (isinstance(value, Tensor) or (name in MULTIMODAL_INPUTS_TO_DROP_OUTSIDE_PREFILL and value is not None))
    }


def token_types(prompt: BranchPrompt, inputs: Mapping[str, Any]) -> dict[str, Tensor]:
    """The token types of a prompt [B, P'], from those given to `generate` for the prompt that it was made from."""
    return {name: prompt.follow(inputs[name]) for name in TOKEN_TYPES if isinstance(inputs.get(name), Tensor)}
