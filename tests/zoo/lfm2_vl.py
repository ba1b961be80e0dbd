"""LFM2-VL: SigLIP 2 patches of any grid, merged 2 x 2; decoder layers of short convolutions between attention."""

from __future__ import annotations

import torch
from transformers import Lfm2VlConfig, Lfm2VlForConditionalGeneration

from zoo.entry import Family, Inputs, register
from zoo.llava_like import flat
from zoo.prompts import IMAGE, IMAGE_END, IMAGE_START, Image
from zoo.shapes import PATCH, text_shape, vision_shape

GRIDS = [(6, 6), (4, 8)]  # patch rows, patch columns: 9 and 8 merged tokens
MOST_PATCHES = 36


def lfm2_vl() -> Lfm2VlConfig:
    text = text_shape(num_hidden_layers=4, layer_types=["conv", "full_attention"] * 2, block_auto_adjust_ff_dim=False)
    tower = vision_shape(num_patches=16)
    del tower["image_size"]
    return Lfm2VlConfig(
        text_config={"model_type": "lfm2", **text},
        vision_config={"model_type": "siglip2_vision_model", **tower},
        projector_hidden_size=64,
        image_token_id=IMAGE,
    )


def run(image: Image) -> list[int]:
    rows, columns = GRIDS[image.variant]
    return [IMAGE_START, *[IMAGE] * (rows * columns // 4), IMAGE_END]


def pixels(rows: list[list[Image]]) -> Inputs:
    """Patches [images, MOST_PATCHES, 3 * PATCH * PATCH], padded with zeros and masked."""
    images = flat(rows)
    values = torch.zeros(len(images), MOST_PATCHES, 3 * PATCH * PATCH)
    mask = torch.zeros(len(images), MOST_PATCHES, dtype=torch.long)
    for number, image in enumerate(images):
        count = GRIDS[image.variant][0] * GRIDS[image.variant][1]
        values[number, :count] = image.pixels(count, 3 * PATCH * PATCH)
        mask[number, :count] = 1
    shapes = torch.tensor([GRIDS[image.variant] for image in images])
    return {"pixel_values": values, "spatial_shapes": shapes, "pixel_attention_mask": mask}


register(
    Family(
        name="lfm2_vl",
        model=lambda: (Lfm2VlForConditionalGeneration, lfm2_vl()),
        image_run=run,
        image_inputs=pixels,
        facts="layers 1 and 3 of 4 are attention, 0 and 2 convolutions; input and output embeddings are one",
    )
)
