"""Families that read patches of any grid."""

from __future__ import annotations

from dataclasses import replace

from zoo.processor_recipes.recipe import MARKS, Recipe, area, square
from zoo.prompts import IMAGE, IMAGE_BREAK, IMAGE_END, IMAGE_START, SPECIAL_A, SPECIAL_B, VIDEO
from zoo.shapes import PATCH
from zoo.tiled import SIDE

PIXTRAL_READER = {"patch_size": {"height": PATCH, "width": PATCH}, "size": {"longest_edge": SIDE}}
QWEN_READER = {"patch_size": PATCH, "merge_size": 2, "size": area(16, 64)}
QWEN = Recipe(
    processor="Qwen2VLProcessor",
    reads={
        "image_processor": ("Qwen2VLImageProcessorPil", QWEN_READER),
        "video_processor": ("Qwen2VLVideoProcessor", {}),
    },
    words={
        IMAGE: "<|image_pad|>",
        VIDEO: "<|video_pad|>",
        IMAGE_START: "<|vision_start|>",
        IMAGE_END: "<|vision_end|>",
    },
    named={},
    marker="<|vision_start|><|image_pad|><|vision_end|>",
    needs=("torchvision",),
)
QWEN3 = replace(
    QWEN, processor="Qwen3VLProcessor", reads=QWEN.reads | {"video_processor": ("Qwen3VLVideoProcessor", {})}
)
GLM_READER = {"patch_size": PATCH, "merge_size": 2, "size": area(16, 128)}
GLM = Recipe(
    processor="Glm4vProcessor",
    reads={"image_processor": ("Glm4vImageProcessorPil", GLM_READER), "video_processor": ("Glm4vVideoProcessor", {})},
    words={
        IMAGE: "<|image|>",
        VIDEO: "<|video|>",
        IMAGE_START: "<|begin_of_image|>",
        IMAGE_END: "<|end_of_image|>",
        SPECIAL_A: "<|begin_of_video|>",
        SPECIAL_B: "<|end_of_video|>",
    },
    named={},
    marker="<|begin_of_image|><|image|><|end_of_image|>",
    needs=("torchvision",),
)

