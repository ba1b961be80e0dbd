"""LLaVA and its relatives: a CLIP or SigLIP tower, a projector, any text decoder."""

from __future__ import annotations

import torch
from transformers import (
    CLIPVisionConfig,
    Gemma2Config,
    GptOssConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    Mistral3Config,
    Mistral3ForConditionalGeneration,
    MistralConfig,
    PixtralVisionConfig,
    Qwen2Config,
    SiglipVisionConfig,
    VideoLlavaConfig,
    VideoLlavaForConditionalGeneration,
)

from zoo.entry import Family, Inputs, register
from zoo.prompts import IMAGE, IMAGE_BREAK, IMAGE_END, VIDEO, Image
from zoo.shapes import HEAD_DIM, text_shape, vision_shape

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
        image_run=lambda image: [IMAGE] * 16,
        image_inputs=llava_pixels,
    )
)

# LLaVA-NeXT: a base tile and the tiles of the best resolution, each 8 x 8 pixels = 2 x 2 patches.
NEXT_TILE = 8
NEXT_PINPOINTS = [[8, 16], [16, 8]]
NEXT_SIZES = [(8, 16), (16, 8)]  # height, width


def next_run(image: Image) -> list[int]:
    height, width = NEXT_SIZES[image.variant]
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

# LLaVA-OneVision: as LLaVA-NeXT with a tower without class token; a row with several images uses base tiles only.


ONEVISION_FRAMES = 8


def video_pixels(rows: list[list[Image]], frames: int, side: int) -> Inputs:
    return {"pixel_values_videos": torch.stack([video.pixels(frames, 3, side, side) for video in flat(rows)])}


def onevision_run(image: Image) -> list[int]:
    if image.images_in_row > 1:
        return [IMAGE] * (2 * 2 + 1)
    return next_run(image)


def onevision_pixels(rows: list[list[Image]]) -> Inputs:
    counts = [len(row) for row in rows if row]
    return next_pixels(rows) | {"batch_num_images": torch.tensor(counts)}


register(
    Family(
        name="llava_onevision",
        model=lambda: (
            LlavaOnevisionForConditionalGeneration,
            LlavaOnevisionConfig(
                text_config=Qwen2Config(**text_shape()),
                vision_config=SiglipVisionConfig(**vision_shape(image_size=NEXT_TILE, vision_use_head=False)),
                image_token_index=IMAGE,
                video_token_index=VIDEO,
                image_grid_pinpoints=NEXT_PINPOINTS,
            ),
        ),
        image_run=onevision_run,
        image_inputs=onevision_pixels,
        video_run=lambda video: [VIDEO] * (ONEVISION_FRAMES + 1),  # 2 x 2 patches pooled to one, a newline
        video_inputs=lambda rows: video_pixels(rows, ONEVISION_FRAMES, NEXT_TILE),
    )
)

register(
    Family(
        name="video_llava",
        model=lambda: (
            VideoLlavaForConditionalGeneration,
            VideoLlavaConfig(
                text_config=LlamaConfig(**text_shape()),
                vision_config=CLIPVisionConfig(**vision_shape(image_size=LLAVA_SIDE)),
                image_token_index=IMAGE,
                video_token_index=VIDEO,
                image_seq_length=16,
                vision_feature_layer=-2,
            ),
        ),
        image_run=lambda image: [IMAGE] * 16,
        image_inputs=llava_pixels,
        video_run=lambda video: [VIDEO] * (2 * 17),  # two frames, with class token
        video_inputs=lambda rows: video_pixels(rows, 2, LLAVA_SIDE),
    )
)

# Pixtral towers: images of any size, one break token after each row of tokens.  Mistral 3 merges patches 2 x 2.
PIXTRAL_SIZES = [(16, 16), (8, 24)]  # height, width of variant 0 and 1
MISTRAL3_SIZES = [(24, 24), (16, 32)]


def any_size_run(image: Image, sizes: list[tuple[int, int]], token_side: int) -> list[int]:
    height, width = sizes[image.variant]
    row = [IMAGE] * (width // token_side)
    return [*[*row, IMAGE_BREAK] * (height // token_side - 1), *row, IMAGE_END]


def any_size_pixels(rows: list[list[Image]], sizes: list[tuple[int, int]]) -> Inputs:
    """``pixel_values`` padded with zeros at the bottom and right to the batch's largest image."""
    images = flat(rows)
    image_sizes = torch.tensor([sizes[image.variant] for image in images])
    values = torch.zeros(len(images), 3, *image_sizes.amax(0).tolist())
    for number, image in enumerate(images):
        height, width = sizes[image.variant]
        values[number, :, :height, :width] = image.pixels(3, height, width)
    return {"pixel_values": values, "image_sizes": image_sizes}


def mistral() -> MistralConfig:
    return MistralConfig(**text_shape(head_dim=HEAD_DIM, sliding_window=None))


register(
    Family(
        name="llava_pixtral",
        model=lambda: (
            LlavaForConditionalGeneration,
            LlavaConfig(
                text_config=mistral(),
                vision_config=PixtralVisionConfig(**vision_shape()),
                image_token_index=IMAGE,
                vision_feature_layer=-1,
                vision_feature_select_strategy="full",
            ),
        ),
        image_run=lambda image: any_size_run(image, PIXTRAL_SIZES, 4),
        image_inputs=lambda rows: any_size_pixels(rows, PIXTRAL_SIZES),
    )
)

register(
    Family(
        name="mistral3",
        model=lambda: (
            Mistral3ForConditionalGeneration,
            Mistral3Config(
                text_config=mistral(),
                vision_config=PixtralVisionConfig(**vision_shape(image_size=32)),
                image_token_index=IMAGE,
            ),
        ),
        image_run=lambda image: any_size_run(image, MISTRAL3_SIZES, 8),
        image_inputs=lambda rows: any_size_pixels(rows, MISTRAL3_SIZES),
    )
)

# LLaVA with text decoders whose attention has something LLaMA's has not.


def gpt_oss() -> GptOssConfig:
    return GptOssConfig(
        **text_shape(
            num_hidden_layers=4,
            head_dim=HEAD_DIM,
            sliding_window=16,
            num_local_experts=4,
            num_experts_per_tok=2,
            rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        )
    )


def gemma2() -> Gemma2Config:
    return Gemma2Config(
        **text_shape(
            num_hidden_layers=4,
            head_dim=HEAD_DIM,
            query_pre_attn_scalar=HEAD_DIM,
            sliding_window=16,
            attn_logit_softcapping=3.0,
            final_logit_softcapping=30.0,
        )
    )


for name, text, facts in (
    ("llava_gpt_oss", gpt_oss, "attention sinks (s_aux), sliding layers, experts; sdpa would drop the sinks"),
    ("llava_gemma2", gemma2, "soft cap on the attention logits, sliding layers; sdpa refuses the soft cap"),
):
    register(
        Family(
            name=name,
            model=lambda text=text: (LlavaForConditionalGeneration, llava_config(text())),
            image_run=lambda image: [IMAGE] * 16,
            image_inputs=llava_pixels,
            attention={"text_config": "eager"},
            facts=facts,
        )
    )
