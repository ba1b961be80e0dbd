"""More families that read packed patches: GLM-4.6V, GLM-4V MoE, Qwen3.5 MoE, the thinkers, VideoLLaMA 3, MiniMax M3."""

from __future__ import annotations

import torch
from transformers import (
    Glm4vMoeConfig,
    Glm4vMoeForConditionalGeneration,
    Glm46VConfig,
    Glm46VForConditionalGeneration,
    MiniMaxM3SparseForConditionalGeneration,
    MiniMaxM3VLConfig,
    Qwen2_5OmniThinkerConfig,
    Qwen2_5OmniThinkerForConditionalGeneration,
    Qwen3_5MoeConfig,
    Qwen3_5MoeForConditionalGeneration,
    Qwen3OmniMoeThinkerConfig,
    Qwen3OmniMoeThinkerForConditionalGeneration,
    VideoLlama3Config,
    VideoLlama3ForConditionalGeneration,
)

from zoo.entry import Family, Inputs, register
from zoo.llava_like import flat
from zoo.prompts import IMAGE, IMAGE_BREAK, IMAGE_END, IMAGE_START, SPECIAL_A, SPECIAL_B, VIDEO, Image
from zoo.qwen_like import GRIDS, TOKEN_IDS, pixels, rope, run, token_types, vision
from zoo.shapes import HEAD_DIM, PATCH, text_shape, vision_shape

GLM_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "image_start_token_id": IMAGE_START,
    "image_end_token_id": IMAGE_END,
    "video_start_token_id": SPECIAL_A,
    "video_end_token_id": SPECIAL_B,
}
AUDIO = {"d_model": 32, "encoder_attention_heads": 2, "encoder_ffn_dim": 48, "encoder_layers": 1, "output_dim": 64}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 32}


def glm46v() -> Glm46VConfig:
    text = text_shape(rope_parameters=rope())
    return Glm46VConfig(
        text_config={"model_type": "glm4v_text", **text},
        vision_config={"model_type": "glm4v_vision", **vision(image_size=32)},
        **GLM_IDS,
    )


def glm4v_moe() -> Glm4vMoeConfig:
    text = text_shape(n_routed_experts=4, rope_parameters=rope(partial_rotary_factor=0.5, mrope_section=[2, 1, 1]))
    return Glm4vMoeConfig(text_config=text | EXPERTS, vision_config=vision(image_size=32), **GLM_IDS)


def qwen3_5_moe() -> Qwen3_5MoeConfig:
    text = text_shape(
        num_hidden_layers=4,
        head_dim=HEAD_DIM,
        layer_types=["linear_attention", "full_attention"] * 2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        num_experts=4,
        shared_expert_intermediate_size=32,
        rope_parameters=rope(mrope_interleaved=True, mrope_section=[2, 1, 1], partial_rotary_factor=0.5),
    )
    del text["intermediate_size"]
    return Qwen3_5MoeConfig(text_config=text | EXPERTS, vision_config=vision(num_position_embeddings=64), **TOKEN_IDS)


def qwen2_5_omni() -> Qwen2_5OmniThinkerConfig:
    return Qwen2_5OmniThinkerConfig(
        text_config=text_shape(rope_parameters=rope()),
        vision_config=vision(window_size=16, fullatt_block_indexes=[1]),
        audio_config=AUDIO,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
        audio_token_index=SPECIAL_A,
        vision_start_token_id=IMAGE_START,
        vision_end_token_id=IMAGE_END,
        audio_start_token_id=SPECIAL_B,
        audio_end_token_id=IMAGE_BREAK,
        position_id_per_seconds=2,
    )


def qwen3_omni() -> Qwen3OmniMoeThinkerConfig:
    text = text_shape(head_dim=HEAD_DIM, num_experts=4, rope_parameters=rope(mrope_interleaved=True))
    return Qwen3OmniMoeThinkerConfig(
        text_config=text | EXPERTS,
        vision_config=vision(num_position_embeddings=64, deepstack_visual_indexes=[0, 1]),
        audio_config=AUDIO | {"downsample_hidden_size": 8},
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=SPECIAL_A,
        vision_start_token_id=IMAGE_START,
        vision_end_token_id=IMAGE_END,
        audio_start_token_id=SPECIAL_B,
        audio_end_token_id=IMAGE_BREAK,
        position_id_per_seconds=2,
    )


