"""Aria: a few queries read the patches of a picture by cross-attention; the decoder has experts."""

from __future__ import annotations

import torch
from transformers import AriaConfig, AriaForConditionalGeneration

from zoo.entry import Family, Inputs, register
from zoo.llava_like import flat
from zoo.prompts import IMAGE, Image
from zoo.shapes import PATCH, text_shape, vision_shape

SIDE = 24  # pixels; 6 x 6 patches, of which 36 are there or 24 (variant 1: lower rows are padding)
QUERIES = 8
HEIGHTS = (24, 16)


def aria(side: int = SIDE, patch: int = PATCH) -> AriaConfig:
    return AriaConfig(
        text_config=text_shape(moe_num_experts=4, moe_topk=2, moe_num_shared_experts=1),
        vision_config={"model_type": "idefics3_vision", **vision_shape(image_size=side, patch_size=patch)},
        projector_patch_to_query_dict={(side // patch) ** 2: QUERIES},
        image_token_index=IMAGE,
    )


def pixels(rows: list[list[Image]]) -> Inputs:
    images = flat(rows)
    values = torch.stack([image.pixels(3, SIDE, SIDE) for image in images])
    mask = torch.zeros(len(images), SIDE, SIDE, dtype=torch.bool)
    for number, image in enumerate(images):
        mask[number, : HEIGHTS[image.variant]] = True
    return {"pixel_values": values * mask[:, None], "pixel_mask": mask}


register(
    Family(
        name="aria",
        model=lambda: (AriaForConditionalGeneration, aria()),
        image_run=lambda image: [IMAGE] * QUERIES,
        image_inputs=pixels,
        facts="experts; every image is 8 queries",
    )
)
