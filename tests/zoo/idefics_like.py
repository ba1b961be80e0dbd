"""Idefics2, Idefics3 and SmolVLM: images are given per row, padded with black images."""

from __future__ import annotations

import torch
from transformers import LlamaConfig, SmolVLMConfig, SmolVLMForConditionalGeneration

from zoo.entry import Family, Inputs, register
from zoo.prompts import IMAGE, IMAGE_START, SPECIAL_A, Image
from zoo.shapes import text_shape, vision_shape

SIDE = 24  # pixels; 6 x 6 patches, shuffled 2 x 2 to 9 tokens
TILES = (1, 2)  # tiles of an image of variant 0 and 1


def run(variant: int) -> list[int]:
    """Each tile is a marker, a place marker and 9 image tokens; the image ends with a marker."""
    ids: list[int] = []
    for _ in range(TILES[variant]):
        ids += [IMAGE_START, SPECIAL_A, *[IMAGE] * 9]
    return [*ids, IMAGE_START]


def pixels(rows: list[list[Image]]) -> Inputs:
    """``pixel_values`` [B, most tiles of a row, 3, SIDE, SIDE]; absent tiles are zero and masked."""
    tiles = [sum(TILES[image.variant] for image in row) for row in rows]
    values = torch.zeros(len(rows), max(tiles), 3, SIDE, SIDE)
    mask = torch.zeros(len(rows), max(tiles), SIDE, SIDE, dtype=torch.long)
    for number, row in enumerate(rows):
        if row:
            content = [image.pixels(TILES[image.variant], 3, SIDE, SIDE) for image in row]
            values[number, : tiles[number]] = torch.cat(content)
            mask[number, : tiles[number]] = 1
    return {"pixel_values": values, "pixel_attention_mask": mask}


register(
    Family(
        name="smolvlm",
        model=lambda: (
            SmolVLMForConditionalGeneration,
            SmolVLMConfig(
                text_config=LlamaConfig(**text_shape()),
                vision_config=vision_shape(),
                image_token_id=IMAGE,
                scale_factor=2,
                pad_token_id=0,
            ),
        ),
        image_run=run,
        image_inputs=pixels,
    )
)
