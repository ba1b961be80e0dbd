"""What a method is given to measure what it needs to know about a model."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from vlm_guard.method.base import Method

Prompts = Sequence[Mapping[str, Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class MeasureCall:
    """What `Method.measure` sees.

    Attributes:
        model: an unguarded vision-language model. processor: its processor.
        descriptions: inputs of the model with images, batch 1, that ask for a description.
        questions: the same for yes/no questions whose right answer is yes.
        guarded: a context in which the model is guarded by this method with the given options, `guarded(factor=0.5)`.
        wrapped: the same for a method that is given as an object, for instance one that only looks.
        progress: to be called with (finished, all) steps.
    """

    model: nn.Module
    processor: Any
    descriptions: Prompts = field(repr=False)
    questions: Prompts = field(repr=False)
    guarded: Callable[..., AbstractContextManager[Any]] = field(repr=False)
    wrapped: Callable[["Method"], AbstractContextManager[Any]] = field(repr=False)
    progress: Callable[[int, int], None] = field(repr=False)
