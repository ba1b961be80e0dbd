"""Tiny randomly initialised vision-language models of real transformers architectures, built offline.

``build("llava")`` gives a ``ZooModel``; ``FAMILIES`` lists what can be built.  Every model is a few hundred
thousand parameters, has image inputs whose image tokens are counted as its architecture counts them, and
never generates a special token.
"""

from zoo.entry import FAMILIES, Family, ZooModel, build, families
from zoo.pristine import assert_pristine, is_pristine
from zoo.prompts import UNEQUAL_PROMPTS, Image, Prompt
from zoo.tiny_processor import tiny_processor

__all__ = [
    "FAMILIES",
    "UNEQUAL_PROMPTS",
    "Family",
    "Image",
    "Prompt",
    "ZooModel",
    "assert_pristine",
    "build",
    "families",
    "is_pristine",
    "tiny_processor",
]
