"""Families whose images do not stand in the token sequence as ordinary image tokens: Mllama, Q-formers, GIT."""

from __future__ import annotations

import torch
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    GitConfig,
    GitForCausalLM,
    InstructBlipConfig,
    InstructBlipForConditionalGeneration,
    InstructBlipVideoConfig,
    InstructBlipVideoForConditionalGeneration,
    LlamaConfig,
    MllamaConfig,
    MllamaForConditionalGeneration,
    OPTConfig,
)

from zoo.entry import Family, Inputs, register
from zoo.llava_like import LLAVA_SIDE, flat, llava_pixels
from zoo.prompts import IMAGE, SPECIAL_IDS, VIDEO, VOCABULARY, Image, generator
from zoo.shapes import HIDDEN, PATCH, text_shape, vision_shape

# Mllama: one marker token per image; text attends the tiles in cross-attention layers.
MLLAMA_TILES = (1, 2)  # tiles of an image of variant 0 and 1
MOST_TILES = 2


def mllama() -> MllamaConfig:
    tower = vision_shape(image_size=LLAVA_SIDE)
    tower["attention_heads"] = tower.pop("num_attention_heads")
    return MllamaConfig(
        text_config=text_shape(num_hidden_layers=4, cross_attention_layers=[1, 3]),
        vision_config=tower
        | {
            "num_global_layers": 1,
            "vision_output_dim": 64,  # the last and one intermediate layer
            "intermediate_layers_indices": [0],
            "max_num_tiles": MOST_TILES,
            "supported_aspect_ratios": [[1, 1], [1, 2]],
        },
        image_token_index=IMAGE,
    )


def mllama_pixels(rows: list[list[Image]]) -> Inputs:
    most = max(map(len, rows))
    values = torch.zeros(len(rows), most, MOST_TILES, 3, LLAVA_SIDE, LLAVA_SIDE)
    shapes = torch.zeros(len(rows), most, dtype=torch.long)  # 0 stands for no image
    tiles = torch.zeros(len(rows), most, MOST_TILES, dtype=torch.long)
    tiles[:, :, 0] = 1  # as the processor does for absent images, too
    for number, row in enumerate(rows):
        for image in row:
            count = MLLAMA_TILES[image.variant]
            values[number, image.index, :count] = image.pixels(count, 3, LLAVA_SIDE, LLAVA_SIDE)
            shapes[number, image.index] = 1 + image.variant
            tiles[number, image.index, :count] = 1
    return {"pixel_values": values, "aspect_ratio_ids": shapes, "aspect_ratio_mask": tiles}


def mllama_cross_mask(rows: list[list[Image]], input_ids: torch.Tensor) -> Inputs:
    """[B, S, images, tiles]: text sees an image from its marker to the next marker, the last image to the end."""
    mask = torch.zeros(*input_ids.shape, max(map(len, rows)), MOST_TILES, dtype=torch.long)
    for number, row in enumerate(rows):
        starts = (input_ids[number] == IMAGE).nonzero().flatten().tolist()
        ends = [*starts[1:], input_ids.shape[1]][: len(starts)]
        for image, start, end in zip(row, starts, ends, strict=True):
            mask[number, start:end, image.index, : MLLAMA_TILES[image.variant]] = 1
    return {"cross_attention_mask": mask}


register(
    Family(
        name="mllama",
        model=lambda: (MllamaForConditionalGeneration, mllama()),
        image_run=lambda image: [IMAGE],
        image_inputs=mllama_pixels,
        joint_inputs=mllama_cross_mask,
        batch_invariant=False,
        stock_failures=("chunked prefill", "assistant model"),
        facts="layers 1 and 3 of 4 are cross attention, all of whose keys are visual; the image token is a marker; "
        "not batch invariant where rows have unequal numbers of images (logits differ by up to 6.5): text in front "
        "of the first image attends all image slots of the batch, absent ones too",
    )
)

# BLIP-2 and InstructBLIP: a Q-former turns an image into 8 query tokens.
QUERY_TOKENS = 8


def qformer() -> dict[str, object]:
    return {
        "vocab_size": VOCABULARY,
        "hidden_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 2,
        "intermediate_size": 48,
        "max_position_embeddings": 64,
        "cross_attention_frequency": 2,
    }


