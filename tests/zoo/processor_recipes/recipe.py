"""What is special about a family's processor."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedConfig, PreTrainedModel

from zoo.shapes import PATCH

Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How a family's processor is made.

    Attributes:
        processor: its class.
        reads: the classes and settings of its picture reader and of others it has, by the processor's own name.
        words: what the tokenizer calls the zoo's special ids.
        named: the tokenizer's own attributes for these words, such as ``image_token``.
        marker: what stands for a picture in a text that the processor is given.
        settings: settings of the processor.
        call: settings of each call of it.
        model: the model's class and configuration, where the zoo's is too small for any picture of this processor.
        needs: packages that transformers does not bring along.
    """

    processor: str
    reads: Mapping[str, tuple[str, Settings]]
    words: Mapping[int, str] = field(default_factory=dict)
    named: Mapping[str, str] = field(default_factory=lambda: {"image_token": "<image>"})
    marker: str = "<image>"
    settings: Settings = field(default_factory=dict)
    call: Settings = field(default_factory=dict)
    model: Callable[[], tuple[type[PreTrainedModel], PreTrainedConfig]] | None = None
    needs: tuple[str, ...] = ()


def square(side: int) -> dict[str, int]:
    return {"height": side, "width": side}


def area(smallest: int, largest: int) -> dict[str, int]:
    """The bounds of a picture's pixels, in patches."""
    return {"shortest_edge": smallest * PATCH**2, "longest_edge": largest * PATCH**2}


# What several families call the marks around a picture.
MARKS = {"boi_token": "<im_start>", "eoi_token": "<im_end>", "image_token": "<image>"}
