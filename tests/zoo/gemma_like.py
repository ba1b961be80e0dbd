"""Models with a Gemma text decoder: image blocks are attended in both directions through the mask."""

from __future__ import annotations

import torch
from transformers import (
    Gemma2Config,
    Gemma3Config,
    Gemma3ForConditionalGeneration,
    GemmaConfig,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    SiglipVisionConfig,
)

from zoo.entry import Family, Inputs, register
from zoo.llava_like import flat
from zoo.prompts import IMAGE, IMAGE_END, IMAGE_START, Image
from zoo.shapes import HEAD_DIM, text_shape, vision_shape

SIDE = 24  # pixels; 6 x 6 patches, pooled to 3 x 3 in Gemma 3
SLIDING_WINDOW = 16  # shorter than the prompts


def pixels(rows: list[list[Image]]) -> Inputs:
    return {"pixel_values": torch.stack([image.pixels(3, SIDE, SIDE) for image in flat(rows)])}


def gemma3() -> Gemma3Config:
    return Gemma3Config(
        text_config=text_shape(
            num_hidden_layers=4,
            head_dim=HEAD_DIM,
            query_pre_attn_scalar=HEAD_DIM,
            sliding_window=SLIDING_WINDOW,
            layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
        ),
        vision_config=SiglipVisionConfig(**vision_shape(vision_use_head=False)),
        mm_tokens_per_image=9,
        image_token_index=IMAGE,
        boi_token_index=IMAGE_START,
        eoi_token_index=IMAGE_END,
    )


register(
    Family(
        name="gemma3",
        model=lambda: (Gemma3ForConditionalGeneration, gemma3()),
        image_run=lambda image: [IMAGE_START, *[IMAGE] * 9, IMAGE_END],
        image_inputs=pixels,
        token_inputs=lambda input_ids, attention_mask: {"token_type_ids": (input_ids == IMAGE).long()},
        stock_differences=("chunked prefill",),  # a chunk cannot see the rest of its image block
    )
)

# PaliGemma has no markers around the image; the whole prompt (token type 0) is attended in both directions.
PALIGEMMA_SIDE = 16  # pixels; 4 x 4 patches


def paligemma(text_config: object) -> PaliGemmaConfig:
    return PaliGemmaConfig(
        text_config=text_config,
        vision_config=SiglipVisionConfig(
            **vision_shape(image_size=PALIGEMMA_SIDE, vision_use_head=False, projection_dim=64)
        ),
        image_token_index=IMAGE,
        projection_dim=64,
        hidden_size=64,
        vocab_size=200,
    )


def paligemma_pixels(rows: list[list[Image]]) -> Inputs:
    side = PALIGEMMA_SIDE
    return {"pixel_values": torch.stack([image.pixels(3, side, side) for image in flat(rows)])}


def gemma2() -> Gemma2Config:
    return Gemma2Config(
        **text_shape(
            num_hidden_layers=4,
            head_dim=HEAD_DIM,
            query_pre_attn_scalar=HEAD_DIM,
            sliding_window=SLIDING_WINDOW,
            attn_logit_softcapping=3.0,
            final_logit_softcapping=30.0,
        )
    )


for name, text, attention, facts in (
    ("paligemma", lambda: GemmaConfig(**text_shape(head_dim=HEAD_DIM)), None, ""),
    ("paligemma2", gemma2, {"text_config": "eager"}, "soft cap, sliding layers"),
):
    register(
        Family(
            name=name,
            model=lambda text=text: (PaliGemmaForConditionalGeneration, paligemma(text())),
            image_run=lambda image: [IMAGE] * 16,
            image_inputs=paligemma_pixels,
            token_inputs=lambda input_ids, attention_mask: {"token_type_ids": torch.zeros_like(input_ids)},
            attention=attention,
            stock_differences=("chunked prefill", "assistant model"),
            stock_failures=("static cache",) if name == "paligemma2" else (),
            facts=facts,
        )
    )
