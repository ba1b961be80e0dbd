"""Qwen-VL models: packed patches of any grid, merged 2 x 2, three-dimensional rotary positions."""

from __future__ import annotations

import torch
from transformers import (
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen3VLConfig,
    Qwen3VLForConditionalGeneration,
)

from zoo.entry import Family, Inputs, register
from zoo.llava_like import flat
from zoo.prompts import IMAGE, IMAGE_END, IMAGE_START, VIDEO, Image
from zoo.shapes import HEAD_DIM, PATCH, text_shape

GRIDS = [(1, 6, 6), (1, 4, 8)]  # frames, patch rows, patch columns: 9 and 8 merged tokens
MROPE_SECTION = [2, 3, 3]  # of the HEAD_DIM / 2 rotary frequencies
TOKEN_IDS = {
    "image_token_id": IMAGE,
    "video_token_id": VIDEO,
    "vision_start_token_id": IMAGE_START,
    "vision_end_token_id": IMAGE_END,
}


def run(variant: int) -> list[int]:
    frames, rows, columns = GRIDS[variant]
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


def qwen2_5_vl() -> Qwen2_5_VLConfig:
    return Qwen2_5_VLConfig(
        text_config=text_shape(rope_parameters=rope()),
        vision_config=vision(window_size=16, fullatt_block_indexes=[1]),
        **TOKEN_IDS,
    )


register(
    Family(
        name="qwen2_5_vl",
        model=lambda: (Qwen2_5_VLForConditionalGeneration, qwen2_5_vl()),
        image_run=run,
        image_inputs=pixels,
        token_inputs=token_types,
    )
)


def qwen3_vl() -> Qwen3VLConfig:
    return Qwen3VLConfig(
        text_config=text_shape(head_dim=HEAD_DIM, rope_parameters=rope(mrope_interleaved=True)),
        vision_config=vision(num_position_embeddings=64, deepstack_visual_indexes=[0, 1]),
        **TOKEN_IDS,
    )


register(
    Family(
        name="qwen3_vl",
        model=lambda: (Qwen3VLForConditionalGeneration, qwen3_vl()),
        image_run=run,
        image_inputs=pixels,
        token_inputs=token_types,
    )
)
