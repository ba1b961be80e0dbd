"""Processors of the families' own classes, small enough for the zoo's models: a picture in, the model's inputs out.

A recipe says what is special about a family: what its tokenizer calls the zoo's special ids, and the settings with
which its picture reader makes the small pictures that the zoo's model was built for.

Fuyu has none: its processor cuts off the first id, which only its own tokenizer puts there. GIT has no visual tokens.
"""

from __future__ import annotations

import transformers
from PIL import Image
from transformers import BatchFeature, ProcessorMixin

from vlm_guard.families.processor_needs import why_unusable
from zoo.cross_attention import FRAMES
from zoo.processor_recipes import packed, squares, tiles
from zoo.processor_recipes.recipe import Recipe
from zoo.tiny_processor import word_tokenizer

RECIPES: dict[str, Recipe] = packed.RECIPES | squares.RECIPES | tiles.RECIPES
SAME = {
    "llava_gpt_oss": "llava",
    "llava_gemma2": "llava",
    "gemma4_shared": "gemma4",
    "minimax_m3_sparse": "minimax_m3",
    "paligemma2": "paligemma",
}


def recipe_of(family: str) -> Recipe:
    """The recipe of a family, or of the one that it shares a processor with; KeyError where there is none."""
    return RECIPES[SAME.get(family, family)]


def lacking(family: str) -> str:
    """Which packages the processor of a family wants and cannot use here; empty when it can be made."""
    reasons = {package: why_unusable(package) for package in recipe_of(family).needs}
    return "; ".join(f"{package}: {reason}" for package, reason in reasons.items() if reason)


def real_processor(family: str) -> ProcessorMixin:
    """The processor of a zoo family's own class."""
    recipe = recipe_of(family)
    readers = {name: getattr(transformers, made)(**settings) for name, (made, settings) in recipe.reads.items()}
    tokenizer = word_tokenizer(recipe.words, recipe.named)
    extra = {"qformer_tokenizer": word_tokenizer({}, {})} if family.startswith("instructblip") else {}
    return getattr(transformers, recipe.processor)(**readers, tokenizer=tokenizer, **extra, **recipe.settings)


def read_picture(family: str, processor: ProcessorMixin, picture: Image.Image, text: str) -> BatchFeature:
    """What the processor makes of a picture (of four equal ones where it reads videos) and the words behind it."""
    recipe = recipe_of(family)
    shown = {"images": [[picture] * FRAMES]} if "image_processor" not in recipe.reads else {"images": [picture]}
    return processor(text=[f"{recipe.marker} {text}".strip()], **shown, return_tensors="pt", **recipe.call)
