"""Gemma 4: patches of any grid pooled 3 x 3, heads of two sizes, layers that read another layer's keys."""

from __future__ import annotations

import torch
from transformers import Gemma4Config, Gemma4ForConditionalGeneration

from zoo.entry import Family, Inputs, register
from zoo.llava_like import flat
from zoo.prompts import IMAGE, IMAGE_END, IMAGE_START, SPECIAL_A, SPECIAL_B, VIDEO, VOCABULARY, Image
from zoo.qwen_like import token_types
from zoo.shapes import HEAD_DIM, PATCH, text_shape, vision_shape

GRIDS = [(6, 6), (3, 9)]  # patch rows, patch columns: 4 and 3 tokens
MOST_PATCHES = 36
SLIDING_WINDOW = 16  # shorter than the prompts


def gemma4(**changes: object) -> Gemma4Config:
    text = text_shape(
        num_hidden_layers=4,
        head_dim=HEAD_DIM,
        global_head_dim=2 * HEAD_DIM,
        sliding_window=SLIDING_WINDOW,
        layer_types=["sliding_attention", "full_attention"] * 2,
        vocab_size_per_layer_input=VOCABULARY,
        hidden_size_per_layer_input=8,
        final_logit_softcapping=30.0,
        use_bidirectional_attention="vision",
    )
    tower = vision_shape(num_key_value_heads=2, head_dim=16, position_embedding_size=32)
    del tower["image_size"]
    return Gemma4Config(
        text_config=text | changes,
        vision_config=tower,
        audio_config=None,
        boi_token_id=IMAGE_START,
        eoi_token_id=IMAGE_END,
        image_token_id=IMAGE,
        video_token_id=VIDEO,
        audio_token_id=SPECIAL_A,
        boa_token_id=SPECIAL_B,
        eoa_token_index=SPECIAL_B,
    )


def run(image: Image) -> list[int]:
    rows, columns = GRIDS[image.variant]
    return [IMAGE_START, *[IMAGE] * (rows * columns // 9), IMAGE_END]


def pixels(rows: list[list[Image]]) -> Inputs:
    """Patches [images, MOST_PATCHES, 3 * PATCH * PATCH] with the place (x, y) of each, -1 for padding."""
    images = flat(rows)
    values = torch.zeros(len(images), MOST_PATCHES, 3 * PATCH * PATCH)
    places = torch.full((len(images), MOST_PATCHES, 2), -1)
    for number, image in enumerate(images):
        height, width = GRIDS[image.variant]
        values[number, : height * width] = image.pixels(height * width, 3 * PATCH * PATCH)
        grid = torch.stack(torch.meshgrid(torch.arange(width), torch.arange(height), indexing="xy"), -1)
        places[number, : height * width] = grid.flatten(0, 1)
    return {"pixel_values": values, "image_position_ids": places}


SHAPES = {
    "gemma4": ({}, "sliding layers; full layers have wider heads"),
    "gemma4_shared": (
        {"num_kv_shared_layers": 2, "use_double_wide_mlp": True},
        "sliding layers; full layers have wider heads; layers 2 and 3 read the keys and values of layers 0 and 1",
    ),
}

for name, (changes, facts) in SHAPES.items():
    register(
        Family(
            name=name,
            model=lambda changes=changes: (Gemma4ForConditionalGeneration, gemma4(**changes)),
            image_run=run,
            image_inputs=pixels,
            token_inputs=token_types,
            facts=facts,
        )
    )
