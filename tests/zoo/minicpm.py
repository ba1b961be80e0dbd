"""MiniCPM-V 4.6: packed patches merged 4 x 4 in two stages, a Qwen3.5 decoder."""

from __future__ import annotations

import torch
from transformers import MiniCPMV4_6Config, MiniCPMV4_6ForConditionalGeneration

from zoo.entry import Family, Inputs, register
from zoo.llava_like import flat
from zoo.prompts import IMAGE, IMAGE_END, IMAGE_START, VIDEO, Image
from zoo.qwen_like import rope
from zoo.shapes import HEAD_DIM, PATCH, text_shape, vision_shape

GRIDS = [(8, 8), (4, 12)]  # patch rows, patch columns: 4 and 3 tokens


def minicpm() -> MiniCPMV4_6Config:
    text = text_shape(
        num_hidden_layers=4,
        head_dim=HEAD_DIM,
        layer_types=["linear_attention", "full_attention"] * 2,
        linear_key_head_dim=8,
        linear_value_head_dim=8,
        linear_num_key_heads=2,
        linear_num_value_heads=4,
        rope_parameters=rope(mrope_interleaved=True, mrope_section=[2, 1, 1], partial_rotary_factor=0.5),
    )
    return MiniCPMV4_6Config(
        text_config={"model_type": "qwen3_5_text", **text},
        vision_config=vision_shape(image_size=64),
        insert_layer_id=0,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
    )


def run(image: Image) -> list[int]:
    rows, columns = GRIDS[image.variant]
    return [IMAGE_START, *[IMAGE] * (rows * columns // 16), IMAGE_END]


def pixels(rows: list[list[Image]]) -> Inputs:
    """All patches in one row: [1, 3, PATCH, patches * PATCH]."""
    images = flat(rows)
    strips = [image.pixels(3, PATCH, PATCH * GRIDS[image.variant][0] * GRIDS[image.variant][1]) for image in images]
    sizes = torch.tensor([GRIDS[image.variant] for image in images])
    return {"pixel_values": torch.cat(strips, -1)[None], "target_sizes": sizes}


register(
    Family(
        name="minicpm_v",
        model=lambda: (MiniCPMV4_6ForConditionalGeneration, minicpm()),
        image_run=run,
        image_inputs=pixels,
        stock_failures=("prompt lookup", "assistant model"),
        facts="layers 1 and 3 of 4 are attention, 0 and 2 linear",
    )
)
