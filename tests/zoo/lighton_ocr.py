"""LightOnOCR: a Pixtral tower whose patches are merged 2 x 2, and a Qwen3 decoder."""

from transformers import LightOnOcrConfig, LightOnOcrForConditionalGeneration

from zoo.entry import Family, register
from zoo.llava_like import MISTRAL3_SIZES, any_size_pixels, any_size_run
from zoo.prompts import IMAGE
from zoo.shapes import HEAD_DIM, text_shape, vision_shape


def lighton_ocr() -> LightOnOcrConfig:
    return LightOnOcrConfig(
        text_config={"model_type": "qwen3", **text_shape(head_dim=HEAD_DIM, sliding_window=None)},
        vision_config={"model_type": "pixtral", **vision_shape(image_size=32)},
        image_token_id=IMAGE,
    )


register(
    Family(
        name="lighton_ocr",
        model=lambda: (LightOnOcrForConditionalGeneration, lighton_ocr()),
        image_run=lambda image: any_size_run(image, MISTRAL3_SIZES, 8),
        image_inputs=lambda rows: any_size_pixels(rows, MISTRAL3_SIZES),
        facts="input and output embeddings are one",
    )
)
