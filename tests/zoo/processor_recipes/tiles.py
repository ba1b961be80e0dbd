"""Families that cut a picture into tiles, and those with a Q-former."""

from __future__ import annotations

from dataclasses import replace

from zoo.cross_attention import QUERY_TOKENS
from zoo.llava_like import LLAVA_SIDE
from zoo.processor_recipes.recipe import MARKS, Recipe, square
from zoo.prompts import IMAGE, IMAGE_BREAK, IMAGE_END, IMAGE_START, SPECIAL_A, SPECIAL_B, VIDEO
from zoo.shapes import PATCH
from zoo.tiled import SIDE

TILES = {"size": square(SIDE), "crop_to_patches": True, "min_patches": 1, "max_patches": 2}
IDEFICS_READER = {"size": {"longest_edge": SIDE}, "max_image_size": {"longest_edge": SIDE}, "do_image_splitting": False}
IDEFICS3 = Recipe(
    processor="Idefics3Processor",
    reads={"image_processor": ("Idefics3ImageProcessorPil", IDEFICS_READER)},
    words={IMAGE_START: "<fake_token_around_image>", SPECIAL_A: "<global-img>", SPECIAL_B: "<end_of_utterance>"},
    named={
        "fake_image_token": "<fake_token_around_image>",
        "image_token": "<image>",
        "global_image_token": "<global-img>",
    },
    settings={"image_seq_len": 9},
)
BLIP = ("BlipImageProcessorPil", {"size": square(LLAVA_SIDE)})

RECIPES: dict[str, Recipe] = {
    "idefics2": Recipe(
        processor="Idefics2Processor",
        reads={
            "image_processor": (
                "Idefics2ImageProcessorPil",
                {"size": {"shortest_edge": 16, "longest_edge": SIDE}, "do_image_splitting": False},
            )
        },
        words={IMAGE_START: "<fake_token_around_image>", SPECIAL_B: "<end_of_utterance>"},
        named={"image_boundary_token": "<fake_token_around_image>", "image_token": "<image>"},
        settings={"image_seq_len": 9},
    ),
    "idefics3": IDEFICS3,
    "smolvlm": replace(
        IDEFICS3,
        processor="SmolVLMProcessor",
        reads={
            "image_processor": ("SmolVLMImageProcessorPil", IDEFICS_READER),
            "video_processor": ("SmolVLMVideoProcessor", {}),
        },
        needs=("torchvision", "num2words"),
    ),
    "internvl": Recipe(
        processor="InternVLProcessor",
        reads={
            "image_processor": ("GotOcr2ImageProcessorPil", TILES),
            "video_processor": ("InternVLVideoProcessor", {}),
        },
        named={
            "start_image_token": "<im_start>",
            "end_image_token": "<im_end>",
            "context_image_token": "<image>",
            "video_token": "<video>",
        },
        settings={"image_seq_length": 9},
        needs=("torchvision",),
    ),
    "aya_vision": Recipe(
        processor="AyaVisionProcessor",
        reads={"image_processor": ("GotOcr2ImageProcessorPil", TILES)},
        words={
            IMAGE: "<|IMG_PATCH|>",
            VIDEO: "<image>",
            IMAGE_START: "<|START_OF_IMG|>",
            IMAGE_END: "<|END_OF_IMG|>",
            IMAGE_BREAK: "<|IMG_LINE_BREAK|>",
            SPECIAL_B: "TILE_GLOBAL",
        },
        named={},
        settings={"patch_size": 2 * PATCH, "img_size": SIDE},
    ),
    "cohere2_vision": Recipe(
        processor="Cohere2VisionProcessor",
        reads={
            "image_processor": (
                "Cohere2VisionImageProcessor",
                {"size": square(SIDE), "patch_size": 3, "max_patches": 2},
            )
        },
        named=MARKS | {"img_line_break_token": "<im_break>"},
        needs=("torchvision",),
    ),
    "llama4": Recipe(
        processor="Llama4Processor",
        reads={"image_processor": ("Llama4ImageProcessor", {"size": square(SIDE), "max_patches": 2})},
        words={
            IMAGE: "<|patch|>",
            VIDEO: "<|image|>",
            IMAGE_START: "<|image_start|>",
            IMAGE_END: "<|image_end|>",
            IMAGE_BREAK: "<|tile_x_separator|>",
            SPECIAL_A: "<|tile_y_separator|>",
        },
        named={},
        marker="<|image|>",
        settings={"patch_size": PATCH, "pixel_shuffle_ratio": 0.5},
        needs=("torchvision",),
    ),
    "ovis2": Recipe(
        processor="Ovis2Processor",
        reads={
            "image_processor": ("Ovis2ImageProcessorPil", {"size": square(SIDE), "min_patches": 1, "max_patches": 2})
        },
        words={
            IMAGE: "<IMG_ATOM>",
            VIDEO: "<image>",
            IMAGE_START: "<IMG_START>",
            IMAGE_END: "<IMG_END>",
            IMAGE_BREAK: "<IMG_GRID>",
            SPECIAL_A: "<IMG_COL>",
            SPECIAL_B: "<IMG_ROW>",
        },
        settings={"image_seq_length": 9},
    ),
    "blip_2": Recipe(
        processor="Blip2Processor",
        reads={"image_processor": BLIP},
        named={},
        marker="",
        settings={"num_query_tokens": QUERY_TOKENS},
    ),
    "instructblip": Recipe(
        processor="InstructBlipProcessor",
        reads={"image_processor": BLIP},
        named={},
        marker="",
        settings={"num_query_tokens": QUERY_TOKENS},
    ),
    "instructblip_video": Recipe(
        processor="InstructBlipVideoProcessor",
        reads={"video_processor": ("InstructBlipVideoVideoProcessor", {"size": square(LLAVA_SIDE)})},
        named={},
        marker="",
        settings={"num_query_tokens": QUERY_TOKENS},
        needs=("torchvision",),
    ),
    "mllama": Recipe(
        processor="MllamaProcessor",
        reads={"image_processor": ("MllamaImageProcessorPil", {"size": square(LLAVA_SIDE), "max_image_tiles": 2})},
    ),
}
