"""Idefics2, Idefics3 and SmolVLM: images are given per row, padded with black images."""

from __future__ import annotations

import torch
from transformers import (
    Idefics2Config,
    Idefics2ForConditionalGeneration,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    LlamaConfig,
    MistralConfig,
    SmolVLMConfig,
    SmolVLMForConditionalGeneration,
)

from zoo.entry import Family, Inputs, register
from zoo.prompts import IMAGE, IMAGE_START, PAD, SPECIAL_A, Image
from zoo.shapes import HEAD_DIM, text_shape, vision_shape

SIDE = 24  # pixels; 6 x 6 patches, shuffled 2 x 2 to 9 tokens
TILES = (1, 2)  # tiles of an image of variant 0 and 1


def run(image: Image) -> list[int]:
    """Each tile is a marker, a place marker and 9 image tokens; the image ends with a marker."""
    ids: list[int] = []
    for _ in range(TILES[image.variant]):
        ids += [IMAGE_START, PAD, SPECIAL_A, *[IMAGE] * 9]
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


def smolvlm() -> SmolVLMConfig:
    text = LlamaConfig(**text_shape())
    return SmolVLMConfig(
        text_config=text, vision_config=vision_shape(), image_token_id=IMAGE, scale_factor=2, pad_token_id=0
    )


def idefics3() -> Idefics3Config:
    text = LlamaConfig(**text_shape())
    return Idefics3Config(
        text_config=text, vision_config=vision_shape(), image_token_id=IMAGE, scale_factor=2, pad_token_id=0
    )


def idefics2() -> Idefics2Config:
    perceiver = {
        "hidden_size": 64,
        "resampler_n_latents": 9,
        "resampler_depth": 2,
        "resampler_n_heads": 4,
        "resampler_head_dim": 16,
        "num_key_value_heads": 2,
    }
    return Idefics2Config(
        text_config=MistralConfig(**text_shape(head_dim=HEAD_DIM, sliding_window=None)),
        vision_config=vision_shape(),
        perceiver_config=perceiver,
        image_token_id=IMAGE,
    )


for name, model_class, config in (
    ("idefics2", Idefics2ForConditionalGeneration, idefics2),
    ("idefics3", Idefics3ForConditionalGeneration, idefics3),
    ("smolvlm", SmolVLMForConditionalGeneration, smolvlm),
):
    register(
        Family(
            name=name,
            model=lambda model_class=model_class, config=config: (model_class, config()),
            image_run=run,
            image_inputs=pixels,
        )
    )