def video_llama_3() -> VideoLlama3Config:
    return VideoLlama3Config(
        text_config={"model_type": "qwen2", **text_shape()},
        vision_config=vision_shape(),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )


def video_llama_3_pixels(rows: list[list[Image]]) -> Inputs:
    """Packed patches [sum of patches, 3 * PATCH * PATCH], four of which are averaged to a token."""
    images = flat(rows)
    grids = [GRIDS[image.variant] for image in images]
    packed = [
        image.pixels(frames * height * width, 3 * PATCH * PATCH)
        for image, (frames, height, width) in zip(images, grids, strict=True)
    ]
    return {
        "pixel_values": torch.cat(packed),
        "image_grid_thw": torch.tensor(grids),
        "image_merge_sizes": torch.full((len(images),), 2),
    }


# Every other layer chooses 3 blocks of 4 keys, fewer than the prompts have; written as the checkpoint says it.
SPARSE = {
    "sparse_attention_freq": [0, 1, 0, 1],
    "sparse_num_index_heads": 2,
    "sparse_index_dim": HEAD_DIM,
    "sparse_block_size": 4,
    "sparse_topk_blocks": 3,
    "sparse_local_block": 1,
}


def minimax_m3(**changes: object) -> MiniMaxM3VLConfig:
    text = text_shape(
        num_hidden_layers=4,
        head_dim=HEAD_DIM,
        rotary_dim=8,
        num_local_experts=4,
        num_experts_per_tok=2,
        dense_intermediate_size=48,
        shared_intermediate_size=32,
        mlp_layer_types=["dense", "sparse"] * 2,
        **changes,
    )
    return MiniMaxM3VLConfig(
        text_config=text,
        vision_config=vision_shape(image_size=32),
        projector_hidden_size=64,
        image_token_index=IMAGE,
        video_token_index=VIDEO,
    )


MODELS = {
    "glm46v": (Glm46VForConditionalGeneration, glm46v, pixels, ""),
    "glm4v_moe": (Glm4vMoeForConditionalGeneration, glm4v_moe, pixels, "experts, half of each head is rotated"),
    "qwen3_5_moe": (
        Qwen3_5MoeForConditionalGeneration,
        qwen3_5_moe,
        pixels,
        "experts; layers 1 and 3 of 4 are attention, 0 and 2 linear",
    ),
    "qwen2_5_omni_thinker": (Qwen2_5OmniThinkerForConditionalGeneration, qwen2_5_omni, pixels, "audio is left out"),
    "qwen3_omni_thinker": (
        Qwen3OmniMoeThinkerForConditionalGeneration,
        qwen3_omni,
        pixels,
        "experts; visual features are added again after layers 0 and 1; audio is left out",
    ),
    "video_llama_3": (VideoLlama3ForConditionalGeneration, video_llama_3, video_llama_3_pixels, ""),
    "minimax_m3": (MiniMaxM3SparseForConditionalGeneration, minimax_m3, pixels, "experts in every other layer"),
    "minimax_m3_sparse": (
        MiniMaxM3SparseForConditionalGeneration,
        lambda: minimax_m3(sparse_attention_config=SPARSE),
        pixels,
        "every other layer has experts and chooses its keys by blocks, which padding shifts: not batch invariant",
    ),
}
STOCK_FAILURES = {"qwen3_5_moe": ("prompt lookup", "assistant model")}
STOCK_DIFFERENCES = {"minimax_m3_sparse": ("static cache", "chunked prefill")}
WITHOUT_TYPES = {"qwen2_5_omni_thinker", "qwen3_omni_thinker", "video_llama_3", "minimax_m3", "minimax_m3_sparse"}

for name, (model_class, config, image_inputs, facts) in MODELS.items():
    register(
        Family(
            name=name,
            model=lambda model_class=model_class, config=config: (model_class, config()),
            image_run=run,
            image_inputs=image_inputs,
            token_inputs=None if name in WITHOUT_TYPES else token_types,
            stock_failures=STOCK_FAILURES.get(name, ()),
            batch_invariant=name != "minimax_m3_sparse",
            cache_invariant=name != "minimax_m3_sparse",
            stock_differences=STOCK_DIFFERENCES.get(name, ()),
            facts=facts,
        )
    )
