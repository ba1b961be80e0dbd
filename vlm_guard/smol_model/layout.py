"""What the assembled model is: a plain LLaVA in Hugging Face's classes, its processor and its chat template."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from vlm_guard.builtin_model import BUILTIN_DIR

if TYPE_CHECKING:
    from transformers import LlavaConfig, LlavaForConditionalGeneration, LlavaProcessor, PreTrainedTokenizerFast

IMAGE_TOKEN = "<image>"
IMAGE_ID = 16
"""SmolLM2 has a token `<empty_output>` that only notebooks use. It stands for a patch here and is renamed, so the
vocabulary, and with it the word embeddings, stay as they are."""

BOS, EOS = 1, 2
PAD = EOS
VISUAL_TOKENS = 64

BEFORE_IMAGE = "<|im_start|>user\n"
AFTER_QUESTION = "<|im_end|>\n<|im_start|>assistant\n"

CHAT_TEMPLATE = (
    "{% set shown = namespace(images=0) %}"
    "{% for message in messages if message['content'] is not string %}"
    "{% for part in message['content'] if part['type'] == 'image' %}"
    "{% set shown.images = shown.images + 1 %}{% endfor %}{% endfor %}"
    "{% for message in messages %}"
    "{% if loop.first and message['role'] != 'system' and shown.images == 0 %}"
    "{{ '<|im_start|>system\\nYou are a helpful AI assistant named SmolLM, trained by Hugging Face<|im_end|>\\n' }}"
    "{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% set pictures = message['content'] | selectattr('type', 'equalto', 'image') | list %}"
    "{% for part in pictures %}<image>{% endfor %}"
    "{% if pictures %}{{ '\\n' }}{% endif %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}{{ '<|im_end|>\\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
"""SmolLM2's own format. Its sentence about who it is opens conversations without a picture, as SmolLM2 has it, and is
left out where a picture is shown: training never saw it there, and it would cost 20 tokens a prompt."""


def configuration(text: Any) -> LlavaConfig:
    """The configuration of the whole model.

    Args:
        text: the configuration of SmolLM2, a `LlamaConfig`.
    """
    from transformers import LlavaConfig

    vision = json.loads((BUILTIN_DIR / "config.json").read_text(encoding="utf-8"))["vision_config"]
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IMAGE_ID,
        image_seq_length=VISUAL_TOKENS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        projector_hidden_act="gelu",
        tie_word_embeddings=True,
    )


def set_generation_defaults(model: LlavaForConditionalGeneration) -> None:
    """Greedy answers of at most 128 tokens, as the built-in model gives them."""
    model.generation_config.update(
        max_new_tokens=128, do_sample=False, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD
    )


def with_image_token(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """SmolLM2's tokenizer with its unused token renamed to `<image>`, padding on the left."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    unused = str(tokenizer.convert_ids_to_tokens(IMAGE_ID))
    described = tokenizer.backend_tokenizer.to_str().replace(json.dumps(unused), json.dumps(IMAGE_TOKEN))
    special = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "pad_token": "<|im_end|>"}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(described),
        padding_side="left",
        clean_up_tokenization_spaces=False,
        unk_token="<|endoftext|>",
        **special,
    )


def new_processor(tokenizer: PreTrainedTokenizerFast) -> LlavaProcessor:
    """The processor: pictures as the built-in model takes them (96 x 96), text in SmolLM2's format.

    Args:
        tokenizer: out of `with_image_token`.
    """
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    images = CLIPImageProcessorPil.from_pretrained(BUILTIN_DIR, local_files_only=True)
    return LlavaProcessor(
        images,
        tokenizer,
        patch_size=12,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE_TOKEN,
    )
