"""Shapes the families share: a Llama-like text decoder of 64 channels and small vision towers."""

from __future__ import annotations

from typing import Any

from zoo.prompts import BOS, EOS, PAD, VOCABULARY

HIDDEN = 64
HEADS = 4
KEY_VALUE_HEADS = 2
HEAD_DIM = 16
LAYERS = 3
PATCH = 4


def text_shape(**changes: Any) -> dict[str, Any]:
    """Arguments of a Llama-like text configuration."""
    shape: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "num_key_value_heads": KEY_VALUE_HEADS,
        "max_position_embeddings": 512,
        "pad_token_id": PAD,
        "bos_token_id": BOS,
        "eos_token_id": EOS,
    }
    return shape | changes


def vision_shape(**changes: Any) -> dict[str, Any]:
    """Arguments of a CLIP- or SigLIP-like vision configuration: 24 x 24 pixels, 6 x 6 patches."""
    shape: dict[str, Any] = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "image_size": 24,
        "patch_size": PATCH,
    }
    return shape | changes
