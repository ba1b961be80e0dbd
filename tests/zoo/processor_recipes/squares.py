"""Families whose picture is one square, or a square and its enlarged parts."""

from __future__ import annotations

from transformers import AriaForConditionalGeneration

from zoo.aria import aria
from zoo.gemma_like import PALIGEMMA_SIDE
from zoo.gemma_like import SIDE as GEMMA_SIDE
from zoo.llava_like import LLAVA_SIDE, NEXT_PINPOINTS, NEXT_TILE
from zoo.processor_recipes.recipe import MARKS, Recipe, square
from zoo.shapes import PATCH
from zoo.tiled import SMALL_SIDE

CLIP = ("CLIPImageProcessorPil", {"size": square(LLAVA_SIDE), "crop_size": square(LLAVA_SIDE), "do_center_crop": False})
NEXT_SETTINGS = {
    "size": {"shortest_edge": NEXT_TILE},
    "crop_size": square(NEXT_TILE),
    "image_grid_pinpoints": NEXT_PINPOINTS,
}
PATCHED = {"patch_size": PATCH, "num_additional_image_tokens": 1, "vision_feature_select_strategy": "default"}
LLAVA = Recipe(processor="LlavaProcessor", reads={"image_processor": CLIP}, settings=PATCHED)

RECIPES: dict[str, Recipe] = {
    "llava": LLAVA,
    "vip_llava": LLAVA,
    "llava_next": Recipe(
        processor="LlavaNextProcessor",
        reads={"image_processor": ("LlavaNextImageProcessorPil", NEXT_SETTINGS)},
        settings=PATCHED,
    ),
    "llava_onevision": Recipe(
        processor="LlavaOnevisionProcessor",
        reads={
            "image_processor": ("LlavaOnevisionImageProcessorPil", NEXT_SETTINGS | {"size": square(NEXT_TILE)}),
            "video_processor": ("LlavaOnevisionVideoProcessor", {"size": square(NEXT_TILE)}),
        },
        named={"image_token": "<image>", "video_token": "<video>"},
        settings={"num_image_tokens": 4, "vision_feature_select_strategy": "full"},
        needs=("torchvision",),
    ),
    "video_llava": Recipe(
        processor="VideoLlavaProcessor",
        reads={
            "image_processor": (
                "VideoLlavaImageProcessor",
                {"size": {"shortest_edge": LLAVA_SIDE}, "crop_size": square(LLAVA_SIDE)},
            ),
            "video_processor": ("VideoLlavaVideoProcessor", {}),
        },
        named={"image_token": "<image>", "video_token": "<video>"},
        settings=PATCHED,
        needs=("torchvision",),
    ),
    "gemma3": Recipe(
        processor="Gemma3Processor",
        reads={"image_processor": ("Gemma3ImageProcessorPil", {"size": square(GEMMA_SIDE)})},
        named=MARKS,
        marker="<im_start>",
        settings={"image_seq_length": 9},
    ),
    "paligemma": Recipe(
        processor="PaliGemmaProcessor",
        reads={
            "image_processor": ("SiglipImageProcessorPil", {"size": square(PALIGEMMA_SIDE), "image_seq_length": 16})
        },
    ),
    "deepseek_vl": Recipe(
        processor="DeepseekVLProcessor",
        reads={"image_processor": ("DeepseekVLImageProcessorPil", {"size": square(SMALL_SIDE), "min_size": 4})},
        settings={"num_image_tokens": 16},
    ),
    "janus": Recipe(
        processor="JanusProcessor",
        reads={"image_processor": ("JanusImageProcessorPil", {"size": square(SMALL_SIDE), "min_size": 4})},
        named=MARKS,
        settings={"num_image_tokens": 16},
    ),
    "chameleon": Recipe(
        processor="ChameleonProcessor",
        reads={
            "image_processor": ("ChameleonImageProcessorPil", {"size": {"shortest_edge": 8}, "crop_size": square(8)})
        },
        named=MARKS | {"sep_token": "<sep>"},
        settings={"image_seq_length": 16},
    ),
    "aria": Recipe(
        processor="AriaProcessor",
        reads={"image_processor": ("AriaImageProcessorPil", {})},
        settings={"size_conversion": {490: 8}},
        call={"max_image_size": 490},
        model=lambda: (AriaForConditionalGeneration, aria(side=490, patch=70)),
    ),
}
