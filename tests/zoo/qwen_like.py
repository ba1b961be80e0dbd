"""Qwen-VL models: packed patches of any grid, merged 2 x 2, three-dimensional rotary positions."""

from __future__ import annotations

import torch
from transformers import (
    Glm4vConfig,
    Glm4vForConditionalGeneration,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen3_5Config,
    Qwen3_5ForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
)

from zoo.entry import Family, Inputs, register
from zoo.llava_like import flat
from zoo.prompts import IMAGE, IMAGE_END, IMAGE_START, SPECIAL_A, SPECIAL_B, VIDEO, Image
from zoo.shapes import HEAD_DIM, PATCH, text_shape

GRIDS = [(1, 6, 6), (1, 4, 8)]  # frames, patch rows, patch columns: 9 and 8 merged tokens
MROPE_SECTION = [2, 3, 3]  # of the HEAD_DIM / 2 rotary frequencies
TOKEN_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": IMAGE_START,
    "vision_end_token_id": IMAGE_END,
}


def run(image: Image) -> list[int]:
    frames, rows, columns = GRIDS[image.variant]
    return [IMAGE_START, *[IMAGE] * (frames * rows * columns // 4), IMAGE_END]


def pixels(rows: list[list[Image]]) -> Inputs:
    """Packed patches [sum of patches, 3 * 2 * PATCH * PATCH]; both frames of a patch show the same still."""
    packed, grids = [], []
    for image in flat(rows):
        frames, height, width = GRIDS[image.variant]
        still = image.pixels(frames * height * width, 3, 1, PATCH * PATCH)
        packed.append(still.expand(-1, -1, 2, -1).flatten(1))
        grids.append(GRIDS[image.variant])
    return {"pixel_values": torch.cat(packed), "image_grid_thw": torch.tensor(grids)}


VIDEO_GRIDS = [(2, 4, 4), (3, 4, 4)]  # frame pairs, patch rows, patch columns: 4 merged tokens per pair


def video_run(video: Image) -> list[int]:
    frames, rows, columns = VIDEO_GRIDS[video.variant]
    return [IMAGE_START, *[VIDEO] * (frames * rows * columns // 4), IMAGE_END]


def timed_video_run(video: Image) -> list[int]:
    """Qwen3: each frame pair stands alone behind its time."""
    frames, rows, columns = VIDEO_GRIDS[video.variant]
    return [SPECIAL_A, IMAGE_START, *[VIDEO] * (rows * columns // 4), IMAGE_END] * frames


def video_pixels(rows: list[list[Image]]) -> Inputs:
    videos = flat(rows)
    grids = [VIDEO_GRIDS[video.variant] for video in videos]
    packed = [
        video.pixels(frames * height * width, 3 * 2 * PATCH * PATCH)
        for video, (frames, height, width) in zip(videos, grids, strict=True)
    ]
    return {"pixel_values_videos": torch.cat(packed), "video_grid_thw": torch.tensor(grids)}


def token_types(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Inputs:
    return {"mm_token_type_ids": (input_ids == IMAGE).long() + 2 * (input_ids == VIDEO).long()}


def vision(**changes: object) -> dict[str, object]:
    shape: dict[str, object] = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 2,
        "patch_size": PATCH,
        "spatial_merge_size": 2,
        "temporal_patch_size": 2,
        "out_hidden_size": 64,
    }
    return shape | changes


def rope(**changes: object) -> dict[str, object]:
    return {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": MROPE_SECTION} | changes


def flat_text(**changes: object) -> dict[str, object]:
    """The text model's fields as Qwen2-VL and Qwen2.5-VL publish them: beside the whole model's own, not nested."""
    return text_shape(rope_theta=10000.0, rope_scaling={"type": "mrope", "mrope_section": MROPE_SECTION}, **changes)


def qwen2_vl() -> Qwen2VLConfig:
    tower = vision(embed_dim=32, hidden_size=64, mlp_ratio=2)
    for name in ("out_hidden_size", "intermediate_size"):
        del tower[name]
    return Qwen2VLConfig(**flat_text(), vision_config=tower, **TOKEN_IDS)


def qwen2_5_vl() -> Qwen2_5_VLConfig:
    return Qwen2_5_VLConfig(
        **flat_text(tie_word_embeddings=True),  # as the 3B model
        vision_config=vision(window_size=16, fullatt_block_indexes=[1]),
        **TOKEN_IDS,
    )


def qwen3_vl() -> Qwen3VLConfig:
    return Qwen3VLConfig(
        text_config=text_shape(head_dim=HEAD_DIM, rope_parameters=rope(mrope_interleaved=True)),
        vision_config=vision(num_position_embeddings=64, deepstack_visual_indexes=[0, 1]),
        **TOKEN_IDS,
    )


def qwen3_vl_moe() -> Qwen3VLMoeConfig:
    return Qwen3VLMoeConfig(
        text_config=text_shape(
            head_dim=HEAD_DIM,
            rope_parameters=rope(mrope_interleaved=True),
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=32,
        ),
        vision_config=vision(num_position_embeddings=64, deepstack_visual_indexes=[0, 1]),
        **TOKEN_IDS,
    )


def qwen3_5() -> Qwen3_5Config:
    return Qwen3_5Config(
        text_config=text_shape(
            num_hidden_layers=4,
            head_dim=HEAD_DIM,
            layer_types=["linear_attention", "full_attention"] * 2,
            linear_key_head_dim=8,
            linear_value_head_dim=8,
            linear_num_key_heads=2,
            linear_num_value_heads=4,
            rope_parameters=rope(mrope_interleaved=True, mrope_section=[2, 1, 1], partial_rotary_factor=0.5),
        ),
        vision_config=vision(num_position_embeddings=64),
        **TOKEN_IDS,
    )


def glm4v() -> Glm4vConfig:
    return Glm4vConfig(
        text_config=text_shape(rope_parameters=rope()),
        vision_config=vision(image_size=32),
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        image_start_token_id=IMAGE_START,
        image_end_token_id=IMAGE_END,
        video_start_token_id=SPECIAL_A,
        video_end_token_id=SPECIAL_B,
    )


MODELS = {
    "qwen2_vl": (Qwen2VLForConditionalGeneration, qwen2_vl, ""),
    "qwen2_5_vl": (Qwen2_5_VLForConditionalGeneration, qwen2_5_vl, "window attention in the vision tower"),
    "qwen3_vl": (Qwen3VLForConditionalGeneration, qwen3_vl, "visual features are added again after layers 0 and 1"),
    "qwen3_vl_moe": (Qwen3VLMoeForConditionalGeneration, qwen3_vl_moe, ""),
    "qwen3_5": (Qwen3_5ForConditionalGeneration, qwen3_5, "layers 1 and 3 of 4 are attention, 0 and 2 linear"),
    "glm4v": (Glm4vForConditionalGeneration, glm4v, ""),
}

VIDEO_RUNS = {
    "qwen2_vl": video_run,
    "qwen2_5_vl": video_run,
    "qwen3_vl": timed_video_run,
    "qwen3_vl_moe": timed_video_run,
    "qwen3_5": timed_video_run,
}

for name, (model_class, config, facts) in MODELS.items():
    register(
        Family(
            name=name,
            model=lambda model_class=model_class, config=config: (model_class, config()),
            image_run=run,
            image_inputs=pixels,
            token_inputs=token_types,
            video_run=VIDEO_RUNS.get(name),
            video_inputs=video_pixels if name in VIDEO_RUNS else None,
            stock_failures=("prompt lookup", "assistant model") if name == "qwen3_5" else (),
            facts=facts,
        )
    )
