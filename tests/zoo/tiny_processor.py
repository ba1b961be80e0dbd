"""Real processors for zoo models, built offline: a word tokenizer over the zoo's 200 ids and a PIL image processor."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import Gemma3Processor, LlavaNextProcessor, LlavaProcessor, PreTrainedTokenizerFast, ProcessorMixin
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from zoo.gemma_like import SIDE as GEMMA_SIDE
from zoo.llava_like import LLAVA_SIDE, NEXT_PINPOINTS, NEXT_TILE
from zoo.prompts import BOS, VOCABULARY
from zoo.shapes import PATCH

SPECIAL_TOKENS = [
    "<pad>",
    "<s>",
    "</s>",
    "<image>",
    "<video>",
    "<im_start>",
    "<im_end>",
    "<im_break>",
    "<unk>",
    "<sep>",
]

CAPTION_WORDS = """
a an the this that there is are was in on at of with and or not no yes it its image picture photo scene show shows
see describe detail please what which where who how many color colour object objects dog cat person man woman child
people car bus truck train bicycle motorcycle boat bird horse sheep cow bear table chair couch bed cup bottle bowl
fork knife spoon plate pizza cake apple banana orange book clock phone laptop keyboard mouse tv red green blue yellow
white black brown small large big old young left right top bottom front behind next to near under over sitting
standing walking running holding eating looking street road field grass tree trees sky water beach room kitchen window
door wall floor you i we can do does any all one two three four five user assistant USER ASSISTANT : . , ? ! ' -
"""

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'].upper() }} : "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] %}{% if part['type'] == 'image' %}<image> {% endif %}{% endfor %}"
    "{% for part in message['content'] %}{% if part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{% endif %} {% endfor %}{% if add_generation_prompt %}ASSISTANT :{% endif %}"
)


def word_tokenizer(specials: Mapping[int, str], attributes: Mapping[str, str]) -> PreTrainedTokenizerFast:
    """One id per word: the zoo's ten special ids, then words; an unknown word is ``<unk>``.

    Args:
        specials: other names of some of the special ids.
        attributes: what the tokenizer itself calls some of them, such as ``{"image_token": "<image>"}``.
    """
    special = [specials.get(number, word) for number, word in enumerate(SPECIAL_TOKENS)]
    words = list(dict.fromkeys(CAPTION_WORDS.split()))
    words += [f"word{number}" for number in range(VOCABULARY - len(special) - len(words))]
    vocabulary = {word: number for number, word in enumerate(special + words)}
    unknown = "<unk>" if "<unk>" in vocabulary else words[-1]  # a family may need that id for something else
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token=unknown))
    tokenizer.add_special_tokens(special)
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token=unknown,
        extra_special_tokens=dict(attributes),
        padding_side="left",
    )


def tiny_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the LLaVA models and of Gemma 3."""
    return word_tokenizer({}, {"image_token": "<image>", "boi_token": "<im_start>", "eoi_token": "<im_end>"})


def _llava() -> LlavaProcessor:
    side = {"height": LLAVA_SIDE, "width": LLAVA_SIDE}
    return LlavaProcessor(
        image_processor=CLIPImageProcessorPil(size=side, crop_size=side, do_center_crop=False),
        tokenizer=tiny_tokenizer(),
        patch_size=PATCH,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        image_token="<image>",
        chat_template=CHAT_TEMPLATE,
    )


def _llava_next() -> LlavaNextProcessor:
    side = {"height": NEXT_TILE, "width": NEXT_TILE}
    images = LlavaNextImageProcessorPil(
        size={"shortest_edge": NEXT_TILE}, crop_size=side, image_grid_pinpoints=NEXT_PINPOINTS
    )
    return LlavaNextProcessor(
        image_processor=images,
        tokenizer=tiny_tokenizer(),
        patch_size=PATCH,
        num_additional_image_tokens=1,
        vision_feature_select_strategy="default",
        image_token="<image>",
        chat_template=CHAT_TEMPLATE,
    )


def _gemma3() -> Gemma3Processor:
    images = Gemma3ImageProcessorPil(size={"height": GEMMA_SIDE, "width": GEMMA_SIDE})
    template = CHAT_TEMPLATE.replace("<image>", "<im_start>")  # the marker that the processor expands
    return Gemma3Processor(
        image_processor=images, tokenizer=tiny_tokenizer(), image_seq_length=9, chat_template=template
    )


PROCESSORS: dict[str, Callable[[], ProcessorMixin]] = {
    "llava": _llava,
    "llava_gpt_oss": _llava,
    "llava_gemma2": _llava,
    "llava_next": _llava_next,
    "gemma3": _gemma3,
}


def tiny_processor(family: str = "llava") -> ProcessorMixin:
    """The processor of a zoo model of ``family``; raises ValueError for a family that has none here.

    Every family's own processor class is in ``zoo.processor_recipes``.
    """
    if family not in PROCESSORS:
        raise ValueError(f"no tiny processor for {family!r}; there is one for {', '.join(PROCESSORS)}")
    return PROCESSORS[family]()
