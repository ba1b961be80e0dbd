"""LLaVA and its relatives: a CLIP or SigLIP tower, a projector, any text decoder."""

from __future__ import annotations

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
)

from zoo.entry import Family, Inputs, register
from zoo.prompts import IMAGE, Image
from zoo.shapes import text_shape, vision_shape

LLAVA_SIDE = 16  # pixels; 4 x 4 patches of 4


def flat(rows: list[list[Image]]) -> list[Image]:
    return [image for row in rows for image in row]


def llava_pixels(rows: list[list[Image]]) -> Inputs:
    return {"pixel_values": torch.stack([image.pixels(3, LLAVA_SIDE, LLAVA_SIDE) for image in flat(rows)])}


def llava_config(text_config: object) -> LlavaConfig:
    return LlavaConfig(
        text_config=text_config,
        vision_config=CLIPVisionConfig(**vision_shape(image_size=LLAVA_SIDE)),
        image_token_index=IMAGE,
        image_seq_length=16,
        vision_feature_layer=-2,
    )


register(
    Family(
        name="llava",
        model=lambda: (LlavaForConditionalGeneration, llava_config(LlamaConfig(**text_shape()))),
        image_run=lambda variant: [IMAGE] * 16,
        image_inputs=llava_pixels,
    )
)

# LLaVA-NeXT: a base tile and the tiles of the best resolution, each 8 x 8 pixels = 2 x 2 patches.
NEXT_TILE = 8
NEXT_PINPOINTS = [[8, 16], [16, 8]]
NEXT_SIZES = [(8, 16), (16, 8)]  # height, width


def next_run(variant: int) -> list[int]:
    height, width = NEXT_SIZES[variant]
    rows, columns = height // 4, width // 4
    return [IMAGE] * (2 * 2 + rows * (columns + 1))  # the base tile, then each row with its newline


def next_pixels(rows: list[list[Image]]) -> Inputs:
    images = flat(rows)
    return {
        "pixel_values": torch.stack([image.pixels(3, 3, NEXT_TILE, NEXT_TILE) for image in images]),
        "image_sizes": torch.tensor([NEXT_SIZES[image.variant] for image in images]),
    }


register(
    Family(
        name="llava_next",
        model=lambda: (
            LlavaNextForConditionalGeneration,
            LlavaNextConfig(
                text_config=LlamaConfig(**text_shape()),
                vision_config=CLIPVisionConfig(**vision_shape(image_size=NEXT_TILE)),
                image_token_index=IMAGE,
                image_grid_pinpoints=NEXT_PINPOINTS,
                vision_feature_layer=-2,
            ),
        ),
        image_run=next_run,
        image_inputs=next_pixels,
    )
)
