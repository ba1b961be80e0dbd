"""Families without an ordinary vision tower or layout: Fuyu, Chameleon, Molmo2."""

from __future__ import annotations

import torch
import transformers
from transformers import ChameleonConfig, ChameleonForConditionalGeneration, FuyuConfig, FuyuForCausalLM

from zoo.entry import Family, Inputs, register
from zoo.llava_like import flat
from zoo.prompts import (
    IMAGE,
    IMAGE_BREAK,
    IMAGE_END,
    IMAGE_START,
    SPECIAL_A,
    SPECIAL_B,
    VOCABULARY,
    Image,
)
from zoo.shapes import HEAD_DIM, PATCH, text_shape

# Fuyu: linear patches, a newline token after each row of patches.
FUYU_ROWS, FUYU_COLUMNS = 3, 4


def fuyu() -> FuyuConfig:
    text = text_shape(hidden_act="relu2", qk_layernorm=True)
    del text["num_key_value_heads"]
    return FuyuConfig(**text, patch_size=PATCH, image_token_id=IMAGE)


def fuyu_pixels(rows: list[list[Image]]) -> Inputs:
    count = FUYU_ROWS * FUYU_COLUMNS
    return {"pixel_values": torch.stack([image.pixels(count, PATCH * PATCH * 3) for image in flat(rows)])}


register(
    Family(
        name="fuyu",
        model=lambda: (FuyuForCausalLM, fuyu()),
        image_run=lambda image: [*[*[IMAGE] * FUYU_COLUMNS, IMAGE_BREAK] * FUYU_ROWS, SPECIAL_A],
        image_inputs=fuyu_pixels,
        stock_failures=("beam search", "return sequences", "chunked prefill"),
        facts="no vision tower; all query heads have their own keys",
    )
)

# Chameleon: images become ids of a visual vocabulary, which the model never generates.
CHAMELEON_SIDE = 8  # pixels; halved once: 4 x 4 tokens
VISUAL_WORDS = 32


def chameleon() -> ChameleonConfig:
    letters = "ABCDEFGHIJ"  # the visual words are named by their number in these digits
    names = ["IMGIMG" + "".join(letters[int(digit)] for digit in str(number)) + "Z" for number in range(VISUAL_WORDS)]
    return ChameleonConfig(
        **text_shape(vocab_size=VOCABULARY + VISUAL_WORDS),
        vocabulary_map={"<image>": IMAGE} | {name: VOCABULARY + number for number, name in enumerate(names)},
        vq_config={
            "embed_dim": 8,
            "num_embeddings": VISUAL_WORDS,
            "latent_channels": 8,
            "resolution": CHAMELEON_SIDE,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
        },
    )


def chameleon_pixels(rows: list[list[Image]]) -> Inputs:
    side = CHAMELEON_SIDE
    return {"pixel_values": torch.stack([image.pixels(3, side, side) for image in flat(rows)])}


register(
    Family(
        name="chameleon",
        model=lambda: (ChameleonForConditionalGeneration, chameleon()),
        image_run=lambda image: [IMAGE_START, *[IMAGE] * 16, IMAGE_END],
        image_inputs=chameleon_pixels,
        facts="no vision tower; logits of the visual vocabulary are set to the lowest value",
    )
)

# Molmo2: a low-resolution crop and 1 or 2 high-resolution crops of 4 x 4 patches, pooled 2 x 2 by attention.
MOLMO_CROPS = (1, 2)
MOLMO_PATCHES = 4  # per side of a crop


def molmo2() -> transformers.Molmo2Config:
    tower = {
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    side = MOLMO_PATCHES * PATCH
    return transformers.Molmo2Config(
        text_config=text_shape(head_dim=HEAD_DIM, additional_vocab_size=8),
        vision_config=tower | {"num_hidden_layers": 2, "image_size": [side, side], "patch_size": PATCH},
        adapter_config=tower | {"vision_feature_layer": [-1, -2], "text_hidden_size": 64},
        image_start_token_id=IMAGE_START,
        low_res_image_start_token_id=SPECIAL_A,
        image_end_token_id=IMAGE_END,
        image_patch_id=IMAGE,
        frame_start_token_id=SPECIAL_B,
        frame_end_token_id=SPECIAL_B,
    )


def molmo2_run(image: Image) -> list[int]:
    low = [*[IMAGE] * 2, IMAGE_BREAK] * 2
    high = [*[IMAGE] * (2 * MOLMO_CROPS[image.variant]), IMAGE_BREAK] * 2
    return [SPECIAL_A, *low, IMAGE_END, IMAGE_START, *high, IMAGE_END]


def _pooled(grid: torch.Tensor) -> torch.Tensor:
    """Patch numbers [rows, columns] grouped 2 x 2: [rows / 2 * columns / 2, 4]."""
    windows = grid.unfold(0, 2, 2).unfold(1, 2, 2)
    return windows.reshape(-1, 4)


def molmo2_pixels(rows: list[list[Image]]) -> Inputs:
    crops, pooling, grids, counts, offset = [], [], [], [], 0
    patches = MOLMO_PATCHES**2
    for image in flat(rows):
        high = MOLMO_CROPS[image.variant]
        numbers = torch.arange(patches * (1 + high)).view(1 + high, MOLMO_PATCHES, MOLMO_PATCHES)
        side_by_side = torch.cat(list(numbers[1:]), dim=1)
        pooling.append(offset + torch.cat([_pooled(numbers[0]), _pooled(side_by_side)]))
        crops.append(image.pixels(1 + high, patches, PATCH * PATCH * 3))
        grids.append([2, 2, 2, 2 * high])
        counts.append(1 + high)
        offset += numbers.numel()
    return {
        "pixel_values": torch.cat(crops),
        "image_token_pooling": torch.cat(pooling),
        "image_grids": torch.tensor(grids),
        "image_num_crops": torch.tensor(counts),
    }


def molmo2_types(input_ids: torch.Tensor, attention_mask: torch.Tensor) -> Inputs:
    image_ids = torch.tensor([IMAGE, IMAGE_BREAK, IMAGE_START, IMAGE_END, SPECIAL_A])
    return {"mm_token_type_ids": torch.isin(input_ids, image_ids).long()}


# The release that vLLM 0.32 goes with has no Molmo2 yet.
if hasattr(transformers, "Molmo2Config"):
    register(
        Family(
            name="molmo2",
            model=lambda: (transformers.Molmo2ForConditionalGeneration, molmo2()),
            image_run=molmo2_run,
            image_inputs=molmo2_pixels,
            token_inputs=molmo2_types,
            stock_differences=("chunked prefill",),
            facts="image tokens and their markers are attended in both directions",
        )
    )
