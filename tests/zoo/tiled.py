"""Families whose images are square, or are cut into square tiles, with a fixed number of tokens per tile."""

from __future__ import annotations

from collections.abc import Callable

import torch
from transformers import (
    AyaVisionConfig,
    AyaVisionForConditionalGeneration,
    Cohere2Config,
    Cohere2VisionConfig,
    Cohere2VisionForConditionalGeneration,
    DeepseekVLConfig,
    DeepseekVLForConditionalGeneration,
    InternVLConfig,
    InternVLForConditionalGeneration,
    JanusConfig,
    JanusForConditionalGeneration,
    Llama4Config,
    Llama4ForConditionalGeneration,
    LlamaConfig,
    Ovis2Config,
    Ovis2ForConditionalGeneration,
    PreTrainedConfig,
    Qwen2Config,
    SiglipVisionConfig,
)

from zoo.entry import Family, Inputs, register
from zoo.llava_like import flat
from zoo.prompts import IMAGE, IMAGE_BREAK, IMAGE_END, IMAGE_START, SPECIAL_A, SPECIAL_B, Image
from zoo.shapes import HEAD_DIM, PATCH, text_shape, vision_shape

SIDE = 24  # pixels of a tile; 6 x 6 patches, merged 2 x 2 to 9 tokens
SMALL_SIDE = 16  # pixels where patches are not merged: 4 x 4 tokens
TILES = (1, 2)  # tiles of an image of variant 0 and 1
WINDOW = 16  # sliding window and attention chunk, shorter than the prompts


def tiles(rows: list[list[Image]]) -> Inputs:
    return {"pixel_values": torch.cat([image.pixels(TILES[image.variant], 3, SIDE, SIDE) for image in flat(rows)])}


def tile_run(image: Image) -> list[int]:
    """All tiles between one pair of markers (InternVL, Ovis2)."""
    return [IMAGE_START, *[IMAGE] * (9 * TILES[image.variant]), IMAGE_END]


def marked_tile_run(image: Image) -> list[int]:
    """A marker in front of each tile (Aya Vision, Command A Vision, Llama 4)."""
    return [IMAGE_START, *[IMAGE_BREAK, *[IMAGE] * 9] * TILES[image.variant], IMAGE_END]


def square(rows: list[list[Image]]) -> Inputs:
    return {"pixel_values": torch.stack([image.pixels(3, SMALL_SIDE, SMALL_SIDE) for image in flat(rows)])}


def square_run(image: Image) -> list[int]:
    return [IMAGE_START, *[IMAGE] * 16, IMAGE_END]


def internvl() -> InternVLConfig:
    return InternVLConfig(
        text_config=Qwen2Config(**text_shape()),
        vision_config=vision_shape(image_size=[SIDE, SIDE], patch_size=[PATCH, PATCH]),
        image_token_id=IMAGE,
        image_seq_length=9,
    )


def cohere2() -> Cohere2Config:
    return Cohere2Config(
        **text_shape(
            num_hidden_layers=4,
            head_dim=HEAD_DIM,
            sliding_window=WINDOW,
            layer_types=["sliding_attention", "full_attention"] * 2,
            logit_scale=1.0,
        )
    )


def aya_vision() -> AyaVisionConfig:
    tower = SiglipVisionConfig(**vision_shape(vision_use_head=False))
    return AyaVisionConfig(text_config=cohere2(), vision_config=tower, image_token_index=IMAGE)


def cohere2_vision() -> Cohere2VisionConfig:
    return Cohere2VisionConfig(
        text_config=cohere2(),
        vision_config=SiglipVisionConfig(**vision_shape(vision_use_head=False)),
        image_token_id=IMAGE,
        alignment_intermediate_size=64,
    )


def llama4() -> Llama4Config:
    return Llama4Config(
        text_config=text_shape(
            num_hidden_layers=4,
            head_dim=HEAD_DIM,
            intermediate_size_mlp=96,
            num_local_experts=4,
            interleave_moe_layer_step=2,
            no_rope_layers=[1, 0, 1, 0],
            attention_chunk_size=WINDOW,
        ),
        vision_config=vision_shape(
            intermediate_size=128,  # what the pixel shuffle of 32 channels gives
            projector_input_dim=64,
            projector_output_dim=64,
            vision_output_dim=64,
        ),
        image_token_index=IMAGE,
        boi_token_index=IMAGE_START,
        eoi_token_index=IMAGE_END,
    )


def ovis2() -> Ovis2Config:
    tower = vision_shape(hidden_stride=2, vocab_size=48, num_visual_indicator_tokens=5)
    return Ovis2Config(
        text_config=Qwen2Config(**text_shape()),
        vision_config=tower,
        image_token_id=IMAGE,
        visual_indicator_token_ids=[IMAGE_START, IMAGE_END, IMAGE_BREAK, SPECIAL_A, SPECIAL_B],
        vocab_size=200,
        hidden_size=64,
    )


def deepseek_vl() -> DeepseekVLConfig:
    return DeepseekVLConfig(
        text_config=LlamaConfig(**text_shape()),
        vision_config=SiglipVisionConfig(**vision_shape(image_size=SMALL_SIDE)),
        image_token_id=IMAGE,
    )


def janus() -> JanusConfig:
    return JanusConfig(
        text_config=LlamaConfig(**text_shape()),
        vision_config=vision_shape(image_size=SMALL_SIDE, projection_dim=64, mlp_ratio=2, num_image_tokens=16),
        vq_config={
            "embed_dim": 8,
            "num_embeddings": 16,
            "latent_channels": 32,
            "base_channels": 32,
            "channel_multiplier": [1, 1],
            "num_res_blocks": 1,
            "num_patches": 8,
            "projection_dim": 64,
            "image_token_embed_dim": 64,
        },
        image_token_id=IMAGE,
    )


Layout = tuple[Callable[[Image], list[int]], Callable[[list[list[Image]]], Inputs]]
TILED: Layout = (tile_run, tiles)
MARKED: Layout = (marked_tile_run, tiles)
SQUARE: Layout = (square_run, square)

MODELS: dict[str, tuple[type, Callable[[], PreTrainedConfig], Layout, str]] = {
    "internvl": (InternVLForConditionalGeneration, internvl, TILED, ""),
    "aya_vision": (AyaVisionForConditionalGeneration, aya_vision, MARKED, "sliding layers"),
    "cohere2_vision": (Cohere2VisionForConditionalGeneration, cohere2_vision, MARKED, "sliding layers"),
    "llama4": (Llama4ForConditionalGeneration, llama4, MARKED, "chunked attention, experts"),
    "ovis2": (Ovis2ForConditionalGeneration, ovis2, TILED, "visual tokens are mixtures of a visual vocabulary"),
    "deepseek_vl": (DeepseekVLForConditionalGeneration, deepseek_vl, SQUARE, ""),
    "janus": (JanusForConditionalGeneration, janus, SQUARE, ""),
}

STOCK_FAILURES = {
    "llama4": ("beam search", "return sequences", "chunked prefill"),
    "ovis2": ("chunked prefill",),
}

for name, (model_class, config, (run, image_inputs), facts) in MODELS.items():
    register(
        Family(
            name=name,
            model=lambda model_class=model_class, config=config: (model_class, config()),
            image_run=run,
            image_inputs=image_inputs,
            stock_failures=STOCK_FAILURES.get(name, ()),
            facts=facts,
        )
    )
