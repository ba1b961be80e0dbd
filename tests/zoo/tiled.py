"""Families whose images are cut into square tiles: InternVL and others."""

from __future__ import annotations

import torch
from transformers import InternVLConfig, InternVLForConditionalGeneration, Qwen2Config

from zoo.entry import Family, Inputs, register
from zoo.llava_like import flat
from zoo.prompts import IMAGE, IMAGE_END, IMAGE_START, Image
from zoo.shapes import PATCH, text_shape, vision_shape

SIDE = 24  # pixels; 6 x 6 patches, shuffled 2 x 2 to 9 tokens
TILES = (1, 2)  # tiles of an image of variant 0 and 1


def pixels(rows: list[list[Image]]) -> Inputs:
    return {"pixel_values": torch.cat([image.pixels(TILES[image.variant], 3, SIDE, SIDE) for image in flat(rows)])}


def internvl() -> InternVLConfig:
    return InternVLConfig(
        text_config=Qwen2Config(**text_shape()),
        vision_config=vision_shape(image_size=[SIDE, SIDE], patch_size=[PATCH, PATCH]),
        image_token_id=IMAGE,
        image_seq_length=9,
    )


register(
    Family(
        name="internvl",
        model=lambda: (InternVLForConditionalGeneration, internvl()),
        image_run=lambda variant: [IMAGE_START, *[IMAGE] * (9 * TILES[variant]), IMAGE_END],
        image_inputs=pixels,
    )
)
