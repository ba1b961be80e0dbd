"""A processor and prompts for the random models, so that methods which read the question or the picture run on them.

The tokenizer is the built-in model's: the weights mean nothing, but the prompt is a real one.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import (
    AutoTokenizer,
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedConfig,
)

from vlm_guard.builtin_model import BUILTIN_DIR

QUESTION = "There is a dog in the image, isn't there?"
MORE = "Please say what is on the left, what is on the right and what is behind it, one thing after the other."


def random_processor(model: LlavaForConditionalGeneration) -> LlavaProcessor:
    """A processor for a random LLaVA; from now on the model's image token is the one of this processor's tokenizer.

    Raises:
        ValueError: the model has fewer words than the tokenizer.
    """
    tokenizer = AutoTokenizer.from_pretrained(BUILTIN_DIR, local_files_only=True)
    text: PreTrainedConfig = model.config.get_text_config(decoder=True)
    words = text.vocab_size
    if words < len(tokenizer):
        raise ValueError(f"the tokenizer knows {len(tokenizer)} tokens, a model with {words} cannot use it")
    vision = vision_config(model)
    pixels = _side(vision.image_size)
    side = {"height": pixels, "width": pixels}
    processor = LlavaProcessor(
        CLIPImageProcessorPil(size=side, crop_size=side, do_center_crop=False),
        tokenizer,
        patch_size=_side(vision.patch_size),
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=tokenizer.chat_template,
        image_token="<image>",
    )
    model.config.image_token_id = processor.image_token_id
    model.generation_config.suppress_tokens = [processor.image_token_id]
    return processor


def random_inputs(
    model: LlavaForConditionalGeneration,
    processor: LlavaProcessor,
    *,
    batch: int = 1,
    prompt_tokens: int = 64,
    seed: int = 0,
) -> dict[str, torch.Tensor]:
    """Inputs for `model.generate(**inputs)`: a picture of noise and a leading question about it.

    Args:
        model: gives the device and the type of the pixels.
        processor: of the model.
        batch: rows, all with the same question, each with a picture of its own.
        prompt_tokens: text tokens of a row that are wanted beside its picture; it has at most one word's more, and
            never fewer than the shortest prompt needs.
        seed: of the pictures.

    Raises:
        ValueError: `batch` or `prompt_tokens` is below 1.
    """
    if batch < 1 or prompt_tokens < 1:
        raise ValueError(f"batch and prompt_tokens must be at least 1, given {batch} and {prompt_tokens}")
    further = MORE.split()
    words = [QUESTION]
    while len(processor.tokenizer(_prompt(processor, " ".join(words)))["input_ids"]) < prompt_tokens + 1:
        words.append(further[(len(words) - 1) % len(further)])
    pictures = noise_pictures(batch, _side(vision_config(model).image_size), seed)
    text = _prompt(processor, " ".join(words))
    inputs = processor(images=pictures, text=[text] * batch, return_tensors="pt").to(model.device)
    inputs["pixel_values"] = inputs["pixel_values"].to(model.dtype)
    return dict(inputs)


def vision_config(model: LlavaForConditionalGeneration) -> CLIPVisionConfig:
    """The configuration of the vision tower of a random LLaVA.

    Raises:
        TypeError: it is another tower than these models have.
    """
    found = model.config.vision_config
    if not isinstance(found, CLIPVisionConfig):
        raise TypeError(f"random models have a CLIP vision tower, this one has {type(found).__name__}")
    return found


def _side(size: object) -> int:
    """Height and width of what is square in a random model: its pictures and their patches."""
    if not isinstance(size, int):
        raise TypeError(f"random models have square pictures and patches, this one has {size}")
    return size


def noise_pictures(count: int, side: int, seed: int) -> list[Image.Image]:
    """`count` square pictures of noise, each with a side of `side` pixels."""
    noise = np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)
    return [Image.fromarray(pixels) for pixels in noise]


def _prompt(processor: LlavaProcessor, question: str) -> str:
    content = [{"type": "image"}, {"type": "text", "text": question}]
    # transformers declares the content of a message as text, but takes the parts that its own documentation shows.
    message: dict[str, Any] = {"role": "user", "content": content}
    return processor.apply_chat_template([message], add_generation_prompt=True)