RECIPES: dict[str, Recipe] = {
    "llava_pixtral": Recipe(
        processor="PixtralProcessor",
        reads={"image_processor": ("PixtralImageProcessorPil", PIXTRAL_READER)},
        words={IMAGE: "[IMG]", IMAGE_BREAK: "[IMG_BREAK]", IMAGE_END: "[IMG_END]"},
        named={},
        marker="[IMG]",
        settings={"patch_size": PATCH, "spatial_merge_size": 1},
        needs=("torchvision",),
    ),
    "mistral3": Recipe(
        processor="PixtralProcessor",
        reads={"image_processor": ("PixtralImageProcessorPil", PIXTRAL_READER | {"patch_size": square(2 * PATCH)})},
        words={IMAGE: "[IMG]", IMAGE_BREAK: "[IMG_BREAK]", IMAGE_END: "[IMG_END]"},
        named={},
        marker="[IMG]",
        settings={"patch_size": PATCH, "spatial_merge_size": 2},
        needs=("torchvision",),
    ),
    "lighton_ocr": Recipe(
        processor="LightOnOcrProcessor",
        reads={"image_processor": ("PixtralImageProcessorPil", PIXTRAL_READER | {"patch_size": square(2 * PATCH)})},
        named={"image_token": "<image>", "image_break_token": "<im_break>", "image_end_token": "<im_end>"},
        settings={"patch_size": PATCH, "spatial_merge_size": 2},
    ),
    "qwen2_vl": QWEN,
    "qwen2_5_vl": replace(QWEN, processor="Qwen2_5_VLProcessor"),
    "qwen3_vl": QWEN3,
    "qwen3_vl_moe": QWEN3,
    "qwen3_5": QWEN3,
    "qwen3_5_moe": QWEN3,
    "glm4v": GLM,
    "glm4v_moe": GLM,
    "glm46v": replace(
        GLM,
        processor="Glm46VProcessor",
        reads={
            "image_processor": ("Glm46VImageProcessorPil", GLM_READER),
            "video_processor": ("Glm46VVideoProcessor", {}),
        },
    ),
    "video_llama_3": replace(
        QWEN,
        processor="VideoLlama3Processor",
        reads={
            "image_processor": ("VideoLlama3ImageProcessorPil", QWEN_READER),
            "video_processor": ("VideoLlama3VideoProcessor", {}),
        },
        marker="<|image_pad|>",
    ),
    "minimax_m3": Recipe(
        processor="MiniMaxM3VLProcessor",
        reads={
            "image_processor": ("MiniMaxM3VLImageProcessor", QWEN_READER),
            "video_processor": ("MiniMaxM3VLVideoProcessor", {}),
        },
        words={
            IMAGE: "]<]image[>[",
            VIDEO: "]<]video[>[",
            IMAGE_START: "]<]start of image[>[",
            IMAGE_END: "]<]end of image[>[",
        },
        named={},
        marker="]<]image[>[",
        needs=("torchvision",),
    ),
    "gemma4": Recipe(
        processor="Gemma4Processor",
        reads={
            "feature_extractor": ("Gemma4AudioFeatureExtractor", {}),
            "image_processor": (
                "Gemma4ImageProcessorPil",
                {"patch_size": PATCH, "pooling_kernel_size": 3, "max_soft_tokens": 70},
            ),
            "video_processor": ("Gemma4VideoProcessor", {}),
        },
        words={VIDEO: "<|video|>"},
        named=MARKS | {"audio_token": "<im_break>", "boa_token": "<unk>", "eoa_token": "<sep>"},
        needs=("torchvision",),
    ),
    "lfm2_vl": Recipe(
        processor="Lfm2VlProcessor",
        reads={
            "image_processor": (
                "Lfm2VlImageProcessor",
                {
                    "tile_size": SIDE,
                    "encoder_patch_size": PATCH,
                    "min_image_tokens": 4,
                    "max_image_tokens": 9,
                    "max_num_patches": 36,
                    "do_image_splitting": False,
                },
            )
        },
        words={IMAGE_START: "<|image_start|>", IMAGE_END: "<|image_end|>", SPECIAL_A: "<|img_thumbnail|>"},
        named={
            "image_token": "<image>",
            "image_start_token": "<|image_start|>",
            "image_end_token": "<|image_end|>",
            "image_thumbnail": "<|img_thumbnail|>",
        },
        needs=("torchvision",),
    ),
    "minicpm_v": Recipe(
        processor="MiniCPMV4_6Processor",
        reads={
            "image_processor": (
                "MiniCPMV4_6ImageProcessorPil",
                {"patch_size": PATCH, "scale_resolution": 32, "max_slice_nums": 1},
            ),
            "video_processor": ("MiniCPMV4_6VideoProcessor", {}),
        },
        named={
            "image_token": "<image>",
            "video_token": "<video>",
            "image_start_token": "<im_start>",
            "image_end_token": "<im_end>",
            "slice_start_token": "<im_break>",
            "slice_end_token": "<unk>",
            "image_id_start_token": "<sep>",
            "image_id_end_token": "<sep>",
        },
        needs=("torchvision",),
    ),
    "molmo2": Recipe(
        processor="Molmo2Processor",
        reads={
            "image_processor": (
                "Molmo2ImageProcessor",
                {"size": square(16), "patch_size": PATCH, "max_crops": 2, "overlap_margins": [0, 0]},
            ),
            "video_processor": ("Molmo2VideoProcessor", {}),
        },
        words={IMAGE: "<im_patch>", IMAGE_BREAK: "<im_col>", SPECIAL_A: "<low_res_im_start>", VIDEO: "<|image|>"},
        named={},
        marker="<|image|>",
        needs=("torchvision",),
    ),
}
