"""Tiny models of families that have no pictures in the zoo: their default configurations, shrunken.

They read text only, which is what the check of an untested family reads. What a family's default leaves open, or what
depends on its size, stands in `CHANGES`.
"""

from __future__ import annotations

from typing import Any

import torch
from transformers import CONFIG_MAPPING, AutoModelForImageTextToText, PreTrainedModel

from zoo.prompts import IMAGE, VIDEO, VOCABULARY
from zoo.weights import randomise

LAYERS = 4
SMALL: dict[str, int] = {
    "hidden_size": 64,
    "d_model": 64,
    "embed_dim": 64,
    "out_hidden_size": 64,
    "projection_dim": 64,
    "text_hidden_size": 64,
    "projector_hidden_size": 64,
    "intermediate_size": 96,
    "ffn_dim": 96,
    "moe_intermediate_size": 32,
    "dense_intermediate_size": 48,
    "shared_intermediate_size": 32,
    "shared_expert_intermediate_size": 32,
    "moe_shared_expert_intermediate_size": 32,
    "mlp_dim": 64,
    "num_hidden_layers": LAYERS,
    "num_layers": LAYERS,
    "depth": 2,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "num_attention_heads": 4,
    "num_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 64,
    "decoder_ffn_dim": 64,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "global_head_dim": 16,
    "vocab_size": VOCABULARY,
    "vocab_size_per_layer_input": VOCABULARY,
    "hidden_size_per_layer_input": 8,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "moe_num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_topk": 2,
    "moe_k": 2,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "image_size": 32,
    "patch_size": 4,
    "num_position_embeddings": 64,
    "output_channels": 16,
    "max_position_embeddings": 512,
    "sliding_window": 16,
    "q_lora_rank": 32,
    "kv_lora_rank": 32,
    "qk_rope_head_dim": 16,
    "qk_nope_head_dim": 16,
    "qk_head_dim": 32,
    "v_head_dim": 16,
    "rotary_dim": 8,
    "index_head_dim": 16,
    "index_n_heads": 2,
    "index_topk": 8,
    "linear_head_dim": 8,
    "linear_num_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "mamba_num_heads": 4,
    "mamba_head_dim": 16,
    "ssm_state_size": 8,
    "n_groups": 2,
    "num_nextn_predict_layers": 0,
}
# Lists with an entry for each layer; a configuration makes its own for the new number of layers.
BY_LAYER = {"layer_types", "mlp_layer_types", "no_rope_layers", "layers_block_type", "per_layer_config"}
MROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]}
ALL_HEADS = {"num_key_value_heads": 4}
# Changes of the text configuration.
CHANGES: dict[str, dict[str, Any]] = {
    "cohere_compass": {
        "layer_types": ["sliding_attention", "full_attention"] * 2,
        "rope_parameters": dict.fromkeys(("sliding_attention", "full_attention"), MROPE),
    },
    "deepseek_ocr2": {"mlp_layer_types": ["dense", "sparse"] * 2, "num_experts_per_tok": 2},
    "dots3_note": ALL_HEADS | {"head_dim": 32},
    "ernie4_5_vl_moe": {"rope_parameters": MROPE | {"mrope_section": [3, 3, 2]}, "moe_intermediate_size": [32, 32]},
    "glm5_next": ALL_HEADS | {"index_kpool": 4, "qk_rope_head_dim": 0, "qk_head_dim": 16},
    "glm_ocr": {"rope_parameters": MROPE},
    "glmga": {"rope_parameters": MROPE},
    "hunyuan_vl": {"rope_parameters": {"rope_type": "default", "rope_theta": 10000.0}, "head_dim": 16},
    "inkling2": {"swa_num_attention_heads": 4, "swa_num_key_value_heads": 2, "swa_head_dim": 16},
    "kimi_k25": ALL_HEADS,
    "mistral4": ALL_HEADS | {"head_dim": 32},
    "mistral_large4": ALL_HEADS | {"kv_source_layers": [0, 1, 2, 3]},
    "paddleocr_vl": {"rope_parameters": MROPE},
    "qwen4_exp": {
        "layer_types": ["linear_attention", "indexed_attention"] * 2,
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": 16,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
        "rope_parameters": MROPE
        | {"mrope_section": [2, 1, 1], "partial_rotary_factor": 0.5, "mrope_interleaved": True},
    },
    "step3p7": {"sliding_window": 16, "num_sliding_attention_heads": 4},
}


def build_shrunken(model_type: str) -> PreTrainedModel:
    """A tiny random model of a family of transformers' image-text mapping, for text alone."""
    settings = shrink(CONFIG_MAPPING[model_type]().to_dict())
    settings |= {name: IMAGE for name in ("image_token_id", "image_token_index") if name in settings}
    settings |= {name: VIDEO for name in ("video_token_id", "video_token_index") if name in settings}
    settings.get("text_config", settings).update(CHANGES.get(model_type, {}))
    config = CONFIG_MAPPING[model_type].from_dict(settings)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = AutoModelForImageTextToText.from_config(config, dtype=torch.float32).eval()
    randomise(model, (model_type, 0))
    return model


def shrink(settings: dict[str, Any]) -> dict[str, Any]:
    """The settings of a configuration with small sizes; lists by layer are left to the configuration."""
    small: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and name not in BY_LAYER:
            small[name] = shrink(value)
        elif name in BY_LAYER:
            small[name] = {} if name == "per_layer_config" else None
        elif name == "mrope_section":
            small[name] = MROPE["mrope_section"]
        elif name in SMALL and isinstance(value, int) and not isinstance(value, bool):
            small[name] = SMALL[name]
        elif name in SMALL and isinstance(value, list | tuple):
            small[name] = [SMALL[name]] * min(len(value), LAYERS)
        elif isinstance(name, str) and name.endswith(("token_id", "token_index")) and isinstance(value, int):
            small[name] = min(value, 9)
        elif isinstance(name, str) and name.endswith("token_id") and isinstance(value, list):
            small[name] = 2
        else:
            small[name] = value
    return small