def blip2() -> Blip2Config:
    text = text_shape(ffn_dim=96, word_embed_proj_dim=HIDDEN)
    for name in ("intermediate_size", "num_key_value_heads"):
        del text[name]
    return Blip2Config(
        text_config=OPTConfig(**text),
        vision_config=vision_shape(image_size=LLAVA_SIDE),
        qformer_config=qformer(),
        num_query_tokens=QUERY_TOKENS,
        image_token_index=IMAGE,
    )


def instructblip() -> InstructBlipConfig:
    return InstructBlipConfig(
        text_config=LlamaConfig(**text_shape()),
        vision_config=vision_shape(image_size=LLAVA_SIDE),
        qformer_config=qformer(),
        num_query_tokens=QUERY_TOKENS,
        image_token_index=IMAGE,
    )


def instruction(rows: list[list[Image]], input_ids: torch.Tensor) -> Inputs:
    """The Q-former's own text, one instruction of unequal length per image, padded on the right."""
    images = flat(rows)
    ids = torch.zeros(len(images), 6, dtype=torch.long)
    mask = torch.zeros_like(ids)
    for number, image in enumerate(images):
        count = 4 + image.variant * 2
        source = generator("instruction", image.seed, image.content)
        ids[number, :count] = torch.randint(len(SPECIAL_IDS), VOCABULARY, (count,), generator=source)
        mask[number, :count] = 1
    return {"qformer_input_ids": ids, "qformer_attention_mask": mask}


register(
    Family(
        name="blip_2",
        model=lambda: (Blip2ForConditionalGeneration, blip2()),
        image_run=lambda image: [IMAGE] * QUERY_TOKENS,
        image_inputs=llava_pixels,
        images_per_row=1,
        stock_failures=("chunked prefill", "assistant model"),
        facts="OPT text decoder; its own generate, which calls the text decoder's with embeddings",
    )
)

register(
    Family(
        name="instructblip",
        model=lambda: (InstructBlipForConditionalGeneration, instructblip()),
        image_run=lambda image: [IMAGE] * QUERY_TOKENS,
        image_inputs=llava_pixels,
        joint_inputs=instruction,
        images_per_row=1,
        stock_failures=("chunked prefill", "assistant model"),
        facts="its own generate, which calls the text decoder's with embeddings",
    )
)

# InstructBLIP for video: the same for each of 4 frames; an image of the prompt is a video.
FRAMES = 4


def video_frames(rows: list[list[Image]]) -> Inputs:
    return {"pixel_values": torch.stack([video.pixels(FRAMES, 3, LLAVA_SIDE, LLAVA_SIDE) for video in flat(rows)])}


def instructblip_video() -> InstructBlipVideoConfig:
    shape = instructblip()
    return InstructBlipVideoConfig(
        text_config=shape.text_config,
        vision_config=vision_shape(image_size=LLAVA_SIDE),
        qformer_config=qformer(),
        num_query_tokens=QUERY_TOKENS,
        video_token_index=VIDEO,
    )


register(
    Family(
        name="instructblip_video",
        model=lambda: (InstructBlipVideoForConditionalGeneration, instructblip_video()),
        image_run=lambda image: [VIDEO] * QUERY_TOKENS * FRAMES,
        image_inputs=video_frames,
        joint_inputs=instruction,
        image_token_id=VIDEO,
        images_per_row=1,
        stock_failures=("chunked prefill", "assistant model"),
        facts="its own generate, which calls the text decoder's with embeddings; every image is a video",
    )
)

# GIT: image features are put in front of the text, no token stands for them; attention is the model's own code.


def git() -> GitConfig:
    text = text_shape()
    del text["num_key_value_heads"]
    return GitConfig(**text, vision_config=vision_shape(image_size=LLAVA_SIDE, patch_size=PATCH))


register(
    Family(
        name="git",
        model=lambda: (GitForCausalLM, git()),
        image_run=lambda image: [],
        image_inputs=llava_pixels,
        image_token_id=None,
        images_per_row=1,
        dispatches=False,
        batch_invariant=False,
        stock_failures=("static cache", "chunked prefill"),
        facts="text attention does not go through the attention interface; not batch invariant (logits of a padded "
        "row differ by up to 6.9): learned absolute positions count the padding",
    )
)
